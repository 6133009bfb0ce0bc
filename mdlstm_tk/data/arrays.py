"""Samples from an `.npz` file.

x       (N, H, W) or (N, H, W, C) numbers, used as they are
y       grid: (N, H, W) or (N, H, W, K) numbers; classify: (N,) names or integers;
        segment: (N, H, W) integers, negative where the class is unknown; transcribe: (N,) texts
sizes   (N, 2) integers, the valid extents; optional
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mdlstm_tk.data.spec import Array, Kind, RawSample
from mdlstm_tk.errors import InputError

FORMATS: dict[Kind, str] = {
    "grid": "an .npz file with x and y, each (N, H, W) or (N, H, W, C)",
    "classify": "an .npz file with x and y (N,)",
    "segment": "an .npz file with x and integers y (N, H, W)",
    "transcribe": "an .npz file with x and texts y (N,)",
}
TARGET_NDIM: dict[Kind, int] = {"grid": 4, "classify": 1, "segment": 3, "transcribe": 1}
TARGET_DTYPES: dict[Kind, str] = {  # as `numpy.dtype.kind`
    "grid": "buif",
    "classify": "buiUS",
    "segment": "bui",
    "transcribe": "US",
}


def read_arrays(path: Path, kind: Kind, skipped: list[str]) -> Iterator[RawSample]:
    """Read the samples of an `.npz` file.

    Args:
        path: the file.
        kind: kind of the task.
        skipped: receives the name of each unusable sample, and the reason.

    Raises:
        InputError: the file cannot be read, or an array has the wrong shape or type.
    """
    x, y, sizes = _load(path, kind)
    y_has_grid = kind in ("grid", "segment")
    for index, (height, width) in enumerate(sizes.tolist()):
        name = f"sample {index}"
        sample, target = x[index, :height, :width], y[index]
        target = target[:height, :width] if y_has_grid else target
        numbers = (sample, target) if kind == "grid" else (sample,)
        if not (0 < height <= x.shape[1] and 0 < width <= x.shape[2]):
            skipped.append(f"{name}: its size {height}x{width} does not fit into {x.shape[1]}x{x.shape[2]}")
        elif not all(np.isfinite(values.astype(np.float32)).all() for values in numbers):
            skipped.append(f"{name}: it contains NaN or infinite values")
        elif kind == "transcribe" and not str(target):
            skipped.append(f"{name}: its text is empty")
        else:
            # float32, so that no number is scaled: the exported model will not scale its input either
            yield name, sample.astype(np.float32), target if y_has_grid else str(target)


def _load(path: Path, kind: Kind) -> tuple[Array, Array, Array]:
    """Return x (N, H, W, C), y with a channel axis for kind "grid", and sizes (N, 2)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y", "sizes") if name in file}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"--data {path}: not a readable .npz of numbers and texts: {error}") from None
    if not {"x", "y"} <= set(arrays):
        raise InputError(f"--data {path}: x or y is missing; expected {FORMATS[kind]}")
    x, y = arrays["x"], arrays["y"]
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.dtype.kind not in "buif" or x.size == 0:
        raise InputError(
            f"--data {path}: x is {x.dtype} {x.shape}, expected real numbers (N, H, W) or (N, H, W, C)"
        )
    y = y[..., None] if kind == "grid" and y.ndim == 3 else y
    grids_differ = kind in ("grid", "segment") and y.shape[1:3] != x.shape[1:3]
    if (
        y.ndim != TARGET_NDIM[kind]
        or y.dtype.kind not in TARGET_DTYPES[kind]
        or len(y) != len(x)
        or grids_differ
    ):
        raise InputError(
            f"--data {path}: y is {y.dtype} {y.shape} for x {x.shape}; expected {FORMATS[kind]}"
        )
    sizes = arrays.get("sizes", np.full((len(x), 2), x.shape[1:3]))
    if sizes.shape != (len(x), 2) or sizes.dtype.kind not in "ui":
        raise InputError(
            f"--data {path}: sizes is {sizes.dtype} {sizes.shape}, expected integers ({len(x)}, 2)"
        )
    return x, y, sizes
