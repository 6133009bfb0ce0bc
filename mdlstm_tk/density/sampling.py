"""Draw images with the network of a run of kind "density"."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted
from mdlstm_tk.density.given import Given, uniform_numbers
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES
from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint
from mdlstm_tk.training.run_folder import Run


def draw_images(
    network: nn.Module,
    n: int,
    size: tuple[int, int],
    channels: int,
    seed: int = 0,
    given: Given | None = None,
    temperature: float = 1.0,
) -> npt.NDArray[np.float32]:
    """Draw images (n, H, W, C) in [0, 1]; equal seeds give equal images.

    Args:
        network: a network with the method `sample` of `mdlstm_tk.models.DensityNet`.
        n: number of images.
        size: (H, W).
        channels: C.
        seed: decides the images.
        given: the part of each image that is not drawn.
        temperature: as of `DensityNet.sample`.

    Raises:
        InputError: the network cannot draw, or an argument is out of range.
    """
    sample = getattr(network, "sample", None)
    if sample is None:
        raise InputError(f"{type(network).__name__} has no method sample, which draws images")
    if min(n, *size) < 1 or seed < 0:
        raise InputError(f"n and size must be at least 1, seed at least 0, got {n}, {size} and {seed}")
    nbytes = n * prod(size) * channels * FLOAT_BYTES
    if nbytes > MAX_BYTES:
        raise InputError(
            f"{counted(n, 'image')} of {format_size(size)} take {nbytes} bytes, more than {MAX_BYTES}; "
            "draw fewer or smaller ones"
        )
    drawn = sample(
        n,
        size,
        uniform=torch.from_numpy(uniform_numbers(seed, n, size, channels)),
        given=None if given is None else torch.from_numpy(given.values),
        mask=None if given is None else torch.from_numpy(given.mask),
        temperature=temperature,
    )
    images: npt.NDArray[np.float32] = drawn.cpu().float().numpy()
    return images


def sample_run(
    run: Run,
    n: int,
    size: tuple[int, int] | None = None,
    *,
    seed: int = 0,
    given: Given | None = None,
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
