"""Write the results of `mdlstm infer` as npy, npz, json, png, csv or txt."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from typing import IO, Literal, get_args

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.arrays import open_output, write_npy
from mdlstm_tk.runtime.io.npy import Array

Format = Literal["npy", "npz", "json", "png", "csv", "txt"]
FORMATS: tuple[Format, ...] = get_args(Format)
MULTI_ARRAY_FORMATS: tuple[Format, ...] = ("npz", "json", "txt")

# Colours of the classes in a mask: easy to tell apart; class 0 is black, as it is often the background.
PALETTE = (
    b"\x00\x00\x00\xe6\x9f\x00\x56\xb4\xe9\x00\x9e\x73\xf0\xe4\x42\x00\x72\xb2\xd5\x5e\x00\xcc\x79\xa7"
    b"\x99\x99\x99\xff\xff\xff\x88\x22\x55\x44\xaa\x99"
)


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
