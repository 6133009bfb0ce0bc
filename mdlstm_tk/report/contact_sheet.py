"""Pictures of many images: a contact sheet, and an animation of the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.runtime.io.npy import Array, save_array

OUTPUT_SUFFIXES = (".png", ".gif", ".npy")
IMAGE_PIXELS = 56  # of the longer side of the picture of an image, about
GAP_PIXELS = 4  # between two images
BACKGROUND = (127, 137, 156)  # between images, and what is not drawn yet
FRAMES = 64  # of an animation, at most
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 60, 2000


def check_output(path: Path) -> None:
    """Check that `write_samples` can write a file of this name.

    Raises:
        InputError: its suffix is another.
    """
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise InputError(
            f"unsupported file type '{path.suffix}' of {path}; expected one of {', '.join(OUTPUT_SUFFIXES)}"
        )


def write_samples(path: Path, images: Array, mask: npt.NDArray[np.bool_] | None = None) -> None:
    """Write images (n, H, W, C) in [0, 1] as .npy, as one .png, or as a .gif that shows how they are drawn.

    Args:
        path: the file, whose suffix says which. It is replaced if it exists.
        images: of C channels, three are drawn as colours, of others the first.
        mask: (H, W), True where the images were given; the animation begins with them.

    Raises:
        InputError: the suffix is another.
        MissingExtraError: Pillow is not installed, and the file is a picture.
        MDLSTMError: the file cannot be written.
    """
    check_output(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        save_array(path, images)
        return
    pillow: Any = require("PIL.Image", "image")
    with atomic_write(path) as temporary:
        if suffix == ".png":
            pillow.fromarray(contact_sheet(images)).save(temporary, "PNG")
            return
        # One palette for all frames: Pillow would choose another one for each.
        frames = [pillow.fromarray(frame).quantize(256) for frame in _drawing_order(images, mask)]
        palette = frames[-1]
        frames = [frame.convert("RGB").quantize(palette=palette, dither=0) for frame in frames]
        durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )


def contact_sheet(
    images: Array, drawn: npt.NDArray[np.bool_] | None = None, side: int = IMAGE_PIXELS
) -> npt.NDArray[np.uint8]:
    """All images (n, H, W, C) side by side in one, (h, w, 3); where `drawn` (H, W) is False, no image.

    The longer side of each has about `side` pixels.
    """
    n, height, width, channels = images.shape
    colours = images if channels == 3 else np.repeat(images[..., :1], 3, axis=-1)
    pixels = np.rint(colours.clip(0, 1) * 255).astype(np.uint8)
    if drawn is not None:
        pixels[:, ~drawn] = BACKGROUND
    zoom = max(1, round(side / max(height, width)))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    columns = ceil(sqrt(n * height / width))
    rows = -(-n // columns)
    tile_height, tile_width = height * zoom + GAP_PIXELS, width * zoom + GAP_PIXELS
    sheet = np.empty((rows * tile_height + GAP_PIXELS, columns * tile_width + GAP_PIXELS, 3), np.uint8)
    sheet[:] = BACKGROUND
    for k, image in enumerate(pixels):
        top, left = (
            GAP_PIXELS + index * extent
            for index, extent in zip(divmod(k, columns), (tile_height, tile_width), strict=True)
        )
        sheet[top : top + height * zoom, left : left + width * zoom] = image
    return sheet


def _drawing_order(images: Array, mask: npt.NDArray[np.bool_] | None) -> Iterator[npt.NDArray[np.uint8]]:
    """The contact sheets of an animation: position after position appears in reading order."""
    given = np.zeros(images.shape[1:3], bool) if mask is None else mask
    to_draw = np.flatnonzero(~given)
    step = max(1, ceil(len(to_draw) / FRAMES))
    for count in (*range(0, len(to_draw), step), len(to_draw)):
        drawn = given.copy()
        drawn.ravel()[to_draw[:count]] = True
        yield contact_sheet(images, drawn)
