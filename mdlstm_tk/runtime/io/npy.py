"""Reading `.npy` and `.npz` from anyone: what a header declares is checked before it is allocated.

Nothing is unpickled, nothing is unpacked to disk, and never more memory is taken than `max_bytes`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError

Array = npt.NDArray[Any]

MAX_BYTES = 2**30  # of a file, and of the arrays in it; `--max-bytes` changes it
DIRECTORY_BYTES = 2**20  # of a .npz's list of members: some ten thousand of them
LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # of a header's length, by version
HEADER_BYTES = 10_000  # of a .npy; NumPy parses no longer one
FLOAT_BYTES = 4  # of a number once it is read as float32


def read_npy(file: IO[bytes], shown: str, max_bytes: int = MAX_BYTES) -> Array:
    """The array of real numbers in an open `.npy` file.

    Args:
        file: anything with `read`; it is read up to the array's end and no further.
        shown: what messages call it.
        max_bytes: that the array may take, as it is stored and as float32.

    Raises:
        InputError: it is no `.npy`, is cut off, holds other than real numbers, or declares more.
    """
    shape, fortran, dtype = _header(file, shown)
    if dtype.hasobject:
        raise InputError(
            f"{shown} holds Python objects, which are never unpickled; save it as numbers, "
            "for example with numpy.save(file, array.astype('float32'))"
        )
    if dtype.kind not in "buif":
        raise InputError(f"{shown} holds {dtype}, expected real numbers (float, integer or bool)")
    count = prod(shape)
    if count * max(dtype.itemsize, FLOAT_BYTES) > max_bytes:
        raise InputError(
            f"{shown} declares an array of shape {shape}, which takes more than {max_bytes} bytes; "
            "allow more with --max-bytes"
        )
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise _incomplete(shown)
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def read_npz(file: IO[bytes], shown: str, max_bytes: int = MAX_BYTES) -> Iterator[tuple[str, Array]]:
    """The names and arrays in an open `.npz` file, one at a time.

    Args:
        file: can seek; standard input must be read first, see `read_capped`.
        shown: what messages call it.
        max_bytes: that all its arrays may take together.

    Raises:
        InputError: it is no `.npz`, is damaged, or holds what `read_npy` refuses or more than that.
    """
    import zipfile  # takes a while, and most files are .npy

    cautious = _Cautious(file, shown)
    try:
        archive = zipfile.ZipFile(cautious)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise InputError(f"{shown} is not a complete .npz archive; write it with numpy.savez") from None
    cautious.limit = max_bytes
    with archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > max_bytes:
            raise InputError(f"{shown} unpacks to more than {max_bytes} bytes; allow more with --max-bytes")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{shown} is packed in another way than numpy.savez packs")
            try:
                with archive.open(member) as packed:
                    array = read_npy(packed, f"{name!a} in {shown}", max_bytes)
                    packed.read(1)  # at the end the checksum is compared
            except InputError:
                raise
            except Exception:  # a damaged member ends in whatever zipfile and zlib raise
                raise InputError(f"{name!a} in {shown} is damaged or encrypted") from None
            yield name, array


def read_capped(file: IO[bytes], shown: str, max_bytes: int = MAX_BYTES) -> bytes:
    """All that is left in a file.

    Raises:
        InputError: that is more than `max_bytes`.
    """
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(f"{shown} is larger than {max_bytes} bytes; allow more with --max-bytes")
    return data


def _header(file: IO[bytes], shown: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis is the fastest, and dtype."""
    start = file.read(8)
    if start[:6] != np.lib.format.MAGIC_PREFIX or start[6:] not in LENGTH_BYTES:
        raise _incomplete(shown)
    length = file.read(LENGTH_BYTES[start[6:]])
    if int.from_bytes(length, "little") > HEADER_BYTES:
        raise _incomplete(shown)
    try:
        shape, fortran, dtype = _parse(start[6:], length + file.read(int.from_bytes(length, "little")))
    except Exception:  # a damaged header ends in whatever NumPy's parser raises
        raise _incomplete(shown) from None
    if min(shape, default=0) < 0:
        raise _incomplete(shown)
    return shape, fortran, dtype


@lru_cache  # the many files of a folder have few different headers
def _parse(version: bytes, header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    formats = np.lib.format
    parse = formats.read_array_header_1_0 if version == b"\x01\x00" else formats.read_array_header_2_0
    return parse(io.BytesIO(header))


def _incomplete(shown: str) -> InputError:
    return InputError(f"{shown} is not a complete .npy array; write it with numpy.save(file, array)")


class _Cautious(io.RawIOBase):
    """A file for `zipfile`, which reads a whole list of members into memory before it looks at any."""

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self.file, self.shown, self.limit = file, shown, DIRECTORY_BYTES

    def read(self, size: int = -1) -> bytes:
        data = b"" if size > self.limit else self.file.read(self.limit + 1 if size < 0 else size)
        if max(size, len(data)) > self.limit:
            raise InputError(f"{self.shown} lists more members than any archive of arrays has")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return self.file.seekable()
