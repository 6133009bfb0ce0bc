"""Pictures of many images: a contact sheet, and an animation of the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import Array
from mdlstm_tk.io.files import check_free, open_output, write_arrays

OUTPUT_SUFFIXES = (".png", ".gif", ".npy")
IMAGE_PIXELS = 56  # of the longer side of the picture of an image, about
GAP_PIXELS = 4  # between two images
MAX_GIF_SIDE = 2**16 - 1  # pixels
BACKGROUND = (127, 137, 156)  # between images, and what is not drawn yet
FRAMES = 64  # of an animation, at most
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 60, 2000


@checked
def draw_samples(
    output: str | Path,
    source: str | Path | None = None,
    count: int = 64,
    size: tuple[int, int] | None = None,
    *,
    given: str | Path | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    force: bool = False,
) -> tuple[Path, tuple[int, ...]]:
    """Draw images with a density model into one file, as `mdlstm sample` does.

    Args:
        output: the file, see `write_samples`.
        source: a run folder. None: the latest run.
        count: number of images.
        size: (H, W); None: that of the training images.
        given: a file with the part of the image that is not drawn; see
            `mdlstm_tk.density.sampling.read_given`.
        temperature: divides the logits; below 1 the likely values become likelier.
        seed: decides the images.
        force: replace the file if it exists.

    Returns:
        The source, and the shape (count, H, W, C) of the images.

    Raises:
        InputError: the source does not draw, the file exists, or an argument is invalid.
        MissingExtraError, MDLSTMError: as `write_samples`; or torch is not installed.
    """
    output = Path(output)
    check_output(output)
    check_free(output, force)
    if size is not None and len(size) != 2:
        raise InputError(f"size (--size) must be a height and a width, got {format_size(size)}")
    require("torch", "train")
    from mdlstm_tk.density.sampling import draw_images, load_density_model, read_given
    from mdlstm_tk.training import latest_run, open_run

    run = open_run(source) if source else latest_run()
    checkpoint = load_density_model(run)
    height, width = size or checkpoint.spec.size
    size, channels = (height, width), checkpoint.spec.channels
    part = read_given(Path(given), size, channels) if given else None
    images = draw_images(checkpoint.network(), count, size, channels, seed, part, temperature)
    mask = None
    if part is not None:
        mask = np.pad(~np.isnan(part).any(-1), ((0, height - len(part)), (0, 0)))
    write_samples(output, images, mask, replace=force)
    return run.folder, images.shape


def check_output(path: Path) -> None:
    """Check that `write_samples` can write a file of this name.

    Raises:
        InputError: its suffix is none of `OUTPUT_SUFFIXES`.
    """
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise InputError(
            f"unsupported file type '{path.suffix}' of {path}; expected one of {', '.join(OUTPUT_SUFFIXES)}"
        )


def write_samples(
    path: Path, images: Array, mask: npt.NDArray[np.bool_] | None = None, *, replace: bool = True
) -> None:
    """Write images (n, H, W, C) in [0, 1] as .npy, as one .png, or as a .gif that shows how they are drawn.

    Args:
        path: the file, whose suffix decides the format. It is replaced if it exists.
        images: drawn in colours if C is 3, else their first channel in grey.
        mask: (H, W), True where the images were given; the animation begins with them.
        replace: the file may exist.

    Raises:
        InputError: the images are too many for a .gif.
        MissingExtraError: Pillow is not installed, and the file is a picture.
        MDLSTMError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    with open_output(path, replace) as file:
        if suffix == ".npy":
            write_arrays(file, {None: images}, "npy")
            return
        pillow: Any = require("PIL.Image", "image")
        if suffix == ".png":
            pillow.fromarray(contact_sheet(images)).save(file, "PNG")
            return
        # One palette for all frames, that of the last one: Pillow would choose another one for each.
        sheet = contact_sheet(images)
        if max(sheet.shape) > MAX_GIF_SIDE:
            pixels = format_size(sheet.shape[:2])
            raise InputError(f"the images make {pixels} pixels, more than a .gif holds; write a .png")
        palette = pillow.fromarray(sheet).quantize(256)
        frames = [
            pillow.fromarray(frame).quantize(palette=palette, dither=0)
            for frame in _drawing_order(images, mask)
        ]
        durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def contact_sheet(
    images: Array, drawn: npt.NDArray[np.bool_] | None = None, side: int = IMAGE_PIXELS
) -> npt.NDArray[np.uint8]:
    """All images (n, H, W, C) in one, (h, w, 3); the longer side of each has about `side` pixels.

    Positions where `drawn` (H, W) is False have the color of the background.
    """
    n, height, width, channels = images.shape
    colours = images if channels == 3 else np.repeat(images[..., :1], 3, axis=-1)
    pixels = np.rint(colours.clip(0, 1) * 255).astype(np.uint8)
    if drawn is not None:
        pixels[:, ~drawn] = BACKGROUND
    zoom = max(1, round(side / max(height, width)))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    columns = min(ceil(sqrt(n * height / width)), n)
    rows = -(-n // columns)
    tile_height, tile_width = height * zoom + GAP_PIXELS, width * zoom + GAP_PIXELS
    sheet = np.empty((rows * tile_height + GAP_PIXELS, columns * tile_width + GAP_PIXELS, 3), np.uint8)
    sheet[:] = BACKGROUND
    for k, image in enumerate(pixels):
        row, column = divmod(k, columns)
        top, left = GAP_PIXELS + row * tile_height, GAP_PIXELS + column * tile_width
        sheet[top : top + height * zoom, left : left + width * zoom] = image
    return sheet


def _drawing_order(images: Array, mask: npt.NDArray[np.bool_] | None) -> Iterator[npt.NDArray[np.uint8]]:
    """The contact sheets of an animation: position after position appears in reading order."""
    start = np.zeros(images.shape[1:3], bool) if mask is None else mask
    to_draw = np.flatnonzero(~start)
    step = max(1, ceil(len(to_draw) / FRAMES))
    for count in (*range(0, len(to_draw), step), len(to_draw)):
        drawn = start.copy()
        drawn.ravel()[to_draw[:count]] = True
        yield contact_sheet(images, drawn)
