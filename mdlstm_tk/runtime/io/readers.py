"""Read the files that `mdlstm infer` takes: `.npy`, `.npz`, images and `.csv`.

A grey image is read as (H, W), any other as (H, W, C) with its colour and alpha channels, scaled to [0, 1].
"""

from __future__ import annotations

import io
import os
from typing import TypeAlias

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.arrays import STDIO, load_array, open_input, to_float32
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, Array, read_capped, read_npz

IMAGES = (".png", ".jpg", ".jpeg")
READABLE = (".npy", ".npz", *IMAGES, ".csv")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_CHANNELS = 4  # RGBA

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
