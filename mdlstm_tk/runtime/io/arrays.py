"""Reading and writing arrays: never a pickle, and never a number that no model can use."""

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


def name_of(source: str | Path) -> str:
    """What messages call a file, or "-"."""
    return "standard input" if source == STDIO else str(source)


@contextmanager
def reading(source: str | Path) -> Iterator[IO[bytes]]:
    """A file to read from: `source`, or standard input for "-".

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    try:
        with nullcontext(sys.stdin.buffer) if source == STDIO else open(source, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"there is no file {source}") from None
    except OSError as error:
        raise InputError(f"cannot read {name_of(source)}: {error.strerror or error}") from None


def load_array(source: str | Path, max_bytes: int = MAX_BYTES) -> Array:
    """The array in a `.npy` file, or on standard input for "-".

    Args:
        source: where it is.
        max_bytes: that it may take, as it is stored and as float32.

    Returns:
        float32, finite, with at least one element.

    Raises:
        InputError: there is no such file, it is no `.npy` array of real numbers, it declares more than
            `max_bytes`, or it holds NaN or infinity or nothing.
    """
    with reading(source) as file:
        return check_numbers(read_npy(file, name_of(source), max_bytes), name_of(source))


def check_numbers(array: Array, shown: str) -> Array:
    """`array` as float32.

    Raises:
        InputError: it is not real numbers, is empty, or holds NaN or infinity (also what overflows).
    """
    if array.dtype.kind not in "buif":
        raise InputError(f"{shown} holds {array.dtype}, expected real numbers (float, integer or bool)")
    if array.size == 0:
        raise InputError(f"{shown} is empty: its shape is {array.shape}")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    bad = int(np.size(numbers) - np.isfinite(numbers).sum())
    if bad:
        raise InputError(f"{shown} holds {bad} NaN or infinite values; replace them, e.g. numpy.nan_to_num")
    return numbers


@contextmanager
def writing(target: str | Path) -> Iterator[IO[bytes]]:
    """A file to write into: `target`, which appears whole or not at all, or standard output for "-".

    Raises:
        MDLSTMError: the file cannot be written.
    """
    if target == STDIO:
        buffer = io.BytesIO()
        yield buffer
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()
        return
    # Not "wb": of a file that was truncated, ext4 writes all to disk as soon as it is closed.
    with atomic_write(Path(target)) as temporary, open(temporary, "r+b") as file:
        yield file


def save_array(target: str | Path, array: Array) -> None:
    """Write `array` as `.npy` to a file, whole or not at all, or to standard output for "-".

    Raises:
        MDLSTMError: the file cannot be written.
    """
    with writing(target) as file:
        write_npy(file, array)


def write_npy(file: IO[bytes], array: Array) -> None:
    """Write what numpy.save writes for an array of numbers, in half its time for a small one."""
    array = np.asarray(array, order="C")
    file.write(_npy_header(array.shape, array.dtype.str))
    file.write(array.data)


@lru_cache
def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()
