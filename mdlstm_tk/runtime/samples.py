"""Draw images with a density model: the numbers that decide them, and the part that is given.

Drawing with torch and drawing with ONNX Runtime share this module, which needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.errors import Export, InputError
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, Array
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.model_discovery import run_of


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
            f"{path} has shape {values.shape}, expected up to {size[0]} rows of {size[1]} positions and "
            f"{channels} channel{'s' * (channels > 1)}, as the images are {size[0]}x{size[1]}"
        )
    is_given = ~np.isnan(values).any(-1)
    if not is_given.any() or not (0 <= values[is_given].min() <= values[is_given].max() <= 1):
        raise InputError(f"{path} must hold values from 0 to 1, and NaN where they are to be drawn")
    full, mask = np.zeros((*size, channels), np.float32), np.zeros(size, bool)
    mask[: len(values)] = is_given
    full[mask] = values[is_given]
    return Given(full, mask)


def drawn_size(metadata: Metadata, label: str = "this model", run: str = "RUN") -> tuple[int, int]:
    """The size of the images that a model was trained to draw."""
    if metadata.drawing is None:
        if metadata.kind == "density":
            raise InputError(
                f"{label} does not draw images but gives their log-probabilities; make the file that draws "
                "with: ",
                Export({"drawing": True}, run),
            )
        kind = f"of kind {metadata.kind}" if metadata.kind else "of no kind"
        raise InputError(f"{label} does not draw images: it is {kind}, and only kind density draws")
    height, width = metadata.drawing["size"]
    return height, width


def check_takes_grids(metadata: Metadata, model: Path) -> None:
    """Check that a model takes whole grids; one that draws the rows of images raises an `InputError`."""
    if metadata.drawing is not None:
        raise InputError(
            f"{model} draws images, with: mdlstm sample; make the file that gives the log-probabilities of "
            f"images with: mdlstm export {shell_quoted(run_of(model))}"
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
    trained_size = drawn_size(metadata)
    height, width = size or trained_size
    channels, levels = metadata.channels, metadata.drawing["levels"]
    shape = (n, height, width, channels)
    if min(shape) < 1:
        raise InputError(f"n and size (H, W) must be at least 1, got {n} and {(height, width)}")
    row_values = (width + 1) * max(metadata.drawing["state"], channels * levels)
    nbytes = n * max(height * width * channels, row_values) * FLOAT_BYTES
    if nbytes > MAX_BYTES:
        raise InputError(
            f"{n} images of {height}x{width} take {nbytes} bytes, more than {MAX_BYTES}; "
            "draw fewer or smaller ones"
        )
    if not temperature > 0:
        raise InputError(f"temperature must be above 0, got {temperature}")
    if uniform is None:
        uniform = uniform_numbers(seed, n, (height, width), channels)
    uniform = np.asarray(uniform)
    if uniform.shape != shape:
        raise InputError(f"uniform must be (n, H, W, C) = {shape}, got shape {uniform.shape}")
    if not 0 <= uniform.min() <= uniform.max() < 1:
        raise InputError(f"uniform must lie in [0, 1), got {uniform.min()} to {uniform.max()}")
    fixed = np.full((height, width, channels), -1, np.float32)
    if given is not None:
        if given.values.shape != fixed.shape or given.mask.shape != fixed.shape[:2]:
            raise InputError(
                f"given must hold values (H, W, C) = {fixed.shape} and a mask (H, W), got shapes "
                f"{given.values.shape} and {given.mask.shape}"
            )
        is_given = given.mask & ~np.isnan(given.values).any(-1)
        values = given.values[is_given]
        if ((values < 0) | (values > 1)).any():
            raise InputError(f"given values must lie in [0, 1], got {values.min()} to {values.max()}")
        fixed[is_given] = np.rint(values * (levels - 1)) / np.float32(levels - 1)
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
