"""The error metrics of each kind of task, as (sum, count) so that batches can be added up."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from mdlstm_tk.data.spec import UNLABELLED, Batch, Floats, Kind, Metrics, TaskSpec
from mdlstm_tk.runtime.postprocessing import labels, transcripts
from mdlstm_tk.runtime.text_order import reorder


def valid_positions(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return (N, *grid), True at positions of the samples and False in their padding."""
    grid = batch.x.shape[1:-1]
    mask = np.ones((len(batch.x), *grid), dtype=bool)
    if batch.sizes is not None:
        for axis, extent in enumerate(grid):
            valid = np.arange(extent) < batch.sizes[:, axis, None]  # (N, extent)
            mask &= valid.reshape(len(mask), *(extent if d == axis else 1 for d in range(len(grid))))
    return mask


def target_texts(batch: Batch, spec: TaskSpec) -> list[str]:
    """Return the true text of each sample of a "transcribe" batch, in the order of reading."""
    texts = ["".join(spec.classes[k - 1] for k in row if k > 0) for row in batch.y]
    return texts if spec.text_direction is None else [reorder(text, spec.text_direction) for text in texts]


def predicted_texts(prediction: Floats, spec: TaskSpec) -> list[str]:
    """Return the predicted text of each sample, in the order of reading."""
    return transcripts(prediction, spec.classes, spec.text_direction)


def _grid(prediction: Floats, batch: Batch, _: TaskSpec) -> Metrics:
    error = np.square(prediction - batch.y, dtype=np.float64)[valid_positions(batch)]
    return {"mse": (float(error.sum()), error.size)}


def _classify(prediction: Floats, batch: Batch, _: TaskSpec) -> Metrics:
    return {"error": (int((labels(prediction) != batch.y).sum()), len(batch.y))}


def _segment(prediction: Floats, batch: Batch, _: TaskSpec) -> Metrics:
    labelled = batch.y != UNLABELLED
    return {"error": (int((labels(prediction) != batch.y)[labelled].sum()), int(labelled.sum()))}


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


def _transcribe(prediction: Floats, batch: Batch, spec: TaskSpec) -> Metrics:
    edits = list(map(count_edits, predicted_texts(prediction, spec), target_texts(batch, spec)))
    return {
        "character_error": (sum(e.character_edits for e in edits), sum(e.characters for e in edits)),
        "word_error": (sum(e.word_edits for e in edits), sum(e.words for e in edits)),
        "string_error": (sum(e.character_edits > 0 for e in edits), len(edits)),
    }


def _density(prediction: Floats, batch: Batch, _: TaskSpec) -> Metrics:
    log_p = prediction[valid_positions(batch)].astype(np.float64)
    nats = -float(log_p.sum())
    return {"nats": (nats, len(batch.x)), "bits_per_dim": (nats / log(2), log_p.size)}


METRICS: dict[Kind, Callable[[Floats, Batch, TaskSpec], Metrics]] = {
    "grid": _grid,
    "classify": _classify,
    "segment": _segment,
    "transcribe": _transcribe,
    "density": _density,
}
