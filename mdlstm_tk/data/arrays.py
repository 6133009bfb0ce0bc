"""Samples from an `.npz` file.

x       (N, H, W) or (N, H, W, C) numbers, used as they are; density: in [0, 1]
y       grid: (N, H, W) or (N, H, W, K) numbers; classify: (N,) names or integers;
        segment: (N, H, W) integers, negative where the class is unknown; transcribe: (N,) texts;
        density: none
sizes   (N, 2) integers, the valid extents; optional
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.data.masks import RawMask
from mdlstm_tk.data.spec import Array, Kind, RawSample, UnusableSampleError
from mdlstm_tk.errors import InputError

MIN_MAPPED_BYTES = 2**24  # arrays below this are read whole
LOCAL_HEADER_BYTES = 30  # of a zip member, without its name; ends with the lengths of name and extra field
# What damaged archives make numpy and zipfile raise; a RuntimeError of an encrypted one, for example.
UNREADABLE = (
    OSError,
    ArithmeticError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
FORMATS: dict[Kind, str] = {
    "grid": "an .npz file with x and y, each (N, H, W) or (N, H, W, C)",
    "classify": "an .npz file with x and y (N,)",
    "segment": "an .npz file with x and integers y (N, H, W)",
    "transcribe": "an .npz file with x and texts y (N,)",
    "density": "an .npz file with x (N, H, W) or (N, H, W, C) in [0, 1]",
}
TARGET_NDIM: dict[Kind, int] = {"grid": 4, "classify": 1, "segment": 3, "transcribe": 1}
TARGET_DTYPES: dict[Kind, str] = {  # as `numpy.dtype.kind`
    "grid": "buif",
    "classify": "buiUS",
    "segment": "bui",
    "transcribe": "US",
}


def list_arrays(path: Path, kind: Kind) -> Iterator[RawSample]:
    """List the samples of an `.npz` file.

    Arrays that are stored without compression, as `numpy.savez` does, stay on disk; others are in memory.

    Args:
        path: the file.
        kind: kind of the task.

    Raises:
        InputError: the file cannot be read, or an array has the wrong shape or type.
    """
    x, y, sizes = _load(path, kind)
    for index, (height, width) in enumerate(sizes.tolist()):
        read_y = partial(_TARGETS[kind], y, index, height, width)
        yield RawSample(f"sample {index}", partial(_numbers, x, index, height, width), read_y, False)


def _numbers(x: Array, index: int, height: int, width: int) -> Array:
    """Sample `index` of x, as float32, so that no number is scaled: exported models do not scale arrays."""
    if not (0 < height <= x.shape[1] and 0 < width <= x.shape[2]):
        raise UnusableSampleError(f"its size {height}x{width} does not fit into {x.shape[1]}x{x.shape[2]}")
    return x[index, :height, :width].astype(np.float32)


def _name(y: Array, index: int, *_: int) -> str:
    try:
        return str(y[index])
    except ValueError:
        raise UnusableSampleError("its name is not Unicode") from None


def _text(y: Array, index: int, *_: int) -> str:
    text = _name(y, index)
    if not text:
        raise UnusableSampleError("its text is empty")
    return text


def _no_target(*_: Any) -> None:
    """The target of an image whose probability is learned."""


def _mask(y: Array, index: int, height: int, width: int) -> RawMask:
    return RawMask(np.asarray(y[index, :height, :width]).astype(np.int64))


_TARGETS: dict[Kind, Callable[..., Any]] = {
    "grid": _numbers,
    "classify": _name,
    "segment": _mask,
    "transcribe": _text,
    "density": _no_target,
}


def _load(path: Path, kind: Kind) -> tuple[Array, Array, Array]:
    """Return x (N, H, W, C), y with a channel axis for kind "grid", and sizes (N, 2)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in ("x", "y", "sizes") if name in file]
            mapped = {name: _map_stored(path, f"{name}.npy") for name in names}
            arrays = {name: file[name] if array is None else array for name, array in mapped.items()}
    except UNREADABLE as error:
        raise InputError(f"--data {path}: not a readable .npz of numbers and texts: {error}") from None
    has_target = kind != "density"
    if not ({"x", "y"} if has_target else {"x"}) <= set(arrays):
        missing = "x or y" if has_target else "x"
        raise InputError(f"--data {path}: {missing} is missing; expected {FORMATS[kind]}")
    x = arrays["x"]
    y = arrays["y"] if has_target else x
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.dtype.kind not in "buif" or x.size == 0:
        raise InputError(
            f"--data {path}: x is {x.dtype} {x.shape}, expected real numbers (N, H, W) or (N, H, W, C)"
        )
    y = y[..., None] if kind == "grid" and y.ndim == 3 else y
    grids_differ = kind in ("grid", "segment") and y.shape[1:3] != x.shape[1:3]
    if has_target and (
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


def _map_stored(path: Path, member: str) -> Array | None:
    """Map an array of an `.npz` file into memory; None if it is compressed, small, or not of numbers."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        if member not in archive.namelist():
            return None
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < MIN_MAPPED_BYTES:
            return None
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = struct.unpack("<HH", header[-4:])
        file.seek(name_bytes + extra_bytes, 1)
        version = np.lib.format.read_magic(file)
        npy = np.lib.format
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            return None
        mapped: Array = np.memmap(
            path, dtype, "r", offset=file.tell(), shape=shape, order="F" if fortran_order else "C"
        )
        return mapped
