"""Decoding of a user's images and masks (Pillow)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.data.spec import Array
from mdlstm_tk.errors import require
from mdlstm_tk.sizes import format_size

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")


class UnusableSampleError(Exception):
    """A sample cannot be used; the message is the reason."""


def find_images(folder: Path) -> list[Path]:
    """Return all images in a folder and its subfolders, sorted."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def read_image(file: Path, grey: bool) -> Array:
    """Read an image as uint8 (H, W, 1) or (H, W, 3), or as float32 in [0, 1] if it has more than 8 bits.

    Args:
        file: the image.
        grey: convert colours to grey.

    Raises:
        UnusableSampleError: there is no such file, or it is not an image.
    """
    image = _open(file)
    if image.mode.startswith(("I", "F")):
        return np.asarray(image, dtype=np.float32)[..., None] / 65535
    has_no_colour = image.mode in ("1", "L", "LA")
    array = np.asarray(image.convert("L" if has_no_colour or grey else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def read_mask(file: Path | None, extents: tuple[int, ...]) -> Array:
    """Read the class values (H, W) of a mask.

    Args:
        file: the mask, or None if the image has none.
        extents: (H, W) of the image.

    Raises:
        UnusableSampleError: there is no mask, or it does not fit the image.
    """
    if file is None:
        raise UnusableSampleError("it has no mask of the same name")
    image = _open(file)
    mask = np.asarray(image)
    if mask.ndim != 2:
        raise UnusableSampleError(
            f"its mask has mode {image.mode}, expected one channel that holds the class values"
        )
    if mask.shape != extents:
        raise UnusableSampleError(
            f"its mask is {format_size(mask.shape)}, but the image is {format_size(extents)}"
        )
    return mask


def _open(file: Path) -> Any:
    """Return the decoded Pillow image."""
    module = require("PIL.Image", "data")
    try:
        with module.open(file) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UnusableSampleError("there is no such file") from None
    except (OSError, ValueError, SyntaxError, module.DecompressionBombError) as error:
        raise UnusableSampleError(f"it cannot be read as an image ({error})") from None
