"""Read untrusted `.npy` and `.npz` files: sizes are checked before anything is allocated.

Nothing is unpickled, nothing is unpacked to disk, and no array larger than `max_bytes` is allocated.
"""

from __future__ import annotations

import io
from collections.abc import Container, Iterator
from functools import lru_cache
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    import zipfile

Array = npt.NDArray[Any]

MAX_BYTES = 2**30  # default limit for a file and for the arrays in it
MAX_DIRECTORY_BYTES = 2**20  # limit for the list of members of a .npz, enough for about 10,000 of them
MAX_HEADER_BYTES = 10_000  # limit for the header of a .npy; NumPy refuses longer ones
FLOAT_BYTES = 4  # callers convert arrays to float32, so smaller dtypes grow to this
# Size of the field that holds a header's length, by version of the .npy format.
LENGTH_FIELD_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}


def read_npy(file: IO[bytes], label: str, max_bytes: int = MAX_BYTES) -> Array:
    """Read the array of real numbers in an open `.npy` file.

    Args:
        file: an object whose `read(n)` returns fewer than n bytes only at the end. It is read up to the end
            of the array and no further.
        label: what error messages call the file.
        max_bytes: maximum size in bytes of the array, as stored and as float32.

    Returns:
        A read-only array with the shape, dtype and byte order of the file.

    Raises:
        InputError: the file is not a `.npy`, is incomplete, holds anything but real numbers, or declares
            an array that is too large.
    """
    shape, fortran_order, dtype = read_header(file, label)
    if dtype.hasobject:
        raise InputError(
            f"{label} holds Python objects, which are never unpickled; save it as numbers, "
            "for example with numpy.save(file, array.astype('float32'))"
        )
    if dtype.kind not in "buif":
        raise InputError(f"{label} holds {dtype}, expected real numbers (float, integer or bool)")
    count = prod(shape)
    if count * max(dtype.itemsize, FLOAT_BYTES) > max_bytes:
        raise InputError(
            f"{label} declares an array of shape {shape}, which takes more than {max_bytes} bytes; "
            "allow more with max_bytes=..., or run it in tiles with a model from: "
            "mdlstm export RUN --form tiles"
        )
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise _invalid_npy(label)
    array = np.frombuffer(data, dtype)
    try:  # a header can declare more dimensions, or larger ones beside a 0, than NumPy can have
        # Fortran order is the C order of the reversed shape.
        return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
    except (ValueError, OverflowError):
        raise _invalid_npy(label) from None


def npz_names(file: IO[bytes], label: str) -> list[str]:
    """The names of the arrays in an open `.npz` file.

    Raises:
        InputError: the file is not a `.npz`, or two arrays have the same name.
    """
    with _open_npz(BoundedFile(file, label), label) as archive:
        return list(_members(archive, label))


def read_npz(
    file: IO[bytes], label: str, max_bytes: int = MAX_BYTES, names: Container[str] | None = None
) -> Iterator[tuple[str, Array]]:
    """Read the arrays in an open `.npz` file one at a time: a generator, which raises while it is iterated.

    Args:
        file: a seekable binary file. It is left open.
        label: what error messages call the file.
        max_bytes: maximum size in bytes of all members together, as they are unpacked and as float32.
        names: the arrays to read; None: all.

    Yields:
        Pairs of a member's name without ".npy" and its array.

    Raises:
        InputError: the file is not a `.npz`, is damaged or too large, or has the same name twice, or
            `read_npy` refuses an array.
    """
    import zipfile  # imported late: it is slow to import, and most files are .npy

    bounded = BoundedFile(file, label)
    with _open_npz(bounded, label) as archive:
        bounded.reading, bounded.max_read_bytes = "a member", max_bytes
        members = _members(archive, label)
        too_large = InputError(
            f"{label} unpacks to more than {max_bytes} bytes, as stored or as float32; "
            "allow more with max_bytes=..."
        )
        # zipfile never reads more of a member than its declared size.
        if sum(member.file_size for member in members.values()) > max_bytes:
            raise too_large
        float_bytes = 0  # of all arrays so far: small dtypes grow
        for name, member in members.items():
            if names is not None and name not in names:
                continue
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{label} uses a compression that numpy.savez does not; save it with numpy.savez"
                )
            try:
                with archive.open(member) as packed:
                    array = read_npy(packed, f"'{name}' in {label}", max_bytes)
                    packed.read(1)  # at the end of a member zipfile verifies its checksum
            except InputError:
                raise
            except Exception:  # zipfile and zlib raise all kinds of exceptions for damaged members
                raise InputError(f"'{name}' in {label} is damaged or encrypted") from None
            float_bytes += array.size * FLOAT_BYTES
            if float_bytes > max_bytes:
                raise too_large
            yield name, array


def _members(archive: zipfile.ZipFile, label: str) -> dict[str, zipfile.ZipInfo]:
    """The members of a `.npz` by the names of their arrays, which the results repeat."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in members:
            raise InputError(f"{label} holds two arrays with the name '{name}'; rename one of them")
        members[name] = member
    return members


def _open_npz(file: BoundedFile, label: str) -> zipfile.ZipFile:
    import zipfile

    try:
        return zipfile.ZipFile(file)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise InputError(f"{label} is not a complete .npz archive; write it with numpy.savez") from None


def read_capped(file: IO[bytes], label: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the rest of a file.

    Raises:
        InputError: the rest is larger than `max_bytes`.
    """
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(f"{label} is larger than {max_bytes} bytes; allow more with max_bytes=...")
    return data


def read_header(file: IO[bytes], label: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the shape, whether the array is stored in Fortran order, and the dtype, which may be any.

    Raises:
        InputError: the file is not a `.npy`.
    """
    start = file.read(8)
    if start[:6] != np.lib.format.MAGIC_PREFIX or start[6:] not in LENGTH_FIELD_BYTES:
        raise _invalid_npy(label)
    length_field = file.read(LENGTH_FIELD_BYTES[start[6:]])
    length = int.from_bytes(length_field, "little")
    if length > MAX_HEADER_BYTES:
        raise _invalid_npy(label)
    try:
        shape, fortran_order, dtype = _parse_header(start[6:], length_field + file.read(length))
    except Exception:  # NumPy's parser raises all kinds of exceptions for damaged headers
        raise _invalid_npy(label) from None
    if not all(type(extent) is int and extent >= 0 for extent in shape):  # NumPy takes (True, 2)
        raise _invalid_npy(label)
    return shape, fortran_order, dtype


@lru_cache  # files that are read together usually share a few headers
def _parse_header(version: bytes, header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse a header that starts with its length field."""
    formats = np.lib.format
    # Version 3 differs from 2 only in the encoding of field names, and structured dtypes are refused.
    parse = formats.read_array_header_1_0 if version == b"\x01\x00" else formats.read_array_header_2_0
    return parse(io.BytesIO(header))


def _invalid_npy(label: str) -> InputError:
    return InputError(f"{label} is not a complete .npy array; write it with numpy.save(file, array)")


class BoundedFile(io.RawIOBase):
    """A file that refuses large reads: `zipfile` reads the list of all members into memory first."""

    def __init__(self, file: IO[bytes], label: str) -> None:
        self.file, self.label = file, label
        self.reading, self.max_read_bytes = "the list of members", MAX_DIRECTORY_BYTES

    def read(self, size: int = -1) -> bytes:
        limit = self.max_read_bytes
        data = b"" if size > limit else self.file.read(limit + 1 if size < 0 else size)
        if max(size, len(data)) > limit:
            raise InputError(f"{self.reading} of {self.label} takes more than {limit} bytes")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return self.file.seekable()
