"""Distortion of lines as hands and pens differ, and of pages as cameras and lamps do (SciPy).

It does not matter whether ink is dark or bright. Nothing here is a product of large matrices: the
threads of NumPy's linear algebra would wait for the next one, and take the cores from the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mdlstm_tk.errors import require
from mdlstm_tk.io import Array, Floats

# Amplitudes of lines at strength 1; lengths are shares of the height.
ZOOM = (0.12, 0.15)  # of height and width, as a factor e^±zoom
SLANT = 0.35  # columns by which a row moves against the one below
ROTATION, PAGE_ROTATION = 0.01, np.radians(5)
SHIFT, PAGE_SHIFT = 0.05, 0.06  # of pages, along both axes
WARP = (0.025, 0.03)  # standard deviation at the knots, vertically and horizontally
KNOT_DISTANCE = 0.3
STROKE = 0.15  # probability each of dilation, erosion and blur
GAMMA, PAGE_GAMMA = 0.4, 0.5  # brightness ^ e^±gamma
NOISE, PAGE_NOISE = 0.03, 0.06  # standard deviation, as a share of the range of brightness
# Amplitudes of pages alone.
TURNED = 0.15  # probability of any angle up to a right one, as of notes along a margin
PAGE_ZOOM = 0.2  # as a factor e^±zoom, and a quarter of it along one axis alone
SHEAR = 0.03
PERSPECTIVE = 0.12  # by which one side of the page is longer than the other
CONTRAST = 0.4  # at most, by which the range of brightness shrinks
SHADE = 0.85  # at most, by which light decreases from one side to the other
MOST = 0.95  # of contrast and of shade with any strength: a page is neither inverted nor black
BLUR = 0.4, 1.2  # pixels, in one page of three
INNER = 128  # points in which a baseline is divided where it leaves the page


def distort_line(x: Floats, rng: np.random.Generator, strength: float) -> Floats:
    """A line of text (H, W, C) as another hand or pen might have written it, (H, W', C) float32.

    Size, slant, place and shape change in one resampling, pixels from outside the image repeat its border;
    then strokes become thicker, thinner or softer, and brightness and noise change. `strength` is a factor
    of all amplitudes; 0 leaves the line as it is.
    """
    height, width = x.shape[:2]
    zoom: list[float] = np.exp(strength * np.array(ZOOM) * rng.uniform(-1, 1, 2)).tolist()
    new_width = max(round(width * zoom[1]), 1)
    slant, angle = strength * SLANT * rng.uniform(-1, 1), strength * ROTATION * rng.uniform(-1, 1)
    shift = strength * SHIFT * height * rng.uniform(-1, 1)
    rows = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    columns = np.arange(new_width, dtype=np.float32) - (new_width - 1) / 2
    places = strength * height * _warp((height, new_width), rng)
    places[0] += rows / zoom[0] + shift + (height - 1) / 2 + angle * columns
    places[1] += slant * rows + columns / zoom[1] + (width - 1) / 2
    pen, blur = rng.uniform(0, 1) / max(strength * STROKE, 1e-9), rng.uniform(0.4, 1.2)
    gamma = float(np.exp(strength * GAMMA * rng.uniform(-1, 1)))
    noise = strength * NOISE * rng.uniform(0, 1)

    def written(y: Floats, ndimage: Any) -> Floats:
        """A channel with other strokes and brightness."""
        if pen < 2:
            y = (ndimage.grey_dilation if pen < 1 else ndimage.grey_erosion)(y, size=(2, 2))
        elif pen < 3:
            y = ndimage.gaussian_filter(y, blur)
        low, extent = _range(y)
        y = low + extent * ((y - low) / extent) ** gamma
        return y + noise * extent * rng.standard_normal(y.shape, dtype=np.float32)

    return _resampled(x, places, written)


def distort_page(
    x: Floats, lines: Sequence[Array], rng: np.random.Generator, strength: float
) -> tuple[Floats, tuple[Array, ...]]:
    """A page (H, W, C) as another camera might have taken it, in the same extents, and its baselines
    (K, 2), x and y in pixels, as far as they are on it. `strength` is a factor of all amplitudes; 0 leaves
    the page as it is."""
    height, width = x.shape[:2]
    perspective = _perspective(height, width, rng, strength)
    columns, rows = (np.arange(extent, dtype=np.float32) + 0.5 for extent in (width, height))
    from_left, from_top = _seen(columns, rows[:, None], np.linalg.inv(perspective))
    shade = _shade(height, width, rng, strength)
    gamma = float(np.exp(strength * PAGE_GAMMA * rng.uniform(-1, 1)))
    contrast = min(strength * CONTRAST * rng.uniform(), MOST)
    blur = rng.uniform(*BLUR) * (rng.uniform() < strength / 3)
    noise = strength * PAGE_NOISE * rng.uniform() ** 2

    def lit(y: Floats, ndimage: Any) -> Floats:
        """A channel in another light."""
        low, extent = _range(y)
        y = ((y - low) / extent) ** gamma * shade * (1 - contrast) + contrast * rng.uniform()
        y = ndimage.gaussian_filter(y, blur) if blur else y
        return low + extent * (y + noise * rng.standard_normal(y.shape, dtype=np.float32))

    inside = []
    for line in lines:
        at = np.linspace(0, len(line) - 1, INNER)
        left, top = (np.interp(at, np.arange(len(line)), axis) for axis in line.T)
        moved = np.stack(_seen(left, top, perspective), axis=1)
        inside.append(moved[((moved >= 0) & (moved <= (width, height))).all(1)])
    page = _resampled(x, np.stack([from_top, from_left]) - np.float32(0.5), lit)
    return page, tuple(line for line in inside if len(line) > 1)


def _resampled(x: Floats, places: Floats, change: Callable[[Floats, Any], Floats]) -> Floats:
    """x (H, W, C) at the places (2, H', W'), as rows and columns, with each channel changed."""
    ndimage = require("scipy.ndimage", "data")
    channels = (ndimage.map_coordinates(c, places, order=1, mode="nearest") for c in np.moveaxis(x, -1, 0))
    return np.stack([change(channel, ndimage) for channel in channels], axis=-1).astype(np.float32)


def _range(y: Floats) -> tuple[float, float]:
    """The lowest value and the extent. Python's numbers leave float32 as it is; NumPy's would not."""
    return float(y.min()), max(float(np.ptp(y)), 1e-6)


def _warp(extents: tuple[int, int], rng: np.random.Generator) -> Floats:
    """A random field (2, H, W) of displacements, linear between knots."""
    distance = max(KNOT_DISTANCE * extents[0], 1.0)
    knots = [int(extent / distance) + 2 for extent in extents]
    field = rng.standard_normal((2, *knots), dtype=np.float32)
    field *= np.array(WARP, dtype=np.float32)[:, None, None]
    for axis, extent in enumerate(extents, 1):
        place = np.arange(extent, dtype=np.float32) / distance
        before = place.astype(int)
        share = (place - before).astype(np.float32).reshape((-1, 1) if axis == 1 else -1)
        field = (1 - share) * field.take(before, axis) + share * field.take(before + 1, axis)
    return field


def _perspective(height: int, width: int, rng: np.random.Generator, strength: float) -> Array:
    """A random perspective (3, 3) of points around the centre of the page."""
    draws = rng.uniform(-1, 1, 8) * strength
    is_turned, any_angle = rng.uniform() < strength * TURNED, rng.uniform(-0.5, 0.5) * np.pi
    angle, zoom = any_angle if is_turned else draws[0] * PAGE_ROTATION, np.exp(draws[1] * PAGE_ZOOM)
    stretch, shear = np.exp(draws[2] * PAGE_ZOOM / 4), draws[3] * SHEAR
    c, s, extents = np.cos(angle) * zoom, np.sin(angle) * zoom, np.array([width, height])
    matrix, to_centre, back = np.eye(3), np.eye(3), np.eye(3)
    matrix[:2, :2] = [[c * stretch, c * shear - s / stretch], [s * stretch, s * shear + c / stretch]]
    matrix[2, :2] = draws[4:6] * PERSPECTIVE / extents
    to_centre[:2, 2], back[:2, 2] = -extents / 2, extents / 2 + draws[6:] * PAGE_SHIFT * extents
    return np.asarray(back @ matrix @ to_centre)


def _seen(x: Array, y: Array, perspective: Array) -> tuple[Array, Array]:
    """Where a perspective (3, 3) shows points."""
    u, v, w = (a * x + b * y + c for a, b, c in perspective.tolist())
    return u / w, v / w


def _shade(height: int, width: int, rng: np.random.Generator, strength: float) -> Floats:
    """Light (H, W) that decreases along a random direction, or from a random place on."""
    x, y = np.arange(width) / width - 0.5, (np.arange(height) / height - 0.5)[:, None]
    angle, depth = rng.uniform(0, 2 * np.pi), min(strength * SHADE * rng.uniform(), MOST)
    slope = x * np.cos(angle) + y * np.sin(angle)
    if rng.uniform() < 0.3:
        slope = np.hypot(x - 0.7 * np.cos(angle), y - 0.7 * np.sin(angle)) - 0.7
    light: Floats = (1 - depth * np.clip(slope + 0.5, 0, 1)).astype(np.float32)
    return light
