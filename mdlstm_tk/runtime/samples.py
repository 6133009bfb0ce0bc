"""Images that a density model draws: the numbers that decide them, what is given of them, and their files.

Drawing with torch and drawing with ONNX Runtime share this module, which needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.regular_files import read_bytes
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.arrays import open_input, save_array
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, Array, read_npy
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.model_discovery import run_of
from mdlstm_tk.runtime.preprocessing import SUFFIXES, Preprocessing, decode_image

OUTPUT_SUFFIXES = (".png", ".gif", ".npy")
IMAGE_PIXELS = 56  # of the longer side of the picture of an image, about
GAP_PIXELS = 4  # between two images
BACKGROUND = (127, 137, 156)  # between images, and what is not drawn yet
FRAMES = 64  # of an animation, at most
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 60, 2000


class Given(NamedTuple):
    """The part of an image that is not drawn.

    Attributes:
        values: (H, W, C) float32 in [0, 1], any number or NaN where the image is drawn.
        mask: (H, W), True where `values` hold.
    """

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
    if path.suffix.lower() in SUFFIXES:
        values = Preprocessing(3 if channels == 3 else 1)(
            decode_image(read_bytes(path, MAX_BYTES), str(path))
        )
    else:
        with open_input(path) as file:
            values = read_npy(file, str(path))
        if values.dtype.kind not in "buif":
            raise InputError(f"{path} holds {values.dtype}, expected real numbers")
        values = values.astype(np.float32)
        values = values[..., None] if values.ndim == 2 else values
    fits = values.ndim == 3 and values.shape[1:] == (size[1], channels) and 1 <= len(values) <= size[0]
    if not fits:
        raise InputError(
            f"{path} has shape {values.shape}, expected up to {size[0]} rows of {size[1]} positions and "
            f"{channels} channel{'s' * (channels > 1)}, as the images are {format_size(size)}"
        )
    known = ~np.isnan(values).any(-1)
    if not known.any() or not (0 <= values[known].min() <= values[known].max() <= 1):
        raise InputError(f"{path} must hold values from 0 to 1, and NaN where they are to be drawn")
    whole, mask = np.zeros((*size, channels), np.float32), np.zeros(size, bool)
    mask[: len(values)] = known
    whole[mask] = values[known]
    return Given(whole, mask)


def drawn_size(metadata: Metadata, label: str = "this model", run: str = "RUN") -> tuple[int, int]:
    """The size of the images that a model was trained to draw.

    Args:
        metadata: of the model.
        label: what the error message calls the model.
        run: what it calls the run folder.

    Raises:
        InputError: the model does not draw images.
    """
    if metadata.drawing is None:
        if metadata.kind == "density":
            raise InputError(
                f"{label} does not draw images but gives their log-probabilities; make the file that draws "
                f"with: mdlstm export {run} --drawing"
            )
        kind = f"of kind {metadata.kind}" if metadata.kind else "of no kind"
        raise InputError(f"{label} does not draw images: it is {kind}, and only kind density draws")
    height, width = metadata.drawing["size"]
    return height, width


def check_takes_grids(metadata: Metadata, model: Path) -> None:
    """Check that a model takes whole grids, rather than drawing the rows of images.

    Raises:
        InputError: it draws; the message names the command that makes the other file.
    """
    if metadata.drawing is not None:
        raise InputError(
            f"{model} draws images, with: mdlstm sample; make the file that gives the log-probabilities of "
            f"images with: mdlstm export {run_of(model)}"
        )


def draw_rows(
    session: Any,
    n: int,
    size: tuple[int, int] | None,
    seed: int,
    uniform: Array | None,
    given: Given | None,
    temperature: float,
) -> Array:
    """Draw images row by row: `Session.sample`, whose arguments these are."""
    metadata = session.metadata
    own_size = drawn_size(metadata)
    height, width = size or own_size
    channels, levels = metadata.channels, metadata.drawing["levels"]
    shape = (n, height, width, channels)
    if min(shape) < 1:
        raise InputError(f"n and size (H, W) must be at least 1, got {n} and {(height, width)}")
    of_row = (width + 1) * max(metadata.drawing["state"], channels * levels)
    needed = n * max(height * width * channels, of_row) * FLOAT_BYTES
    if needed > MAX_BYTES:  # the size and the state may be a stranger's
        raise InputError(
            f"{n} images of {format_size((height, width))} take {needed} bytes, more than {MAX_BYTES}; "
            "draw fewer or smaller ones"
        )
    if not temperature > 0:
        raise InputError(f"temperature must be above 0, got {temperature}")
    if uniform is None:
        uniform = uniform_numbers(seed, n, (height, width), channels)
    elif uniform.shape != shape:
        raise InputError(f"uniform must be (n, H, W, C) = {shape}, got shape {uniform.shape}")
    fixed = np.full((height, width, channels), -1, np.float32)
    if given is not None:
        if given.values.shape != fixed.shape:
            raise InputError(f"given must be (H, W, C) = {fixed.shape}, got shape {given.values.shape}")
        nearest = np.rint(given.values * (levels - 1)) / np.float32(levels - 1)
        known = given.mask & ~np.isnan(given.values).any(-1)
        fixed[known] = nearest[known]
    images = np.empty(shape, np.float32)
    for row, outputs in enumerate(run_rows(session, uniform, fixed, temperature)):
        images[:, row] = outputs["y"]
    return images


def run_rows(
    session: Any, uniform: Array, given: Array | float = -1.0, temperature: float = 1.0
) -> Iterator[dict[str, Array]]:
    """Run a graph that draws rows on one row after the other, each with the states of the row above.

    Args:
        session: of the model, which `mdlstm_tk.export.export_drawing` wrote.
        uniform: (n, H, W, C) numbers in [0, 1).
        given: values that are not drawn, −1 where they are; its shape broadcasts against that of `uniform`.
        temperature: divides the logits before values are drawn.

    Yields:
        For each row `y` (n, W, C), the `logits` (n, W, C, K), and the states.
    """
    n, _, width, channels = uniform.shape
    fixed = np.broadcast_to(np.float32(given), uniform.shape)
    above = np.zeros((n, width + 3, channels), np.float32)  # in [−1, 1]
    state = np.zeros((n, width + 1, session.metadata.drawing["state"]), np.float32)
    temperatures = np.full((n, 1), temperature, np.float32)
    for row in range(uniform.shape[1]):
        outputs = session(
            uniform[:, row], above=above, given=fixed[:, row], temperature=temperatures, state=state
        )
        yield outputs
        above[:, 1:-2] = 2 * outputs["y"] - 1
        state = outputs["next_state"]


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
