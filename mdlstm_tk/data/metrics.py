"""The error metrics of each kind of task, as (sum, count) so that batches can be added up. In PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import NamedTuple
from unicodedata import normalize

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.data.spec import UNLABELLED, Batch, Floats, Kind, TaskSpec
from mdlstm_tk.runtime.postprocessing import transcripts
from mdlstm_tk.runtime.text_order import reorder

Sums = dict[str, tuple[Tensor | float, float]]  # by name of an error: its sum, on any device, and its count


def target_texts(batch: Batch, spec: TaskSpec) -> list[str]:
    """Return the true text of each sample of a "transcribe" batch, in the order of reading."""
    texts = ["".join(spec.classes[k - 1] for k in row if k > 0) for row in batch.y]
    return texts if spec.text_direction is None else [reorder(text, spec.text_direction) for text in texts]


def predicted_texts(prediction: Floats, spec: TaskSpec) -> list[str]:
    """Return the predicted text of each sample, in the order of reading."""
    return transcripts(prediction, spec.classes, spec.text_direction)


def _sum_of_positions(values: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """The sum of values (N, *grid, K) at valid positions, and their number."""
    if batch.sizes is None:
        return values.sum(), float(values.numel())
    valid = valid_mask(values.shape[1:-1], torch.from_numpy(batch.sizes).to(values.device))
    return (values * valid[..., None]).sum(), float(batch.sizes.prod(1).sum() * values.shape[-1])


def _grid(prediction: Tensor, batch: Batch, _: TaskSpec) -> Sums:
    y = torch.from_numpy(batch.y).to(prediction.device, non_blocking=True)
    return {"mse": _sum_of_positions((prediction.double() - y).square(), batch)}


def _label(prediction: Tensor, batch: Batch, _: TaskSpec) -> Sums:
    y = torch.from_numpy(batch.y).to(prediction.device, non_blocking=True)
    wrong = (prediction.argmax(-1) != y) & (y != UNLABELLED)
    return {"error": (wrong.sum(), float((batch.y != UNLABELLED).sum()))}


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


def plain(text: str) -> str:
    """Return a text as it is compared: NFC, without blanks at both ends."""
    return normalize("NFC", text).strip()


def count_edits(reading: str, truth: str) -> TextEdits:
    """Compare a text that was read with the true one; how either is composed (NFC) does not count."""
    reading, truth = plain(reading), plain(truth)
    words = truth.split()
    return TextEdits(
        Levenshtein.distance(reading, truth),
        len(truth),
        Levenshtein.distance(reading.split(), words),
        len(words),
    )


def _transcribe(prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
    texts = predicted_texts(prediction.cpu().numpy(), spec)
    edits = list(map(count_edits, texts, target_texts(batch, spec)))
    return {
        "character_error": (sum(e.character_edits for e in edits), sum(e.characters for e in edits)),
        "word_error": (sum(e.word_edits for e in edits), sum(e.words for e in edits)),
        "string_error": (sum(e.character_edits > 0 for e in edits), len(edits)),
    }


def _density(prediction: Tensor, batch: Batch, _: TaskSpec) -> Sums:
    nats, count = _sum_of_positions(-prediction.double(), batch)
    return {"nats": (nats, float(len(batch.x))), "bits_per_dim": (nats / log(2), count)}


METRICS: dict[Kind, Callable[[Tensor, Batch, TaskSpec], Sums]] = {
    "grid": _grid,
    "classify": _label,
    "segment": _label,
    "transcribe": _transcribe,
    "density": _density,
}
