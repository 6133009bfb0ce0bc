"""Read and write arrays as `.npy`, from files and standard streams, without ever unpickling."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.runtime.io.npy import MAX_BYTES, Array, read_npy

STDIO = "-"


@contextmanager
def open_input(source: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; "-" is standard input.

    Raises:
        InputError: the file does not exist, or cannot be opened or read.
    """
    try:
        with nullcontext(sys.stdin.buffer) if source == STDIO else open(source, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"there is no file {source}") from None
    except OSError as error:
        raise InputError(f"cannot read {label_of(source)}: {error.strerror or error}") from None


@contextmanager
def open_output(target: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that appears whole or not at all; "-" is standard output.

    Raises:
        MDLSTMError: the file cannot be written.
    """
    if target == STDIO:
        buffer = io.BytesIO()
        yield buffer
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()
        return
    with atomic_write(Path(target)) as temporary, open(temporary, "wb") as file:
        yield file


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
        return to_float32(read_npy(file, label_of(source), max_bytes), label_of(source))


def save_array(target: str | Path, array: Array) -> None:
    """Write a `.npy` file, whole or not at all.

        >>> save_array("prediction.npy", y)

    Args:
        target: path of the file, or "-" for standard output.
        array: real numbers of any shape.

    Raises:
        MDLSTMError: the file cannot be written.
    """
    with open_output(target) as file:
        write_npy(file, array)


def to_float32(array: Array, label: str) -> Array:
    """Convert an array to float32.

    Args:
        array: real numbers of any shape.
        label: what error messages call it.

    Raises:
        InputError: the array is not of real numbers, is empty, or holds NaN, infinity or values that
            float32 cannot hold.
    """
    if array.dtype.kind not in "buif":
        raise InputError(f"{label} holds {array.dtype}, expected real numbers (float, integer or bool)")
    if array.size == 0:
        raise InputError(f"{label} is empty: its shape is {array.shape}")
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    finite = np.isfinite(converted)
    if not finite.all():
        if np.isfinite(array).all():
            largest = float(np.abs(array.astype(np.float64)).max())
            raise InputError(
                f"{label} holds values up to {largest:.3g}, which float32 cannot hold; scale them to at "
                "most 3e38"
            )
        invalid = finite.size - np.count_nonzero(finite)
        raise InputError(
            f"{label} holds {invalid} NaN or infinite values; replace them, e.g. with numpy.nan_to_num"
        )
    return converted


def write_npy(file: IO[bytes], array: Array) -> None:
    """Write the bytes that numpy.save writes, in half its time for small arrays of numbers.

    Raises:
        InputError: the array holds something else, such as objects, whose bytes are addresses in memory.
    """
    array = np.asarray(array, order="C")
    if array.dtype.kind not in "buif":
        raise InputError(f"cannot write an array of {array.dtype}, expected real numbers")
    file.write(_npy_header(array.shape, array.dtype.str))
    file.write(array.data)


@lru_cache
def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def label_of(source: str | Path) -> str:
    """What error messages call a file, or "-"."""
    return "standard input" if source == STDIO else str(source)
