"""Reading of a user's images: finding the files, decoding them, and what can be said about the pixels."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from mdlstm_tk._util.regular_files import read_bytes
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.data_folder import DataFolder
from mdlstm_tk.data.spec import Array, UnusableSampleError
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io import IMAGE_SUFFIXES
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.preprocessing import decode_image

Extents = tuple[int, int]


def find_images(data: DataFolder, folder: Path) -> list[Path]:
    """Return all images below a folder of the data, sorted, without hidden files."""
    return [file for file in data.files(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def count_other_files(data: DataFolder, folder: Path) -> Counter[str]:
    """Count the visible files below a folder that have another suffix than images, by suffix."""
    others = (file.suffix.lower() for file in data.files(folder))
    return Counter(suffix for suffix in others if suffix not in (*IMAGE_SUFFIXES, ".txt", ".tsv"))


def read_pixels(file: Path) -> Array:
    """Decode an image as `decode_image` does.

    Raises:
        UnusableSampleError: there is no such file, or it is not an image.
        MissingExtraError: Pillow is not installed.
    """
    if not os.path.exists(file):
        raise UnusableSampleError("there is no such file")
    try:
        return decode_image(read_bytes(file, MAX_BYTES), "it")
    except InputError as error:
        raise UnusableSampleError(str(error)) from None


def is_grey(pixels: Array) -> bool:
    """Whether a decoded image is grey at every pixel, whatever its format says."""
    if pixels.ndim == 2:
        return True
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return np.array_equal(red, green) and np.array_equal(red, blue)


def check_extents(target: str, extents: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Check that a mask or target image has the extents of its image.

    Raises:
        UnusableSampleError: it has others.
    """
    if extents != image:
        raise UnusableSampleError(
            f"its {target} is {format_size(extents)}, but the image is {format_size(image)}"
        )


def resize_nearest(mask: Array, extents: Extents | None) -> Array:
    """Resize a mask (H, W) to new extents; each new position takes the value at its centre."""
    if extents is None or mask.shape == extents:
        return mask
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, extents, strict=True)
    )
    return mask[np.ix_(rows, columns)]
