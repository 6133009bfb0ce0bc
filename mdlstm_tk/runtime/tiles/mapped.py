"""`MappedArray`: an array in a file that is read and written by region."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.tiles.plan import Region


class MappedArray:
    """An array in a file. The file is mapped anew for each region that is read, and written as files are.

    Pages of a mapping count as resident memory until it ends, so one that lasted would grow to the size of
    the file; and a process that reads beyond the end of a file that has shrunk is ended (SIGBUS), where a
    new mapping is refused. A full disk ends a process that writes to a mapping, too, and of machines that
    share a file, each would write whole pages.

    Args:
        mapping: of the array; only its file and its layout are used.
    """

    def __init__(self, mapping: np.memmap[Any, Any]) -> None:
        self.shape: tuple[int, ...] = mapping.shape
        self.dtype: np.dtype[Any] = mapping.dtype
        self._path: Any = mapping.filename
        self._offset, self._strides = mapping.offset, mapping.strides

    def __getitem__(self, region: Region) -> Array:
        order: Any = "C" if self._strides[-1] <= self._strides[0] else "F"
        return np.memmap(self._path, self.dtype, "r", self._offset, self.shape, order)[region]

    def __setitem__(self, region: Region, values: Array) -> None:
        """Write a region of an array in C order; axes that the region does not name are written whole."""
        values = np.ascontiguousarray(values, self.dtype)
        first = sum(part.start * step for part, step in zip(region, self._strides, strict=False))
        with open(self._path, "r+b") as file:
            for index in np.ndindex(values.shape[: len(region) - 1]):
                steps = (i * step for i, step in zip(index, self._strides, strict=False))
                file.seek(self._offset + first + sum(steps))
                file.write(values[index].data)


def open_npy(path: Path) -> MappedArray:
    """Open a `.npy` file to read it by region."""
    try:
        return MappedArray(np.lib.format.open_memmap(path, mode="r"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # NumPy's parser raises all kinds of exceptions for damaged headers
        raise InputError(
            f"{path} is not a complete .npy array of numbers; write it with numpy.save(file, array)"
        ) from None


def create_npy(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> MappedArray:
    """Create a `.npy` file to write by region, or open the one that an interrupted run left."""
    import shutil  # imported late: it imports modules that most calls do not need

    if not path.exists():
        size = prod(shape) * dtype.itemsize
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # now rather than after hours
        with atomic_write(path) as temporary:
            np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=tuple(shape))
    return MappedArray(np.lib.format.open_memmap(path, mode="r"))
