"""The errors of a text that was read, compared with the true one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from mdlstm_tk._util.text_order import reorder
from mdlstm_tk.data.spec import Array, Batch, Floats, TaskSpec
from mdlstm_tk.text.ctc import best_path
from mdlstm_tk.text.encoding import normalise


def target_texts(batch: Batch, spec: TaskSpec) -> list[str]:
    """Return the true text of each sample of a batch, in the order of reading."""
    return _texts((row[row > 0] for row in batch.y), spec)


def predicted_texts(prediction: Iterable[Floats], spec: TaskSpec) -> list[str]:
    """Return the text on the best path of CTC of each sample (T, outputs), in the order of reading."""
    return _texts(map(best_path, prediction), spec)


def _texts(rows: Iterable[Array], spec: TaskSpec) -> list[str]:
    """Texts from the outputs of their characters, from left to right, in the order of reading."""
    texts = ["".join(spec.classes[k - 1] for k in row) for row in rows]
    return texts if spec.text_direction is None else [reorder(text, spec.text_direction) for text in texts]


class TextEdits(NamedTuple):
    """Insertions, deletions and replacements between a text that was read and the true one.

    Attributes:
        character_edits: their smallest number in characters.
        characters: length of the true text.
        word_edits: their smallest number in words, which blanks separate.
        words: number of words of the true text.
    """

    character_edits: int
    characters: int
    word_edits: int
    words: int


def right_characters(reading: Sequence[str], truth: Sequence[str]) -> npt.NDArray[np.bool_]:
    """True for each character of a reading that its alignment with the truth leaves as it is, (L,)."""
    is_right = np.zeros(len(reading), bool)
    for op in Levenshtein.opcodes(reading, truth):
        is_right[op.src_start : op.src_end] = op.tag == "equal"
    return is_right


def count_edits(reading: str, truth: str) -> TextEdits:
    """Compare a text that was read with the true one, both in the form of `normalise`."""
    reading, truth = normalise(reading), normalise(truth)
    words = truth.split()
    return TextEdits(
        Levenshtein.distance(reading, truth),
        len(truth),
        Levenshtein.distance(reading.split(), words),
        len(words),
    )
