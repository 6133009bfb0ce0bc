"""What the training of the kind `transcribe` needs: characters, the CTC loss, and the edits of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torch.nn import functional as F

from mdlstm_tk._util.text import composed, printable
from mdlstm_tk._util.text_order import Direction, is_right_to_left, reorder
from mdlstm_tk.data.task import Batch, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.kinds.kind import Labels
from mdlstm_tk.runtime.shapes import step_width
from mdlstm_tk.text.ctc import best_path

# Marks that no image shows: byte order, and the direction of what follows. The order of a text is found
# without them.
INVISIBLE = dict.fromkeys(
    map(ord, "\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)


def normalise(text: str) -> str:
    """A text without marks of direction, in Unicode's composed form (NFC), and without blanks at its ends,
    which no error counts."""
    return composed(text.translate(INVISIBLE)).strip()


def fit_texts(texts: Sequence[str]) -> Labels:
    """The characters of normalised texts, and their direction."""
    direction: Direction = "rtl" if is_right_to_left("".join(texts)) else "ltr"
    characters = sorted({character for text in texts for character in reorder(text, direction)})
    return Labels(1 + len(characters), tuple(characters), decoding={"text_direction": direction})


def encoder(spec: TaskSpec) -> Callable[[str], list[int]]:
    """What makes outputs of a text, from left to right."""
    outputs = {character: k for k, character in enumerate(spec.classes, 1)}
    return partial(_encode, outputs, spec.decoding["text_direction"])


def _encode(outputs: Mapping[str, int], direction: Direction, text: str) -> list[int]:
    visual = reorder(normalise(text), direction)
    if unknown := {*visual} - outputs.keys():
        raise InputError(f"the character {printable(min(unknown))} is none of the run")
    return [outputs[character] for character in visual]


def visual_text(y: Iterable[Any], spec: TaskSpec) -> str:
    """The text of a row of `Batch.y`, from left to right, as the image shows it."""
    return "".join(spec.classes[k - 1] for k in map(int, y) if k > 0)


def target_texts(y: Iterable[Iterable[Any]], spec: TaskSpec) -> list[str]:
    """The true text of each sample of `Batch.y`, in the order of reading."""
    direction = spec.decoding.get("text_direction")
    visual = (visual_text(row, spec) for row in y)
    return [text if direction is None else reorder(text, direction) for text in visual]


def predicted_texts(prediction: Iterable[Array], spec: TaskSpec) -> list[str]:
    """The text on the best path of CTC of each sample (T, outputs), in the order of reading."""
    return target_texts(map(best_path, prediction), spec)


def line_steps(batch: Batch, steps: int, columns: int | None = None) -> Tensor:
    """How many of a recogniser's `steps` lie inside each line of a batch of tensors, (N,); the others see
    padding. A step covers `columns` of x; None: the number follows from the width of the batch."""
    width = batch.x.shape[2]
    widths = batch.x.new_full((len(batch.x),), width) if batch.sizes is None else batch.sizes[:, 1]
    covered: Tensor = (widths.double() / (columns or step_width(steps, width))).ceil().long()
    return covered.clamp_(max=steps)


def ctc_loss(logits: Tensor, batch: Batch, columns: int | None) -> Tensor:
    """The mean over the samples of the CTC loss, divided by the length of the text. It is 0 for samples
    without room for their text, which count in the mean: so parts of a batch have a mean that is theirs.

    Args:
        logits: (N, T, 1 + characters).
        batch: of tensors; holds the texts, (N, L), which end with zeros.
        columns: of x, under one of the T steps; None if the network does not say it.
    """
    lengths, characters = line_steps(batch, logits.shape[1], columns), (batch.y > 0).sum(1)
    log_probs = logits.log_softmax(-1).transpose(0, 1)  # (T, N, 1 + characters)
    losses = F.ctc_loss(log_probs, batch.y, lengths, characters, reduction="none", zero_infinity=True)
    means: Tensor = losses / characters.clamp(min=1)
    return means.mean()


class Edits(NamedTuple):
    """The smallest numbers of insertions, deletions and replacements between a text that was read and the
    true one, in characters and in words, which blanks separate; and the lengths of the true one."""

    character_edits: int
    characters: int
    word_edits: int
    words: int


def count_edits(reading: str, truth: str) -> Edits:
    """Compare a text that was read with the true one, both in the form of `normalise`."""
    reading, truth = normalise(reading), normalise(truth)
    words, distance = truth.split(), Levenshtein.distance
    return Edits(distance(reading, truth), len(truth), distance(reading.split(), words), len(words))


def sums_of(logits: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
    """Of a batch of tensors "edits" (3, 2), the edits and the lengths of all texts in characters, words and
    texts; and "room", the number of texts that CTC can spell: with a step for each character, and a blank
    between two equal ones."""
    steps = line_steps(batch, logits.shape[1], spec.decoding.get("columns_per_step"))
    valid = [y[:n] for y, n in zip(logits.cpu().numpy(), steps.tolist(), strict=True)]
    pairs = zip(predicted_texts(valid, spec), target_texts(batch.y.tolist(), spec), strict=True)
    counts = np.array([count_edits(*pair) for pair in pairs])
    of_texts = np.array([[(counts[:, 0] > 0).sum(), len(counts)]])
    y = batch.y
    repeats = ((y[:, 1:] == y[:, :-1]) & (y[:, 1:] > 0)).sum(1)
    edits = np.concatenate([counts.sum(0).reshape(2, 2), of_texts])
    return {"edits": torch.tensor(edits), "room": ((y > 0).sum(1) + repeats <= steps).sum()}
