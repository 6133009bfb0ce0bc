"""How far predictions are from the truth, for each kind of task: errors as (sum, number summed over)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.base import UNLABELLED, Batch, Floats, TaskSpec
from mdlstm_tk.runtime.postprocessing import labels, transcripts

Errors = dict[str, tuple[float, float]]


def inside(batch: Batch) -> npt.NDArray[np.bool_]:
    """(N, *grid): is the cell one of the sample's, not padding?"""
    grid = batch.x.shape[1:-1]
    mask = np.ones((len(batch.x), *grid), dtype=bool)
    if batch.sizes is not None:
        for axis, extent in enumerate(grid):
            below = np.arange(extent) < batch.sizes[:, axis, None]
            mask &= below.reshape(len(mask), *(extent if d == axis else 1 for d in range(len(grid))))
    return mask


def texts(batch: Batch, spec: TaskSpec) -> list[str]:
    """What the samples of a batch of kind "transcribe" read."""
    return ["".join(spec.classes[k - 1] for k in row if k > 0) for row in batch.y]


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and substitutions that turn one text into the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _grid(prediction: Floats, batch: Batch, _: TaskSpec) -> Errors:
    error = np.square(prediction - batch.y, dtype=np.float64)[inside(batch)]
    return {"mse": (float(error.sum()), error.size)}


def _classify(prediction: Floats, batch: Batch, _: TaskSpec) -> Errors:
    return {"error": (int((labels(prediction) != batch.y).sum()), len(batch.y))}


def _segment(prediction: Floats, batch: Batch, _: TaskSpec) -> Errors:
    known = batch.y != UNLABELLED
    return {"error": (int((labels(prediction) != batch.y)[known].sum()), int(known.sum()))}


def _transcribe(prediction: Floats, batch: Batch, spec: TaskSpec) -> Errors:
    truth = texts(batch, spec)
    edits = list(map(edit_distance, transcripts(prediction, spec.classes), truth))
    return {
        "character_error": (sum(edits), sum(map(len, truth))),
        "string_error": (sum(edit > 0 for edit in edits), len(edits)),
    }


MEASURES = {"grid": _grid, "classify": _classify, "segment": _segment, "transcribe": _transcribe}
