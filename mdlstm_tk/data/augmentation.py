"""Random crops of training images, and their distortion: shift, rotation, zoom and an elastic warp in one
resampling (SciPy). Lines of text are distorted as hands and pens differ.
"""

from __future__ import annotations

from functools import lru_cache
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

# Of lines, at strength 1; lengths are shares of the height.
LINE_ZOOM = (0.12, 0.15)  # of height and width, as a factor e^±zoom
SLANT = 0.35  # columns by which a row moves against the one below
LINE_ROTATION = 0.01  # radians
LINE_SHIFT = 0.05
LINE_WARP = (0.025, 0.03)  # standard deviation at the knots, vertically and horizontally
KNOT_DISTANCE = 0.3
STROKE = 0.15  # probability each of dilation, erosion and blur
GAMMA = 0.4  # brightness ^ e^±gamma
NOISE = 0.03  # standard deviation, as a share of the range of brightness

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
    for extent, new_extent in zip(x.shape[:-1], extents, strict=True):
        room = max(extent - new_extent, 0)
        start = room // 2 if rng is None else int(rng.integers(room + 1))
        slices.append(slice(start, start + new_extent))
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
    smaller, larger = sorted(x.shape[:2])
    angle = strength * ROTATION * smaller / larger * rng.uniform(-1, 1)
    zoom = 1 + strength * ZOOM * rng.uniform(-1, 1, 2)
    shift = strength * SHIFT * smaller * rng.uniform(-1, 1, 2)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * zoom[:, None]

    positions, centre = _centred_positions(x.shape[:2])
    positions = positions @ matrix.T + centre + shift
    if WARP_SIGMA * smaller >= 1 and strength > 0:
        positions += strength * WARP_STD * smaller * _random_warp(x.shape[:2], rng, ndimage)
    coordinates = positions.transpose(2, 0, 1)
    distorted = np.empty(x.shape, np.float32)
    for channel in range(x.shape[2]):
        distorted[..., channel] = ndimage.map_coordinates(
            x[..., channel], coordinates, order=1, mode="nearest"
        )
    if with_target:
        y = ndimage.map_coordinates(y, coordinates, order=0, mode="nearest")
    return distorted, y


@lru_cache(maxsize=16)
def _centred_positions(extents: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The positions (H, W, 2) of a grid, counted from its centre, and the centre (2,)."""
    centre = (np.array(extents) - 1) / 2
    return np.moveaxis(np.indices(extents), 0, -1) - centre, centre


def distort_line(x: Floats, rng: np.random.Generator, strength: float) -> Floats:
    """Return a line of text as another hand or pen might have written it.

    Size, slant, place and shape change in one resampling, pixels from outside the image repeat its border;
    then strokes become thicker, thinner or softer, and brightness and noise change. It does not matter
    whether ink is dark or bright.

    Args:
        x: (H, W, C).
        rng: source of all random numbers.
        strength: factor of all amplitudes; 0 leaves the line as it is.

    Returns:
        (H, W', C) float32.
    """
    ndimage = require("scipy.ndimage", "data")
    height, width = x.shape[:2]
    zoom = np.exp(strength * np.array(LINE_ZOOM) * rng.uniform(-1, 1, 2))
    new_width = max(round(width * zoom[1]), 1)
    slant, angle = strength * SLANT * rng.uniform(-1, 1), strength * LINE_ROTATION * rng.uniform(-1, 1)
    shift = strength * LINE_SHIFT * height * rng.uniform(-1, 1)
    rows = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    columns = np.arange(new_width, dtype=np.float32) - (new_width - 1) / 2
    warp = strength * height * _line_warp((height, new_width), rng)
    positions = np.stack(
        [
            rows / zoom[0] + angle * columns + shift + (height - 1) / 2 + warp[0],
            columns / zoom[1] + slant * rows + (width - 1) / 2 + warp[1],
        ]
    ).astype(np.float32)
    pen, blur = rng.uniform(0, 1), rng.uniform(0.4, 1.2)
    gamma, noise = np.exp(strength * GAMMA * rng.uniform(-1, 1)), strength * NOISE * rng.uniform(0, 1)
    channels = []
    for channel in np.moveaxis(x, -1, 0):
        y = ndimage.map_coordinates(channel, positions, order=1, mode="nearest")
        if pen < strength * STROKE:
            y = ndimage.grey_dilation(y, size=(2, 2))
        elif pen < 2 * strength * STROKE:
            y = ndimage.grey_erosion(y, size=(2, 2))
        elif pen < 3 * strength * STROKE:
            y = ndimage.gaussian_filter(y, blur)
        low, extent = y.min(), max(np.ptp(y), 1e-6)
        y = low + extent * ((y - low) / extent) ** gamma
        channels.append(y + noise * extent * rng.standard_normal(y.shape, dtype=np.float32))
    return np.stack(channels, axis=-1).astype(np.float32)


def _line_warp(extents: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A random field (2, H, W) of displacements, linear between knots."""
    distance = max(KNOT_DISTANCE * extents[0], 1.0)
    knots = [int(extent / distance) + 2 for extent in extents]
    field = rng.standard_normal((2, *knots), dtype=np.float32)
    for axis, extent in enumerate(extents, start=1):
        place = np.arange(extent, dtype=np.float32) / distance
        before = place.astype(np.int64)
        share = (place - before).reshape([-1 if k == axis else 1 for k in range(3)])
        field = field.take(before, axis) * (1 - share) + field.take(before + 1, axis) * share
    return field * np.array(LINE_WARP, dtype=np.float32)[:, None, None]


def _random_warp(extents: tuple[int, ...], rng: np.random.Generator, ndimage: Any) -> npt.NDArray[Any]:
    """A smooth random field (H, W, 2) with standard deviation 1."""
    step = -(-min(extents) // MAX_WARP_EXTENT)
    coarse = [-(-extent // step) for extent in extents]
    sigma = WARP_SIGMA * min(extents) / step
    warp = ndimage.gaussian_filter(rng.standard_normal((*coarse, 2)), (sigma, sigma, 0))
    warp /= max(float(warp.std()), 1e-6)
    if step > 1:
        zoom = [extent / knots for extent, knots in zip(extents, coarse, strict=True)]
        warp = ndimage.zoom(warp, (*zoom, 1), order=1, mode="nearest", grid_mode=True)
    return np.asarray(warp)
