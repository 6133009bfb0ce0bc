"""Numbers that lie in a file one after the other, read and written by region: `.npy`, and plain TIFF."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.regular_files import open_regular
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.npy import Array, read_header
from mdlstm_tk.runtime.tiles.plan import Region, shape_of
from mdlstm_tk.runtime.tiles.store import bytes_of, read_at, write_at


class RawArray:
    """An array in a file.

    Args:
        path: of the file, for error messages.
        descriptor: of the open file, which this object closes.
        offset: of the first number in bytes.
        shape: of the array.
        dtype: of the numbers, with their byte order.
        fortran_order: whether the first axis is the one whose neighbours lie side by side.
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        offset: int,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        fortran_order: bool = False,
    ) -> None:
        self.path, self.shape, self.dtype = path, tuple(shape), dtype
        self._descriptor, self._offset, self._fortran_order = descriptor, offset, fortran_order

    def read(self, region: Region) -> Array:
        """The numbers in a region: a slice for each axis.

        Raises:
            InputError: the file ends early, or cannot be read.
        """
        ordered = region[::-1] if self._fortran_order else region
        block = np.empty(shape_of(ordered), self.dtype)
        flat = bytes_of(block)
        for place, offset, count in self._pieces(ordered):
            try:
                found = read_at(self._descriptor, flat[place : place + count], offset)
            except OSError as error:
                raise InputError(f"cannot read {self.path}: {error.strerror or error}") from None
            if found < count:
                raise InputError(f"{self.path} ends early: it has shrunk while it was read")
        return block.T if self._fortran_order else block

    def write(self, region: Region, block: Array) -> None:
        """Write the numbers in a region.

        Raises:
            MDLSTMError: the disk is full.
        """
        flat = bytes_of(np.ascontiguousarray(block, self.dtype))
        try:
            for place, offset, count in self._pieces(region):
                write_at(self._descriptor, flat[place : place + count], offset)
        except OSError as error:
            raise MDLSTMError(
                f"cannot write {self.path}: {error.strerror or error}; choose another place with -o"
            ) from None

    def close(self) -> None:
        """Close the file, if it is open."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _pieces(self, region: Region) -> Iterator[tuple[int, int, int]]:
        """The contiguous pieces of a region: where each lies in the block, in the file, and its length, all
        in bytes."""
        shape = self.shape[::-1] if self._fortran_order else self.shape
        split = len(shape) - 1  # all axes after it are whole
        while split > 0 and shape_of(region[split:]) == shape[split:]:
            split -= 1
        steps = [prod(shape[axis + 1 :]) * self.dtype.itemsize for axis in range(len(shape))]
        count = prod(shape_of(region[split:])) * self.dtype.itemsize
        last = self._offset + region[split].start * steps[split]
        ranges = (range(part.start, part.stop) for part in region[:split])
        for number, front in enumerate(product(*ranges)):
            yield number * count, last + sum(i * s for i, s in zip(front, steps, strict=False)), count


def open_npy(path: Path) -> RawArray:
    """Open a `.npy` file to read it by region.

    Raises:
        InputError: there is no such file, or it is no array of real numbers.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}")
    with open_regular(path) as file:
        shape, fortran_order, dtype = read_header(file, str(path))
        if dtype.kind not in "buif":
            raise InputError(f"{path} holds {dtype}, expected real numbers (float, integer or bool)")
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
        if size < offset + prod(shape) * dtype.itemsize:
            raise InputError(f"{path} is not a complete .npy array; write it with numpy.save(file, array)")
        return RawArray(path, os.dup(file.fileno()), offset, shape, dtype, fortran_order)


def create_npy(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> RawArray:
    """Create a `.npy` file to write by region, or open the one that an interrupted run left.

    Raises:
        MDLSTMError: the file cannot be written.
    """
    try:
        with path.open("r+b" if path.exists() else "w+b") as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
            file.truncate(offset + prod(shape) * dtype.itemsize)
            return RawArray(path, os.dup(file.fileno()), offset, shape, dtype)
    except OSError as error:
        raise MDLSTMError(
            f"cannot write {path}: {error.strerror or error}; choose another place with -o"
        ) from None
