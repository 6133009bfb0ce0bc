"""Read and write the file formats of `mdlstm infer`: one input file gives one result.

Inputs are `.npy`, `.npz`, `.png`, `.jpg` and `.csv`; results are npy, npz, json, png, csv and txt. A grey
image is read as (H, W), any other as (H, W, C) with its colour and alpha channels, scaled to [0, 1].
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import IO, Literal, TypeAlias, get_args

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.arrays import STDIO, load_array, open_input, open_output, to_float32, write_npy
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, Array, read_capped, read_npz

Format = Literal["npy", "npz", "json", "png", "csv", "txt"]
FORMATS: tuple[Format, ...] = get_args(Format)
IMAGES = (".png", ".jpg", ".jpeg")
READABLE = (".npy", ".npz", *IMAGES, ".csv")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_CHANNELS = 4  # RGBA
MULTI_ARRAY_FORMATS: tuple[Format, ...] = ("npz", "json", "txt")

# Colours of the classes in a mask: easy to tell apart; class 0 is black, as it is often the background.
PALETTE = (
    b"\x00\x00\x00\xe6\x9f\x00\x56\xb4\xe9\x00\x9e\x73\xf0\xe4\x42\x00\x72\xb2\xd5\x5e\x00\xcc\x79\xa7"
    b"\x99\x99\x99\xff\xff\xff\x88\x22\x55\x44\xaa\x99"
)

Arrays: TypeAlias = dict[str | None, Array]
"""The arrays of one file in order: by name for a `.npz`, else a single one under None."""


def suffix_of(path: str) -> str:
    """The suffix of a path in lower case: ".npy" for A.NPY, "" for a path without one, such as a pipe."""
    return os.path.splitext(path)[1].lower()


def read_arrays(source: str, max_bytes: int = MAX_BYTES) -> Arrays:
    """Read the arrays in a file.

    Args:
        source: path of the file; "-" is a `.npy` on standard input. A file without a suffix is taken for
            a `.npy`.
        max_bytes: maximum size in bytes of the file, and of the arrays in it.

    Returns:
        The arrays as float32: finite, with at least one element.

    Raises:
        InputError: the file does not exist, has an unsupported type, is damaged or too large, or holds
            other than finite real numbers.
        MissingExtraError: the file is an image, and Pillow is not installed.
    """
    suffix = suffix_of(source)
    if source == STDIO or suffix in ("", ".npy"):
        return {None: load_array(source, max_bytes)}
    if suffix not in READABLE:
        raise InputError(
            f"unsupported file type '{suffix}' of {source}; expected one of {', '.join(READABLE)}"
        )
    with open_input(source) as file:
        if suffix == ".npz":
            arrays: Arrays = {
                name: to_float32(array, f"{name!a} in {source}")
                for name, array in read_npz(file, source, max_bytes)
            }
            if not arrays:
                raise InputError(f"{source} holds no array")
            return arrays
        # A number of a table takes at least two bytes as text, and eight once it is parsed.
        data = read_capped(file, source, max_bytes // 4 if suffix == ".csv" else max_bytes)
    array = _read_csv(data, source) if suffix == ".csv" else _read_image(data, source, max_bytes)
    return {None: to_float32(array, source)}


def write_arrays(target: str, arrays: Mapping[str | None, Array], file_format: Format) -> None:
    """Write arrays to a file, whole or not at all.

    Args:
        target: path of the file, or "-" for standard output.
        arrays: numbers, or texts for "txt".
        file_format: the format of the file.

    Raises:
        InputError: the format cannot hold the arrays.
        MDLSTMError: the file cannot be written.
        MissingExtraError: the format is png, and Pillow is not installed.
    """
    if file_format not in MULTI_ARRAY_FORMATS and len(arrays) > 1:
        raise InputError(
            f"{file_format} holds one array, but the result has {len(arrays)}; use --format npz or json"
        )
    encode = {
        "npy": _write_npy,
        "npz": _write_npz,
        "json": _write_json,
        "png": _write_png,
        "csv": _write_csv,
        "txt": _write_txt,
    }[file_format]
    with open_output(target) as file:
        encode(file, arrays)


def _read_csv(data: bytes, label: str) -> Array:
    if not data.strip():
        raise InputError(f"{label} is empty")
    lines = io.StringIO(data.decode("utf-8-sig", errors="replace"))
    try:
        return np.loadtxt(lines, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        reason = str(error).split("; use")[0].rstrip(".")
        raise InputError(
            f"{label} is not a table of comma-separated numbers without a heading: {reason}"
        ) from None


def _read_image(data: bytes, label: str, max_bytes: int) -> Array:
    png, jpeg = require("PIL.PngImagePlugin", "image"), require("PIL.JpegImagePlugin", "image")
    # PIL.Image.open would try other formats, and print warnings about large images. The size is known
    # before any pixel is decoded.
    image_class = png.PngImageFile if data.startswith(PNG_MAGIC) else jpeg.JpegImageFile
    try:
        with image_class(io.BytesIO(data)) as image:
            if image.width * image.height * MAX_CHANNELS * FLOAT_BYTES > max_bytes:
                raise InputError(
                    f"{label} has {image.width}x{image.height} pixels, which take more than "
                    f"{max_bytes} bytes; allow more with --max-bytes"
                )
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            elif image.mode in ("1", "CMYK"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            pixels = np.asarray(image)
    except InputError:
        raise
    except Exception:  # Pillow's decoders raise all kinds of exceptions for damaged images
        raise InputError(f"{label} is not a complete PNG or JPEG image") from None
    return pixels / np.float32(np.iinfo(pixels.dtype).max)


def _write_npy(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    (array,) = arrays.values()
    write_npy(file, array)


def _write_npz(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    # numpy.savez takes names as keywords and fails for an array called "file".
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # ZipInfo dates the member 1980, so that equal results are equal files.
            member = zipfile.ZipInfo(f"{'y' if name is None else name}.npy")
            with archive.open(member, "w", force_zip64=True) as packed:
                write_npy(packed, array)


def _write_json(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    values = {name: _finite(array, "json").tolist() for name, array in arrays.items()}
    file.write(json.dumps(values.get(None, values)).encode() + b"\n")


def _write_png(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    (array,) = arrays.values()
    if array.dtype == np.uint8 and array.ndim == 2:  # a mask of class indices
        image = require("PIL.Image", "image").fromarray(array)
        image.putpalette(PALETTE)
        image.save(file, "PNG")
        return
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise InputError(
            f"png holds (H, W) or (H, W, 3), but the result has shape {array.shape}; use --format npy"
        )
    pixels = np.rint(_finite(array, "png").clip(0, 1) * 255).astype(np.uint8)
    require("PIL.Image", "image").fromarray(pixels).save(file, "PNG")


def _write_csv(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    (array,) = arrays.values()
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 2:
        raise InputError(
            f"csv holds (H, W), but the result has shape {array.shape}; use --format npy, npz or json"
        )
    np.savetxt(file, np.atleast_2d(array), fmt="%.9g", delimiter=",")  # 9 digits identify a float32


def _write_txt(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    for name, texts in arrays.items():
        if texts.dtype.kind != "U":
            raise InputError(
                "txt holds labels and texts, but the result is numbers; use --format npy or csv"
            )
        for text in texts.tolist():
            file.write((text if name is None else f"{name}\t{text}").encode() + b"\n")


def _finite(array: Array, file_format: str) -> Array:
    if not np.isfinite(array).all():
        raise InputError(
            f"the result holds NaN or infinity, which {file_format} cannot store; use --format npy"
        )
    return array
