"""The random numbers and the given part of an image that a density model draws."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.readers import read_input


class Given(NamedTuple):
    """The part of an image that is not drawn: `values` (H, W, C) float32 in [0, 1], any number or NaN where
    the image is drawn; and `mask` (H, W), True where they hold. A position is drawn if one of its channels
    is NaN."""

    values: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]


def uniform_numbers(seed: int, n: int, size: tuple[int, int], channels: int) -> npt.NDArray[np.float32]:
    """The numbers (n, H, W, C) in [0, 1) that decide n images; image k is the same for any n above k."""
    return np.random.default_rng(seed).random((n, *size, channels), dtype=np.float32)


def read_given(path: Path, size: tuple[int, int], channels: int) -> Given:
    """Read what is given of an image.

    Args:
        path: an image, or a .npy file (h, W) or (h, W, C) with values in [0, 1]. With h below H it is the
            upper rows. In a .npy file, NaN marks values that are to be drawn.
        size: (H, W) of the image to draw.
        channels: C.

    Raises:
        InputError: the file cannot be read, or does not fit.
    """
    file = read_input(str(path))
    values = next(iter(file.arrays.values()))
    if file.is_image:
        from mdlstm_tk.runtime.preprocessing import Preprocessing  # imported late: few calls give an image

        values = Preprocessing(3 if channels == 3 else 1)(values)
    values = values.astype(np.float32)
    values = values[..., None] if values.ndim == 2 else values
    fits = values.ndim == 3 and values.shape[1:] == (size[1], channels) and 1 <= len(values) <= size[0]
    if not fits:
        raise InputError(
            f"{path} has shape {values.shape}, expected up to {counted(size[0], 'row')} of "
            f"{counted(size[1], 'position')} and {counted(channels, 'channel')}, as the images are "
            f"{size[0]}x{size[1]}"
        )
    is_given = ~np.isnan(values).any(-1)
    if not is_given.any() or not (0 <= values[is_given].min() <= values[is_given].max() <= 1):
        raise InputError(f"{path} must hold values from 0 to 1, and NaN where they are to be drawn")
    full, mask = np.zeros((*size, channels), np.float32), np.zeros(size, bool)
    mask[: len(values)] = is_given
    full[mask] = values[is_given]
    return Given(full, mask)
