"""The errors of a text that was read, compared with the true one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from mdlstm_tk._util.text_order import reorder
from mdlstm_tk.data.task import TaskSpec
from mdlstm_tk.io import Array
from mdlstm_tk.text.ctc import best_path
from mdlstm_tk.text.encoding import normalise


def visual_text(y: Iterable[Any], spec: TaskSpec) -> str:
    """The text of a row of `Batch.y`, from left to right, as the image shows it."""
    return "".join(spec.classes[k - 1] for k in map(int, y) if k > 0)


def target_texts(y: Iterable[Iterable[Any]], spec: TaskSpec) -> list[str]:
    """The true text of each sample of `Batch.y`, in the order of reading."""
    return [_read(visual_text(row, spec), spec) for row in y]


def predicted_texts(prediction: Iterable[Array], spec: TaskSpec) -> list[str]:
    """The text on the best path of CTC of each sample (T, outputs), in the order of reading."""
    return [_read(visual_text(best_path(each), spec), spec) for each in prediction]


def _read(visual: str, spec: TaskSpec) -> str:
    direction = spec.decoding.get("text_direction")
    return visual if direction is None else reorder(visual, direction)


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
