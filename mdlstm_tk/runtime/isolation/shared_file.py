"""How arrays travel between a parent and its child: in an anonymous file in memory that both have open.

On Linux both map the file. Copying to and from a mapping takes a fifth of the time of the system calls. A
file that gets shorter kills whoever reads the mapping (SIGBUS), so the parent seals it against that
(F_SEAL_SHRINK); and it copies an array before it looks at it, as the child could change it meanwhile. Where
files cannot be sealed, the parent uses the system calls.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.isolation.messages import ProtocolError

# The types of numbers that arrays may have: bool, integers and floats in the byte order of this machine.
DTYPES = {np.dtype(code).str: np.dtype(code) for code in "?bhilqBHILQefd"}
MAX_RANK = 32
MAX_ARRAYS = 100_000  # of one .npz file
ALIGNMENT = 64  # bytes
MAX_TRANSFER_BYTES = 2**30  # of one system call; Linux moves at most 2 GiB

NamedArrays = list[tuple[str | None, Array]]


class SharedFile:
    """The file. Each request, and each reply to one, overwrites it from the beginning.

    Args:
        descriptor: of the open file.
        is_mapped: whether to map it, rather than to read and write it with system calls.
    """

    def __init__(self, descriptor: int, *, is_mapped: bool) -> None:
        self.descriptor = descriptor
        self._is_mapped = is_mapped
        self._mapping = np.empty(0, np.uint8)

    @classmethod
    def create(cls) -> SharedFile:
        """Create an empty file without a name, for the parent."""
        if hasattr(os, "memfd_create"):
            import fcntl

            descriptor = os.memfd_create("mdlstm-tk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            return cls(descriptor, is_mapped=True)
        import tempfile

        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()), is_mapped=False)

    def write_bytes(self, data: bytes) -> None:
        """Write data that `read_bytes` reads on the other side."""
        self._grow(len(data))
        self._put(np.frombuffer(data, np.uint8), 0)

    def read_bytes(self, count: int) -> bytes:
        """Read what `write_bytes` wrote."""
        return self._get(count, 0).tobytes()

    def write(self, arrays: Iterable[tuple[str | None, Array]]) -> list[list[Any]]:
        """Write arrays one after the other.

        Returns:
            What `read` on the other side needs: name, dtype and shape of each.

        Raises:
            MDLSTMError: one holds other than numbers.
            OSError: the file may not become that large.
        """
        contiguous = [(name, np.asarray(array, order="C")) for name, array in arrays]
        for name, array in contiguous:
            if array.dtype.str not in DTYPES:
                raise MDLSTMError(f"{name!a} is an array of {array.dtype}, expected numbers")
        offsets, end = _places([array.nbytes for _, array in contiguous])
        self._grow(end)
        for (_, array), offset in zip(contiguous, offsets, strict=True):
            self._put(array.reshape(-1).view(np.uint8), offset)
        return [[name, array.dtype.str, list(array.shape)] for name, array in contiguous]

    def read(self, entries: Any, max_bytes: int) -> NamedArrays:
        """Read the arrays that the other side has written.

        Args:
            entries: what `write` returned there, or anything else.
            max_bytes: maximum size of all arrays together.

        Raises:
            ProtocolError: `entries` are not what `write` returns, or the arrays are larger than the file or
                than `max_bytes`.
        """
        if not isinstance(entries, list) or len(entries) > MAX_ARRAYS:
            raise ProtocolError("no list of arrays")
        described = [_described(entry) for entry in entries]
        sizes = [prod(shape) * dtype.itemsize for _, dtype, shape in described]
        offsets, end = _places(sizes)
        if end > min(max_bytes, os.fstat(self.descriptor).st_size):
            raise ProtocolError("arrays that are larger than what was written")
        arrays: NamedArrays = []
        for (name, dtype, shape), size, offset in zip(described, sizes, offsets, strict=True):
            data = self._get(size, offset)
            try:
                arrays.append((name, data.view(dtype).reshape(shape)))
            except ValueError:  # an extent of 0 may hide others that NumPy cannot have
                raise ProtocolError("an array of an impossible shape") from None
        return arrays

    def _grow(self, size: int) -> None:
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)

    def _put(self, data: Array, offset: int) -> None:
        if self._is_mapped:
            self._mapped(offset + len(data))[offset:] = data
            return
        while len(data):
            count = os.pwrite(self.descriptor, data[:MAX_TRANSFER_BYTES].data, offset)
            data, offset = data[count:], offset + count

    def _get(self, count: int, offset: int) -> Array:
        data = np.empty(count, np.uint8)
        if self._is_mapped:
            data[:] = self._mapped(offset + count)[offset:]
            return data
        read = 0
        while read < count:
            part = data[read : read + MAX_TRANSFER_BYTES]
            moved = os.preadv(self.descriptor, [part.data], offset + read)
            if not moved:
                raise ProtocolError("an array that ends early")
            read += moved
        return data

    def _mapped(self, size: int) -> Array:
        """The first `size` bytes of the file, which is at least so large."""
        if len(self._mapping) < size:
            self._mapping = np.frombuffer(mmap.mmap(self.descriptor, 0), np.uint8)
        return self._mapping[:size]


def _places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where arrays of so many bytes lie in the file, and where the last one ends."""
    offsets, end = [], 0
    for size in sizes:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(offset)
        end = offset + size
    return offsets, end


def _described(entry: Any) -> tuple[str | None, np.dtype[Any], tuple[int, ...]]:
    match entry:
        case [None | str() as name, str() as dtype, list() as shape] if dtype in DTYPES:
            if len(shape) <= MAX_RANK and all(type(extent) is int and extent >= 0 for extent in shape):
                return name, DTYPES[dtype], tuple(shape)
    raise ProtocolError("an invalid description of an array")
