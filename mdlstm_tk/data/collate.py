"""Joining samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.spec import UNLABELLED, Batch, Kind, Sample


def collate(kind: Kind, samples: Sequence[Sample]) -> Batch:
    """Join samples to a batch, padded to their largest extents.

    x, numbers and texts are padded with 0, masks with UNLABELLED.
    """
    xs, ys = [x for x, _ in samples], [y for _, y in samples]
    sizes = np.array([x.shape[:-1] for x in xs], dtype=np.int64)
    grid = sizes.max(axis=0)
    x = _pad(xs, (*grid, xs[0].shape[-1]), 0, np.float32)
    sizes_if_ragged = sizes if (sizes != grid).any() else None
    if kind == "density":
        y: npt.NDArray[Any] = x
    elif kind == "classify":
        y = np.array(ys, dtype=np.int64)
    elif kind == "transcribe":
        y = _pad(ys, (max(map(len, ys)),), 0, np.int64)
    elif kind == "segment":
        y = _pad(ys, tuple(grid), UNLABELLED, np.int64)
    else:
        y = _pad(ys, (*grid, ys[0].shape[-1]), 0, np.float32)
    return Batch(x, y, sizes_if_ragged)


def _pad(arrays: Sequence[Any], shape: tuple[int, ...], fill: float, dtype: Any) -> npt.NDArray[Any]:
    """Stack arrays of different extents to (N, *shape)."""
    padded = np.full((len(arrays), *shape), fill, dtype=dtype)
    for row, array in zip(padded, map(np.asarray, arrays), strict=True):
        row[tuple(slice(extent) for extent in array.shape)] = array
    return padded
