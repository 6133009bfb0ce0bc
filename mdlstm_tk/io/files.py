"""Find files, read arrays and images, and write results: whole or not at all.

A file that is not finished lies beside its destination under a hidden name that ends in `.mdlstm-tmp`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.io import IMAGE_SUFFIXES, READABLE, STDIO, Array

MAGIC = {b"\x93NUMPY": ".npy", b"PK": ".npz"}
NUMBER = b"0123456789-+. \t\xef"  # a table begins with one of these, the last of which is that of a BOM
TEMPORARY_SUFFIX = ".mdlstm-tmp"


class InputFile(NamedTuple):
    """The content of a file: its arrays as they are stored, by name in an `.npz`, else one under None; or
    the pixels of an image, as `decode_image` returns them."""

    arrays: dict[str | None, Array]
    is_image: bool


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The suffix of a path in lower case."""
    return os.path.splitext(path)[1].lower()


def is_result(path: str | os.PathLike[str]) -> bool:
    """True for a result of `mdlstm infer`, which training and inference do not find: x.out.npy."""
    return suffix_of(os.path.splitext(path)[0]) == ".out"


def find_files(inputs: Sequence[str], suffixes: Sequence[str] = READABLE) -> list[tuple[str, str]]:
    """The files that are named and, of folders, those with one of the suffixes below them: the path of
    each, and the path below the folder. Hidden files and results (*.out.*) are left out."""
    found: list[tuple[str, str]] = []
    for name in inputs:
        if not os.path.isdir(name) or suffix_of(name.rstrip(os.sep)) == ".zarr":
            found.append((name, os.path.basename(name.rstrip(os.sep))))
            continue
        seen: set[str] = set()
        for folder, folders, files in os.walk(name, onerror=_refuse, followlinks=True):
            visible = [each for each in folders if not each.startswith(".")]
            arrays = [each for each in visible if suffix_of(each) == ".zarr"]
            is_known = os.path.realpath(folder) in seen  # by a link to a folder above
            seen.add(os.path.realpath(folder))
            folders[:] = [] if is_known else sorted({*visible} - {*arrays})
            for file in [] if is_known else sorted([*files, *arrays]):
                path = os.path.join(folder, file)
                is_one = os.path.isfile(path) or file in arrays  # a pipe would wait for ever
                if is_one and suffix_of(file) in suffixes and not (file.startswith(".") or is_result(file)):
                    found.append((path, os.path.relpath(path, name)))
    if not found:
        raise InputError(f"no input file in {', '.join(inputs)}; expected {', '.join(suffixes)}")
    return found


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}")


def read_bytes(source: str | Path) -> bytes:
    """The content of a file, or of standard input."""
    try:
        return sys.stdin.buffer.read() if source == STDIO else Path(source).read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {source}") from None
    except (OSError, ValueError) as error:  # of a name with a null character
        raise InputError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from None


def read_file(source: str | Path) -> InputFile:
    """Read an array, arrays or an image. What the suffix does not tell, the content does."""
    label = "standard input" if source == STDIO else str(source)
    data, suffix = read_bytes(source), suffix_of(source)
    if suffix not in READABLE:
        begins = (kind for magic, kind in MAGIC.items() if data.startswith(magic))
        suffix = next(begins, ".csv" if data[:1].strip(NUMBER) == b"" else ".png")
    if suffix in IMAGE_SUFFIXES:
        from mdlstm_tk.io.images import decode_image  # imported late: arrays do without

        return InputFile({None: decode_image(data, label)}, is_image=True)
    try:
        if suffix == ".csv":
            return InputFile({None: _read_csv(data.decode("utf-8-sig").rstrip())}, is_image=False)
        loaded: Any = np.load(io.BytesIO(data), allow_pickle=False)
        members = loaded.items() if suffix == ".npz" else [(None, loaded)]
        arrays = {name: np.asarray(array) for name, array in members}  # others are bytes
    except MemoryError:
        raise InputError(f"{label} declares an array that is too large for the memory") from None
    except Exception as error:  # NumPy and zipfile raise all kinds of exceptions for damaged files
        reason = str(error) or type(error).__name__
        raise InputError(f"{label} cannot be read as {suffix}: {reason}") from None
    if not arrays:
        raise InputError(f"{label} holds no array")
    return InputFile(arrays, is_image=False)


def _read_csv(text: str) -> Array:
    table = np.loadtxt(io.StringIO(text), delimiter=",", comments=None, ndmin=2)
    if len(table) != max(1, len(text.splitlines())):
        raise ValueError("it has an empty row")  # which NumPy would leave out
    return table


def check_free(path: str | Path, force: bool) -> None:
    """Refuse to write a file that is a folder, or that exists without `force`."""
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "zarr.json")):
        raise InputError(f"{path} is a folder, expected a file name")
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path} is a device or a pipe, expected a file name; - is standard output")
    if os.path.exists(path) and not force:
        raise InputError(f"{path} exists; give another path, or replace it with force=True (--force)")


@contextmanager
def open_output(target: str | Path, force: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that appears whole or not at all; "-" is standard output. Missing folders are made. Of a
    link, the file that it leads to is written, and a file that is replaced keeps its permissions."""
    if target == STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(os.path.realpath(target))
    temporary = path.with_name(f".{path.name[:50]}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")
    try:
        check_free(path, force)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if path.exists():  # before anything that others may not read is in it
                os.chmod(temporary, path.stat().st_mode)
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise MDLSTMError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # it has become `path`, or was never made
            temporary.unlink()


def write_arrays(
    file: IO[bytes],
    arrays: Mapping[str | None, Array],
    form: str,
    values: Sequence[int] | None = None,
    palette: Sequence[int] | None = None,
) -> None:
    """Write arrays by name, a single one perhaps under None, as npy, npz, json, csv or png. Of masks, the
    value of each class is given, and red, green and blue of each class in turn."""
    first = next(iter(arrays.values()))
    if form in ("json", "png") and not all(np.isfinite(y).all() for y in arrays.values()):
        raise InputError(f"{form} holds no NaN or infinity, which the result has; use --format npy")
    if form == "npz":
        # Not numpy.savez, which dates its members: equal results are equal files.
        with zipfile.ZipFile(file, "w") as archive:
            for name, y in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name or 'y'}.npy"), "w", force_zip64=True) as member:
                    _write_npy(member, y)
    elif form == "json":
        lists = {name: y.tolist() for name, y in arrays.items()}
        file.write(json.dumps(lists.get(None, lists)).encode() + b"\n")
    elif len(arrays) > 1:
        raise InputError(f"{form} holds one array, but the result has {len(arrays)}; use --format npz")
    elif form == "npy":
        _write_npy(file, first)
    elif form == "csv":
        y = first[..., 0] if first.ndim == 3 and first.shape[-1] == 1 else first
        if y.ndim > 2:
            raise InputError(f"csv holds (H, W), but the result has shape {y.shape}; use --format npy")
        digits = "%d" if y.dtype.kind in "iu" else "%.9g"  # 9 digits identify a float32
        np.savetxt(file, np.atleast_2d(y), fmt=digits, delimiter=",")
    else:
        _write_png(file, first, values, palette)


def _write_npy(file: IO[bytes], y: Array) -> None:
    y = np.asarray(y, order="C")
    header = {"descr": y.dtype.str, "fortran_order": False, "shape": y.shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(y.data)  # numpy.save does not notice a full disk


def _write_png(
    file: IO[bytes], y: Array, values: Sequence[int] | None, palette: Sequence[int] | None
) -> None:
    """Write a mask of integers with its palette, or numbers in [0, 1] as 8 bits."""
    y = y[..., 0] if y.ndim == 3 and y.shape[-1] == 1 else y
    if not (y.ndim == 2 or (y.ndim == 3 and y.shape[-1] == 3)):
        raise InputError(f"png holds (H, W) or (H, W, 3), the result has shape {y.shape}; use --format npy")
    low, high = float(y.min()), float(y.max())
    if y.dtype.kind == "f":
        if low < -1e-3 or high > 1 + 1e-3:
            raise InputError(f"png holds [0, 1], the result is in [{low:g}, {high:g}]; use --format npy")
        y, values = np.rint(y.clip(0, 1) * 255), None
    most = max(values or [int(y.max())])
    if low < 0 or most > 65535:
        raise InputError("png holds values from 0 to 65535; use --format npy")
    image = require("PIL.Image", "image").fromarray(y.astype(np.uint8 if most < 256 else np.uint16))
    if palette and image.mode == "L":
        image.putpalette(palette_of(values, palette).astype(np.uint8).tobytes())
    image.save(file, "PNG")


def palette_of(values: Sequence[int] | None, palette: Sequence[int]) -> Array:
    """The colours (256, 3) of the pixels of masks; see `write_arrays`."""
    colours = np.zeros((256, 3), np.uint16)
    colours[list(values or range(len(palette) // 3))] = np.reshape(palette, (-1, 3))
    return colours
