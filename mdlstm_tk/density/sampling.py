"""Draw images with the network of a run of kind "density"."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import read_file
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint
from mdlstm_tk.training.run import Run


def uniform_numbers(seed: int, n: int, size: tuple[int, int], channels: int) -> npt.NDArray[np.float32]:
    """The numbers (n, H, W, C) in [0, 1) that decide n images; image k is the same for any n above k."""
    return np.random.default_rng(seed).random((n, *size, channels), dtype=np.float32)


def read_given(path: Path, size: tuple[int, int], channels: int) -> npt.NDArray[np.float32]:
    """Read what is given of an image.

    Args:
        path: an image, or a .npy file (h, W) or (h, W, C) with values in [0, 1]. With h below H it is the
            upper rows. In a .npy file, NaN marks values that are to be drawn.
        size: (H, W) of the image to draw.
        channels: C.

    Returns:
        (h, W, C), any number or NaN where the image is drawn. A position is drawn if one of its channels is
        NaN.

    Raises:
        InputError: the file cannot be read, or does not fit.
    """
    file = read_file(path)
    if len(file.arrays) > 1:
        raise InputError(f"{path} holds {len(file.arrays)} arrays, expected one image")
    values = next(iter(file.arrays.values()))
    if file.is_image:
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
    return values


def draw_images(
    network: nn.Module,
    n: int,
    size: tuple[int, int],
    channels: int,
    seed: int = 0,
    given: npt.NDArray[np.float32] | None = None,
    temperature: float = 1.0,
) -> npt.NDArray[np.float32]:
    """Draw images (n, H, W, C) in [0, 1]; equal seeds give equal images.

    Args:
        network: a network with the method `sample` of `mdlstm_tk.density.DensityNet`.
        n: number of images.
        size: (H, W).
        channels: C.
        seed: decides the images.
        given: the part of each image that is not drawn, as of `DensityNet.sample`.
        temperature: as of `DensityNet.sample`.

    Raises:
        InputError: the network cannot draw, an argument is out of range, all of an image is given, or the
            network returns something else than images in [0, 1].
    """
    sample = getattr(network, "sample", None)
    if sample is None:
        raise InputError(f"{type(network).__name__} has no method sample, which draws images")
    if min(n, *size) < 1 or seed < 0:
        raise InputError(f"n and size must be at least 1, seed at least 0, got {n}, {size} and {seed}")
    if given is not None and given.shape[-3] >= size[0] and not np.isnan(given).any():
        raise InputError(
            f"all of an image of {format_size(size)} is given, and nothing is left to draw; give its upper "
            "rows, or NaN in a .npy file where it is to be drawn"
        )
    drawn = sample(
        n,
        size,
        uniform=torch.from_numpy(uniform_numbers(seed, n, size, channels)),
        given=None if given is None else torch.from_numpy(given),
        temperature=temperature,
    )
    images: npt.NDArray[np.float32] = drawn.cpu().float().numpy()
    if images.shape != (n, *size, channels) or not ((images >= 0) & (images <= 1)).all():
        raise InputError(
            f"{type(network).__name__}.sample returned an array of shape {images.shape} with values from "
            f"{images.min(initial=inf):.3g} to {images.max(initial=-inf):.3g}, expected "
            f"{(n, *size, channels)} in [0, 1]"
        )
    return images


def sample_run(
    run: Run,
    n: int,
    size: tuple[int, int] | None = None,
    *,
    seed: int = 0,
    given: npt.NDArray[np.float32] | None = None,
    temperature: float = 1.0,
) -> npt.NDArray[np.float32]:
    """Draw images (n, H, W, C) in [0, 1] with the best weights of a run.

    Args:
        run: a run of kind "density".
        n: number of images.
        size: (H, W); None: the size of the images that the run was trained on.
        seed, given, temperature: as of `draw_images`.

    Raises:
        InputError: the run is of another kind or damaged, or an argument is out of range.
    """
    checkpoint = load_density_model(run)
    height, width = size or checkpoint.spec.size
    channels = checkpoint.spec.channels
    return draw_images(checkpoint.network(), n, (height, width), channels, seed, given, temperature)


def load_density_model(run: Run) -> Checkpoint:
    """Read the best checkpoint of a run of kind "density".

    Raises:
        InputError: the run is of another kind or damaged.
    """
    checkpoint = load_checkpoint(run.checkpoint)
    if (kind := checkpoint.spec.kind) != "density":
        raise InputError(f"{run.folder} is of kind {kind}; only runs of kind density draw images")
    return checkpoint
