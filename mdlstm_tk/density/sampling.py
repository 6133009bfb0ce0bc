"""Draw images with the network of a run of kind "density", and show many images as one."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.files import check_free, open_output, read_file, suffix_of, write_arrays
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.run import Run, latest_run, open_run

SIDE, GAP = 56, 4  # pixels of the longer side of an image on a sheet, about, and between two
BACKGROUND = (127, 137, 156)  # between the images


def sample_run(
    run: Run | str | Path | None = None,
    n: int = 64,
    size: tuple[int, int] | None = None,
    *,
    seed: int = 0,
    given: str | Path | npt.NDArray[np.float32] | None = None,
    temperature: float = 1.0,
    output: str | Path | None = None,
    force: bool = False,
) -> npt.NDArray[np.float32]:
    """Draw images with the best weights of a run, as `mdlstm sample` does.

    Args:
        run: of kind "density", or its folder; None: the latest.
        n: number of images.
        size: (H, W); None: that of the images that the run was trained on.
        seed: decides the images; image k is the same for any n above k.
        given: the upper rows of the image, which are not drawn: values in [0, 1], (h, W, C), or of each
            image (n, h, W, C), with NaN where they are drawn; or an image, or a .npy file (h, W) or
            (h, W, C).
        temperature: divides the logits; below 1 the likely values become likelier.
        output: a file for all images, .npy for the numbers, or .png for a sheet; None: no file.
        force: replace the file if it exists.

    Returns:
        (n, H, W, C) in [0, 1].

    Raises:
        InputError: the run is of another kind, `given` or `temperature` does not fit, or the file has
            another suffix or exists.
        MissingExtraError: Pillow is not installed, and a file is a picture.
    """
    form = suffix_of(output)[1:] if output else ""
    if output:
        if form not in ("npy", "png"):
            raise InputError(f"{output} must end in .png or .npy")
        check_free(output, force)
    run = run if isinstance(run, Run) else open_run(run) if run else latest_run()
    checkpoint = load_checkpoint(run.checkpoint)
    spec = checkpoint.spec
    if spec.kind != "density":
        raise InputError(f"{run.folder} is of kind {spec.kind}; only runs of kind density draw images")
    height, width = size or spec.size
    if given is not None and not isinstance(given, np.ndarray):
        given = _read_given(given, spec.channels)
    uniform = torch.from_numpy(uniform_numbers(seed, n, (height, width), spec.channels))
    part = None if given is None else torch.from_numpy(given)
    network: Any = checkpoint.network()
    drawn = network.sample(n, (height, width), uniform=uniform, given=part, temperature=temperature)
    images: npt.NDArray[np.float32] = drawn.numpy()
    if output:
        with open_output(output, force) as file:
            write_arrays(file, {None: contact_sheet(images) if form == "png" else images}, form)
    return images


def uniform_numbers(seed: int, n: int, size: tuple[int, int], channels: int) -> npt.NDArray[np.float32]:
    """The numbers (n, H, W, C) in [0, 1) that decide n images; image k is the same for any n above k."""
    return np.random.default_rng(seed).random((n, *size, channels), dtype=np.float32)


def _read_given(path: str | Path, channels: int) -> npt.NDArray[np.float32]:
    """The values (h, W, C) of an image, or of a file with one array."""
    file = read_file(path)
    if len(file.arrays) > 1:
        raise InputError(f"{path} holds {len(file.arrays)} arrays, expected one image")
    (values,) = file.arrays.values()
    if file.is_image:
        values = Preprocessing(3 if channels == 3 else 1)(values)
    return (values[..., None] if values.ndim == 2 else values).astype(np.float32)


def contact_sheet(images: Array, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """All images (n, H, W, C) in one, (h, w, 3): in colours if C is 3, else their first channel in grey.
    The longer side of each has about `side` pixels."""
    n, height, width, channels = images.shape
    colours = images if channels == 3 else np.repeat(images[..., :1], 3, axis=-1)
    zoom = max(1, round(side / max(height, width)))
    pixels = np.rint(colours.clip(0, 1) * 255).astype(np.uint8).repeat(zoom, axis=1).repeat(zoom, axis=2)
    columns = min(ceil(sqrt(n * height / width)), n)
    rows = -(-n // columns)
    height, width = height * zoom + GAP, width * zoom + GAP  # of an image with the gap beside it
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), BACKGROUND, np.uint8)
    for k, image in enumerate(pixels):
        top, left = k // columns * height + GAP, k % columns * width + GAP
        sheet[top : top + height - GAP, left : left + width - GAP] = image
    return sheet
