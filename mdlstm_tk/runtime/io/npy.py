"""Read and write arrays as `.npy`, from files and standard streams: sizes are checked before anything is
allocated, and nothing is ever unpickled."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.checks import check_unmasked, checked
from mdlstm_tk._util.text import counted, reason_of
from mdlstm_tk.errors import TILED_EXPORT, Argument, Export, InputError, Message
from mdlstm_tk.runtime.io import STDIO as STDIO
from mdlstm_tk.runtime.io.files import atomic_write

Array = npt.NDArray[Any]

MAX_BYTES = 2**30  # default limit for a file and for the arrays in it
MORE_BYTES = Message("; allow more with ", Argument("max_bytes"))  # the end of an error
BLOCK_BYTES = 2**26  # of one read
FLOAT_BYTES = 4  # callers convert arrays to float32, so smaller dtypes grow to this


def byte_limit(max_bytes: int | None) -> int:
    """The limit in bytes that the argument `max_bytes` stands for; None: `MAX_BYTES`.

    Raises:
        InputError: it is below 1, or more than any file has.
    """
    if max_bytes is not None and not 1 <= max_bytes < 2**60:
        raise InputError(Argument("max_bytes", max_bytes), " is out of range; give a number of bytes")
    return MAX_BYTES if max_bytes is None else max_bytes


@contextmanager
def open_input(source: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; "-" is standard input."""
    try:
        opened: Any = nullcontext(sys.stdin.buffer) if source == STDIO else open(source, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"there is no file {source}") from None
    except (OSError, ValueError) as error:
        raise _cannot_read(source, error) from None
    try:
        with opened as file:
            yield file
    except OSError as error:
        raise _cannot_read(source, error) from None


@contextmanager
def open_output(target: str | Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that appears whole or not at all, see `atomic_write`; "-" is standard output."""
    if target == STDIO:
        buffer = io.BytesIO()
        yield buffer
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()
        return
    with atomic_write(Path(target), replace=replace) as temporary, open(temporary, "wb") as file:
        yield file


@checked
def load_array(source: str | Path, max_bytes: int = MAX_BYTES) -> Array:
    """Read a `.npy` file.

        >>> x = load_array("matrix.npy")

    Args:
        source: path of the file, or "-" for standard input.
        max_bytes: maximum size in bytes of the array, as stored and as float32.

    Returns:
        The array as float32: finite, with at least one element.

    Raises:
        InputError: the file does not exist, is not a `.npy` array of real numbers, is too large, empty, or
            holds values that are not finite in float32.
    """
    with open_input(source) as file:
        return to_float32(read_npy(file, label_of(source), byte_limit(max_bytes)), label_of(source))


@checked
def save_array(target: str | Path, array: Array, *, replace: bool = True) -> None:
    """Write a `.npy` file, whole or not at all.

        >>> save_array("prediction.npy", y)

    Args:
        target: path of the file, or "-" for standard output.
        array: real numbers of any shape.
        replace: the file may exist.

    Raises:
        InputError: the file exists, and `replace` is false; or an entry is masked; or lists have different
            lengths.
        MDLSTMError: the file cannot be written.
    """
    check_unmasked("array", array)
    try:
        array = np.asanyarray(array)
    except ValueError as error:  # of lists of different lengths
        raise InputError(f"array must be an array: {reason_of(error)}") from None
    with open_output(target, replace=replace) as file:
        write_npy(file, array)


def check_real(dtype: np.dtype[Any], label: str) -> None:
    """Check that a dtype is one of real numbers; `label` names the array in error messages."""
    if dtype.kind not in "buif":
        raise InputError(f"{label} holds {dtype}, expected real numbers (float, integer or bool)")


def to_float32(array: Array, label: str) -> Array:
    """Convert real numbers of any shape to float32; `label` names them in error messages.

    Raises:
        InputError: the array is not of real numbers, is empty, or holds NaN, infinity or values that
            float32 cannot hold.
    """
    check_real(array.dtype, label)
    if array.size == 0:
        raise InputError(f"{label} is empty: its shape is {array.shape}")
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    finite = np.isfinite(converted)
    if not finite.all():
        if np.isfinite(array).all():
            largest = float(np.abs(array).max())
            raise InputError(
                f"{label} holds values up to {largest:.3g}, which float32 cannot hold; scale them to at "
                "most 3e38"
            )
        invalid = finite.size - np.count_nonzero(finite)
        raise InputError(
            f"{label} holds {invalid} NaN or infinite values; replace them, e.g. with numpy.nan_to_num"
        )
    return converted


def warn_if_not_finite(label: str, *results: Array) -> bool:
    """Warn of NaN and infinity in results, which files hold as they are; `label` names what they are of.
    True if there are any."""
    count = int(sum(y.size - np.count_nonzero(np.isfinite(y)) for y in results))
    if count:
        values = counted(count, "NaN or infinite value")
        text = f"the result of {label} holds {values}; the model diverged, or x is too large for it"
        warnings.warn(text, stacklevel=3)
    return count > 0


def write_npy(file: IO[bytes], array: Array) -> None:
    """Write the bytes that numpy.save writes."""
    check_real(array.dtype, "the array")
    array = np.asarray(array, order="C")
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(array.data)  # numpy.save does not notice a full disk


def label_of(source: str | Path) -> str:
    """The name of a file, or of "-", in error messages."""
    return "standard input" if source == STDIO else str(source)


def read_npy(file: IO[bytes], label: str, max_bytes: int = MAX_BYTES) -> Array:
    """Read the array of real numbers in an open `.npy` file, as it is stored, up to its end and no further.

    Args:
        file: an object whose `read(n)` returns fewer than n bytes only at the end.
        label: what error messages call the file.
        max_bytes: maximum size in bytes of the array, as stored and as float32.
    """
    shape, fortran_order, dtype = read_header(file, label)
    if dtype.hasobject:
        raise InputError(
            f"{label} holds Python objects, which are never unpickled; save it as numbers, "
            "for example with numpy.save(file, array.astype('float32'))"
        )
    check_real(dtype, label)
    count = prod(shape)
    if count * max(dtype.itemsize, FLOAT_BYTES) > max_bytes:
        raise InputError(
            f"{label} declares an array of shape {shape}, which takes more than {max_bytes} bytes",
            *(MORE_BYTES, ", or run it in tiles with a model from: ", TILED_EXPORT),
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


def read_capped(file: IO[bytes], label: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the rest of a file."""
    blocks, left, most = list[bytes](), max_bytes, BLOCK_BYTES
    with suppress(OSError, AttributeError):  # of a file in memory or in an archive
        most = max(os.fstat(file.fileno()).st_size + 1, BLOCK_BYTES)
    while block := file.read(min(left + 1, most)):  # Python takes the memory of all it may read
        blocks.append(block)
        left -= len(block)
        if left < 0:
            raise InputError(f"{label} is larger than {max_bytes} bytes", MORE_BYTES)
    return b"".join(blocks)


def read_model_file(path: Path, max_bytes: int, make_one: str | Export) -> bytes:
    """Read a model into memory, so that ONNX Runtime has no path to resolve external data against."""
    try:
        is_regular = S_ISREG(path.stat().st_mode)  # a named pipe would be waited for
    except FileNotFoundError:
        raise InputError(f"there is no model {path}; make one with: ", make_one) from None
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None
    if not is_regular:
        raise InputError(f"cannot read {path}: it is not a regular file")
    with open_input(path) as file:
        return read_capped(file, str(path), max_bytes)


def read_header(file: IO[bytes], label: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the shape, whether the array is stored in Fortran order, and the dtype, which may be any."""
    formats = np.lib.format
    # Version 3 differs from 2 only in the encoding of field names, and structured dtypes are refused.
    newer = formats.read_array_header_2_0
    parsers = {(1, 0): formats.read_array_header_1_0, (2, 0): newer, (3, 0): newer}
    try:
        shape, fortran_order, dtype = parsers[formats.read_magic(file)](file)
    except Exception:  # NumPy's parser raises all kinds of exceptions for damaged headers
        raise _invalid_npy(label) from None
    if not all(type(extent) is int and extent >= 0 for extent in shape):  # NumPy takes (True, 2)
        raise _invalid_npy(label)
    return shape, fortran_order, dtype


def _cannot_read(source: str | Path, error: OSError | ValueError) -> InputError:
    """The error for a file that cannot be read; a ValueError says that its name is none of a file, such as
    one with a null character."""
    reason = error.strerror if isinstance(error, OSError) else None
    return InputError(f"cannot read {label_of(source)}: {reason or error}")


def _invalid_npy(label: str) -> InputError:
    return InputError(f"{label} is not a complete .npy array; write it with numpy.save(file, array)")
