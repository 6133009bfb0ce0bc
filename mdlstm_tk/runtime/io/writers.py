"""Write the results of `mdlstm infer` as npy, npz, json, png, csv or txt.

`mdlstm_tk.runtime.tiles.outputs` writes results of tiled models by region, also as tif and zarr.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np

from mdlstm_tk._util.text import to_json
from mdlstm_tk.errors import Argument, InputError, Message, require
from mdlstm_tk.kinds.kind import RANGE_TOLERANCE
from mdlstm_tk.runtime.io import Format
from mdlstm_tk.runtime.io.npy import Array, check_real, open_output, write_npy


def write_arrays(
    target: str, arrays: Mapping[str | None, Array], file_format: Format, *, replace: bool = True
) -> None:
    """Write arrays of real numbers to a file or to "-", see `open_output`."""
    for array in arrays.values():
        check_real(array.dtype, "the result")
    if file_format not in ("npz", "json") and len(arrays) > 1:
        raise InputError(
            f"{file_format} holds one array, but the result has {len(arrays)}",
            _given("npz"),
        )
    writers = {"npy": write_npy, "png": _write_png, "csv": _write_csv}
    with open_output(target, replace=replace) as file:
        if file_format == "npz":
            _write_npz(file, arrays)
        elif file_format == "json":
            values = {name: _finite(array, "json").tolist() for name, array in arrays.items()}
            file.write(to_json(values.get(None, values)).encode() + b"\n")
        else:
            writers[file_format](file, *arrays.values())
    for y in arrays.values() if file_format == "png" else ():
        low, high = float(y.min()), float(y.max())
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            text = f"{target} holds values in [0, 1], but those of the result are from {low:.3g} to "
            warnings.warn(Message(f"{text}{high:.3g}, and were cut", _given("npy")), stacklevel=2)


def write_mask(
    target: str, mask: Array, values: Sequence[int], palette: Sequence[int] | None, *, replace: bool = True
) -> None:
    """Write a mask (H, W) or (1, H, W) as PNG: with 8 bits if all values fit, else with 16.

    Args:
        values: all values that masks may have, in the order of the classes.
        palette: red, green and blue of each class in turn; None: the mask is grey.
        replace: the file may exist.
    """
    mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if mask.ndim != 2:
        raise InputError(
            f"png holds one mask (H, W), but the result has shape {mask.shape}",
            _given("json"),
        )
    if not 0 <= min(values) <= max(values) <= np.iinfo(np.uint16).max:
        raise InputError(
            f"png holds values from 0 to 65535, but the classes of these masks have values from "
            f"{min(values)} to {max(values)}",
            _given("json"),
        )
    is_8_bit = max(values) <= np.iinfo(np.uint8).max
    image = require("PIL.Image", "image").fromarray(mask.astype(np.uint8 if is_8_bit else np.uint16))
    if palette is not None and is_8_bit:
        colours = np.zeros((max(values) + 1, 3), np.uint8)
        colours[list(values)] = np.asarray(palette).reshape(-1, 3)
        image.putpalette(colours.tobytes())
    with open_output(target, replace=replace) as file:
        image.save(file, "PNG")


def _write_npz(file: IO[bytes], arrays: Mapping[str | None, Array]) -> None:
    # numpy.savez takes names as keywords and fails for an array called "file".
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # ZipInfo dates the member 1980, so that equal results are equal files.
            member = zipfile.ZipInfo(f"{'y' if name is None else name}.npy")
            with archive.open(member, "w", force_zip64=True) as packed:
                write_npy(packed, array)


def _write_png(file: IO[bytes], array: Array) -> None:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise InputError(
            f"png holds (H, W) or (H, W, 3), but the result has shape {array.shape}",
            _given("npy"),
        )
    pixels = np.rint(_finite(array, "png").clip(0, 1) * 255.0).astype(np.uint8)
    require("PIL.Image", "image").fromarray(pixels).save(file, "PNG")


def _write_csv(file: IO[bytes], array: Array) -> None:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 2:
        raise InputError(
            f"csv holds (H, W), but the result has shape {array.shape}",
            _given("npy"),
        )
    digits = "%d" if array.dtype.kind in "iu" else "%.9g"  # 9 digits identify a float32
    np.savetxt(file, np.atleast_2d(array), fmt=digits, delimiter=",")


def _given(file_format: Format) -> Message:
    return Message("; give ", Argument("output_format", file_format))


def _finite(array: Array, file_format: str) -> Array:
    if not np.isfinite(array).all():
        raise InputError(
            f"the result holds NaN or infinity, which {file_format} cannot store",
            _given("npy"),
        )
    return array
