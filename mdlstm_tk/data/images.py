"""Reading of a user's image files, and properties of their pixels."""

from __future__ import annotations

import os.path
import unicodedata
from pathlib import Path

import numpy as np

from mdlstm_tk.data.spec import Array
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import decode_image


def read_pixels(file: Path, label: str = "it") -> Array:
    """Decode an image as `decode_image` does.

    Raises:
        InputError: there is no such file, or it is not an image.
        MissingExtraError: Pillow is not installed.
    """
    return decode_image(read_file(file), label)


def read_file(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if is_broken_link(file):
        raise InputError("it is a link to a file that is not there")
    if not os.path.isfile(file):  # `Path.is_file` raises OSError for a name that is too long
        forms = (unicodedata.normalize(form, str(file)) for form in ("NFC", "NFD"))
        is_known = any(map(os.path.isfile, forms))
        hint = (
            ", but one whose name has its accents in another Unicode form (NFC or NFD)" if is_known else ""
        )
        raise InputError(f"there is no such file{hint}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}") from None


def is_broken_link(file: Path) -> bool:
    """Return True if a file is a symbolic link to nothing, such as git-annex and DVC leave behind."""
    return os.path.islink(file) and not os.path.exists(file)


def is_grey(pixels: Array) -> bool:
    """Return True if a decoded image is grey at every pixel, even if it is stored as RGB."""
    if pixels.ndim == 2:
        return True
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return np.array_equal(red, green) and np.array_equal(red, blue)


def resize_nearest(mask: Array, extents: tuple[int, int]) -> Array:
    """Resize a mask (H, W) to new extents; each new position takes the value at its centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, extents, strict=True)
    )
    return mask[np.ix_(rows, columns)]
