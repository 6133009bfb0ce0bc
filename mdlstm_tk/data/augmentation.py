"""Random crops of training images, and their distortion: shift, rotation, zoom and an elastic warp in one
resampling (SciPy).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.spec import Extents, Floats
from mdlstm_tk.errors import require

# Amplitudes at strength 1. "Smaller extent" is the smaller of height and width.
ROTATION = 0.15  # radians, for a square image
ZOOM = 0.1
SHIFT = 0.08  # times the smaller extent
WARP_STD = 0.04  # times the smaller extent: standard deviation of the elastic displacement
WARP_SIGMA = 0.2  # times the smaller extent: correlation length of the warp (Simard et al. 2003)

MAX_WARP_EXTENT = 64  # larger images interpolate the warp, which is smooth, between fewer positions


def crop(
    x: Floats, y: Any, extents: Extents, rng: np.random.Generator | None, with_target: bool
) -> tuple[Floats, Any]:
    """Return a part of an image, and of its mask or target if `with_target`.

    Args:
        x: (*grid, C).
        y: (*grid), (*grid, K), or any other target, which is returned unchanged.
        extents: of the part; along an axis on which the image is smaller, it stays whole.
        rng: source of the random place; None: the centre.
        with_target: True if y has the grid of x.
    """
    slices = []
    for extent, wanted in zip(x.shape[:-1], extents, strict=True):
        room = max(extent - wanted, 0)
        start = room // 2 if rng is None else int(rng.integers(room + 1))
        slices.append(slice(start, start + wanted))
    return x[tuple(slices)], y[tuple(slices)] if with_target else y


def distort(
    x: Floats, y: Any, rng: np.random.Generator, strength: float, with_target: bool
) -> tuple[Floats, Any]:
    """Return a distorted copy of an image, and of its mask if `with_target`.

    Displacements scale with the smaller extent and long images rotate less, so that a line of text stays
    inside its frame. Pixels from outside the image repeat its border.

    Args:
        x: (H, W, C).
        y: (H, W) mask of classes, or any other target, which is returned unchanged.
        rng: source of the random displacement.
        strength: factor of all amplitudes; 0 leaves the image as it is.
        with_target: True if y is a mask.
    """
    ndimage = require("scipy.ndimage", "data")
    extents = np.array(x.shape[:2])
    smaller = int(extents.min())
    angle = strength * ROTATION * smaller / extents.max() * rng.uniform(-1, 1)
    zoom = 1 + strength * ZOOM * rng.uniform(-1, 1, 2)
    shift = strength * SHIFT * smaller * rng.uniform(-1, 1, 2)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * zoom[:, None]

    centre = (extents - 1) / 2
    positions = np.moveaxis(np.indices(x.shape[:2]), 0, -1) - centre  # (H, W, 2)
    positions = positions @ matrix.T + centre + shift
    if WARP_SIGMA * smaller >= 1 and strength > 0:
        positions += strength * WARP_STD * smaller * _random_warp(x.shape[:2], rng, ndimage)
    coordinates = np.moveaxis(positions, -1, 0)
    channels = [
        ndimage.map_coordinates(channel, coordinates, order=1, mode="nearest")
        for channel in np.moveaxis(x, -1, 0)
    ]
    if with_target:
        y = ndimage.map_coordinates(y, coordinates, order=0, mode="nearest")
    return np.stack(channels, axis=-1).astype(np.float32), y


def _random_warp(extents: tuple[int, ...], rng: np.random.Generator, ndimage: Any) -> npt.NDArray[Any]:
    """A smooth random field (H, W, 2) with standard deviation 1."""
    step = -(-min(extents) // MAX_WARP_EXTENT)
    coarse = [-(-extent // step) for extent in extents]
    sigma = WARP_SIGMA * min(extents) / step
    warp = ndimage.gaussian_filter(rng.standard_normal((*coarse, 2)), (sigma, sigma, 0))
    warp /= max(float(warp.std()), 1e-6)
    if step > 1:
        zoom = [extent / few for extent, few in zip(extents, coarse, strict=True)]
        warp = ndimage.zoom(warp, (*zoom, 1), order=1, mode="nearest", grid_mode=True)
    return np.asarray(warp)
