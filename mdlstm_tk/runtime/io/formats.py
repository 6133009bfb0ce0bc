"""The kinds of file that `mdlstm infer` reads and writes: one file in, one file out.

Read: `.npy`, `.npz`, `.png`, `.jpg` and `.csv`. Written: npy, npz, json, png and csv. An image is
(H, W) if it is grey and (H, W, C) if it has C colour and alpha channels, scaled to [0, 1].
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
from mdlstm_tk.runtime.io.arrays import STDIO, check_numbers, load_array, reading, write_npy, writing
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, Array, read_capped, read_npz

Format = Literal["npy", "npz", "json", "png", "csv", "txt"]
FORMATS: tuple[Format, ...] = get_args(Format)
IMAGES = (".png", ".jpg", ".jpeg")
READABLE = (".npy", ".npz", *IMAGES, ".csv")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
CHANNELS = 4  # that an image may have
NAMED: tuple[Format, ...] = ("npz", "json")  # these hold several arrays, by name

# Of masks: colours that can be told apart, the first black, as it often stands for what is of no interest.
PALETTE = (
    b"\x00\x00\x00\xe6\x9f\x00\x56\xb4\xe9\x00\x9e\x73\xf0\xe4\x42\x00\x72\xb2\xd5\x5e\x00\xcc\x79\xa7"
    b"\x99\x99\x99\xff\xff\xff\x88\x22\x55\x44\xaa\x99"
)

Arrays: TypeAlias = dict[str | None, Array]
"""The arrays of one file, in order: by name for a `.npz`, else one under None."""


def suffix_of(path: str) -> str:
    """ ".npy" for A.NPY; "" where a path has no suffix, as a pipe has none."""
    return os.path.splitext(path)[1].lower()


def read_arrays(source: str, max_bytes: int = MAX_BYTES) -> Arrays:
    """The arrays in a file, or the `.npy` on standard input for "-". What has no suffix is a `.npy`.

    Args:
        source: where they are.
        max_bytes: that the file may take, and the arrays in it.

    Returns:
        Each float32, finite, with at least one element.

    Raises:
        InputError: there is no such file, it is of no kind that can be read, is damaged or takes more
            than `max_bytes`, or an array is not of real and finite numbers.
        MissingExtraError: it is an image, and Pillow is not installed.
    """
    suffix = suffix_of(source)
    if source == STDIO or suffix in ("", ".npy"):
        return {None: load_array(source, max_bytes)}
    if suffix not in READABLE:
        raise InputError(f"{source} is of no kind that can be read; those are {', '.join(READABLE)}")
    with reading(source) as file:
        if suffix == ".npz":
            arrays: Arrays = {
                name: check_numbers(array, f"{name!a} in {source}")
                for name, array in read_npz(file, source, max_bytes)
            }
            if not arrays:
                raise InputError(f"{source} holds no array")
            return arrays
        # A number takes two bytes in a table, and eight once it is parsed.
        data = read_capped(file, source, max_bytes // 4 if suffix == ".csv" else max_bytes)
    array = _read_csv(data, source) if suffix == ".csv" else _read_image(data, source, max_bytes)
    return {None: check_numbers(array, source)}


def write_arrays(target: str, arrays: Mapping[str | None, Array], form: Format) -> None:
    """Write results to a file, whole or not at all, or to standard output for "-".

    Raises:
        InputError: `form` cannot hold them.
        MDLSTMError: the file cannot be written.
        MissingExtraError: it is an image, and Pillow is not installed.
    """
    if form not in (*NAMED, "txt") and len(arrays) > 1:
        raise InputError(f"{form} holds one array, there are {len(arrays)}; use --format npz or json")
    encode = {"npy": _npy, "npz": _npz, "json": _json, "png": _png, "csv": _csv, "txt": _txt}[form]
    with writing(target) as file:
        encode(file, arrays)


def _read_csv(data: bytes, shown: str) -> Array:
    if not data.strip():
        raise InputError(f"{shown} is empty")
    lines = io.StringIO(data.decode("utf-8-sig", errors="replace"))
    try:
        return np.loadtxt(lines, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        reason = str(error).split("; use")[0].rstrip(".")
        raise InputError(
            f"{shown} is not a table of numbers with commas between them and no heading: {reason}"
        ) from None


def _read_image(data: bytes, shown: str, max_bytes: int) -> Array:
    png, jpeg = require("PIL.PngImagePlugin", "image"), require("PIL.JpegImagePlugin", "image")
    # Not PIL.Image.open, which warns of big images in its own way; the size is known before any pixel.
    kind = png.PngImageFile if data.startswith(PNG_MAGIC) else jpeg.JpegImageFile
    try:
        with kind(io.BytesIO(data)) as image:
            if image.width * image.height * CHANNELS * FLOAT_BYTES > max_bytes:
                raise InputError(
                    f"{shown} has {image.width}x{image.height} pixels, which take more than {max_bytes} "
                    "bytes; allow more with --max-bytes"
                )
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            elif image.mode in ("1", "CMYK"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            pixels = np.asarray(image)
    except InputError:
        raise
    except Exception:  # a damaged image ends in whatever Pillow's decoders raise
        raise InputError(f"{shown} is not a complete PNG or JPEG image") from None
    return pixels / np.float32(np.iinfo(pixels.dtype).max)


def _npy(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    (array,) = arrays.values()
    write_npy(file, array)


def _npz(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    # Not numpy.savez, which takes names as keywords: one called "file" would be an error.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{'y' if name is None else name}.npy")  # of 1980: no clock in results
            with archive.open(member, "w", force_zip64=True) as packed:
                write_npy(packed, array)


def _json(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    values = {name: _finite(array, "json").tolist() for name, array in arrays.items()}
    file.write(json.dumps(values.get(None, values)).encode() + b"\n")


def _png(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    (array,) = arrays.values()
    if array.dtype == np.uint8 and array.ndim == 2:  # a mask: its numbers, with a colour for each
        image = require("PIL.Image", "image").fromarray(array)
        image.putpalette(PALETTE)
        image.save(file, "PNG")
        return
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise InputError(f"png holds (H, W) or (H, W, 3), the result is {array.shape}; use --format npy")
    bytes_ = np.rint(_finite(array, "png").clip(0, 1) * 255).astype(np.uint8)
    require("PIL.Image", "image").fromarray(bytes_).save(file, "PNG")


def _csv(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    (array,) = arrays.values()
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 2:
        raise InputError(f"csv holds (H, W), the result is {array.shape}; use --format npy, npz or json")
    np.savetxt(file, np.atleast_2d(array), fmt="%.9g", delimiter=",")  # nine digits tell float32 apart


def _txt(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    for name, texts in arrays.items():
        if texts.dtype.kind != "U":
            raise InputError("txt holds labels and texts, the result is numbers; use --format npy or csv")
        for text in texts.tolist():
            file.write((text if name is None else f"{name}\t{text}").encode() + b"\n")


def _finite(array: Array, form: str) -> Array:
    if not np.isfinite(array).all():
        raise InputError(f"the result holds NaN or infinity, which {form} cannot; use --format npy")
    return array
