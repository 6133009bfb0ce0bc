"""Samples from an `.npz` file. D is 2, 1 for sequences or 3 for volumes.

x       (N, *grid) or (N, *grid, C) numbers, used as they are
y       grid: (N, *grid) or (N, *grid, K) numbers; classify: (N,) names or integers;
        segment: (N, *grid) or (N, *grid, 1) integers, negative where the class is unknown;
        regress: (N,) or (N, K) numbers; tag: (N, K) of 0 and 1; transcribe: (N,) texts
sizes   (N, D) integers, the valid extents; optional
ndim    D; optional, unless x has four axes and is (N, D, H, W) rather than (N, H, W, C)
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import composed, counted, reason_of
from mdlstm_tk.data.spec import Array, Extents, RawSample
from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    from mdlstm_tk.kinds.training_kind import TrainingKind

MIN_MAPPED_BYTES = 2**24  # arrays below this are read whole
LOCAL_HEADER_BYTES = 30  # of a zip member, without its name; ends with the lengths of name and extra field


def list_arrays(path: Path, kind: TrainingKind) -> tuple[list[RawSample], list[str]]:
    """List the samples of an `.npz` file, and notes for the user.

    Arrays that are stored without compression, as `numpy.savez` does, stay on disk; others are in memory.

    Raises:
        InputError: the file cannot be read, or an array has the wrong shape or type.
    """
    of_kind = {"y": kind.target_dtypes, "names": kind.has_named_columns}
    used = {name for name in ("x", "y", "names", "sizes", "ndim") if of_kind.get(name, True)}
    arrays, others = _load(path, used)
    if missing := (used & {"x", "y"}) - arrays.keys():
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{path}: {' and '.join(sorted(missing))} {verb} missing; expected {kind.array_format}"
        )
    x, y = arrays["x"], arrays.get("y", arrays["x"])
    ndim = _grid_axes(path, arrays, kind)
    if x.ndim not in (ndim + 1, ndim + 2) or x.dtype.kind not in "buif" or x.size == 0:
        raise InputError(
            f"{path}: x is {x.dtype} {x.shape}, expected real numbers (N, *grid) or (N, *grid, C) with "
            f"{counted(ndim, 'axis', 'axes')} of the grid"
        )
    grid = x.shape[1 : ndim + 1]
    if kind.has_grid_targets and y.ndim == ndim + 2 and y.shape[-1] == 1:
        y = y[..., 0]
    if kind.target_dtypes:
        has_shape = (
            y.ndim in kind.target_axes(ndim)
            and len(y) == len(x)
            and (y.ndim == 1 or kind.has_named_columns or y.shape[1 : ndim + 1] == grid)
        )
        if not has_shape or y.dtype.kind not in kind.target_dtypes:
            raise InputError(
                f"{path}: y is {y.dtype} {y.shape} for x {x.shape}; expected {kind.array_format}"
            )
    sizes = arrays.get("sizes", np.full((len(x), ndim), grid))
    if sizes.shape != (len(x), ndim) or sizes.dtype.kind not in "ui":
        raise InputError(
            f"{path}: sizes is {sizes.dtype} {sizes.shape}, expected integers ({len(x)}, {ndim})"
        )
    names = _column_names(path, arrays, y) if kind.has_named_columns else ()
    if x.ndim == ndim + 1:
        x = x[..., None]
    samples = []
    for index, extents in enumerate(map(tuple, sizes.tolist())):
        read_x = partial(read_numbers, x, index, extents)
        read_y = partial(kind.read_array, y, index, extents, names)
        samples.append(RawSample(f"sample {index}", read_x, read_y, is_image=False))
    return samples, [f"arrays of {path}, left out: {', '.join(others)}"] if others else []


def _column_names(path: Path, arrays: dict[str, Array], y: Array) -> tuple[str, ...]:
    """The names of the columns of y (N,) or (N, K): those of the array `names`, else y0, y1, …"""
    columns = y.shape[1] if y.ndim > 1 else 1
    names = arrays.get("names", np.array([f"y{k}" for k in range(columns)]))
    if names.shape != (columns,) or names.dtype.kind not in "US" or len(set(names.tolist())) < columns:
        raise InputError(
            f"{path}: names is {names.dtype} {names.shape}, expected {counted(columns, 'different text')}, "
            "one for each column of y"
        )
    return tuple(read_name(names, k) for k in range(columns))


def _grid_axes(path: Path, arrays: dict[str, Array], kind: TrainingKind) -> int:
    """Return D, the number of grid axes of x."""
    x, sizes, ndim = arrays["x"], arrays.get("sizes"), arrays.get("ndim")
    if ndim is not None:
        if ndim.shape != () or ndim.dtype.kind not in "ui" or ndim < 1:
            raise InputError(f"{path}: ndim is {ndim.tolist()!s:.80}, expected the number of grid axes")
        return int(ndim)
    if sizes is not None and sizes.ndim == 2 and sizes.shape[1] == 3:
        return 3
    if x.ndim == 4 and kind.target_axes(3) == (4,):  # x of volumes has no channels
        extent = arrays["y"].shape[-1] if arrays["y"].ndim == 4 else 1
        if extent in (3, 4):
            raise InputError(
                f"{path}: y is {arrays['y'].shape}, which may be masks of volumes or masks in colours; say "
                "ndim=3 in the file for volumes, or give the number of a class at each position"
            )
        return 3 if extent > 1 else 2
    return 3 if x.ndim == 5 else 2


def read_numbers(x: Array, index: int, extents: Extents) -> Array:
    """Read sample `index` of x as float32; no number is scaled, as exported models scale no array."""
    grid = x.shape[1:-1]
    if not all(0 < extent <= largest for extent, largest in zip(extents, grid, strict=True)):
        raise InputError(f"its size {format_size(extents)} does not fit into {format_size(grid)}")
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, and are refused
        sample: Array = x[index][tuple(map(slice, extents))].astype(np.float32)
    return sample


def read_name(y: Array, index: int) -> str:
    """Read a name, a text or a number of y (N,) as a text in Unicode's composed form.

    Raises:
        InputError: it is not Unicode.
    """
    try:
        return composed(str(y[index].decode() if y.dtype.kind == "S" else y[index]))
    except ValueError:
        raise InputError("its name is not Unicode") from None


def _load(path: Path, used: Set[str]) -> tuple[dict[str, Array], list[str]]:
    """The arrays of a file that are used, and the names of the others."""
    try:
        with np.load(path, allow_pickle=False) as file, zipfile.ZipFile(path) as archive:
            names = set(file)
            mapped = {name: _map_stored(path, archive, f"{name}.npy") for name in names & used}
            arrays = {name: file[name] if array is None else array for name, array in mapped.items()}
            return arrays, sorted(names - used)
    except MemoryError:
        raise
    except Exception as error:  # damaged archives make numpy and zipfile raise all kinds of exceptions
        raise InputError(f"{path}: not a readable .npz of numbers and texts: {reason_of(error)}") from None


def _map_stored(path: Path, archive: zipfile.ZipFile, member: str) -> Array | None:
    """Map an array of an `.npz` file into memory; None if it is compressed, small, or not of numbers."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size < MIN_MAPPED_BYTES:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(LOCAL_HEADER_BYTES)[-4:])
        file.seek(name_bytes + extra_bytes, 1)
        if np.lib.format.read_magic(file) != (1, 0):  # records with hundreds of fields have another version
            return None
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            return None
        mapped: Array = np.memmap(
            path, dtype, "r", offset=file.tell(), shape=shape, order="F" if fortran_order else "C"
        )
        return mapped
