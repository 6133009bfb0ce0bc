"""Distortion of pages as cameras and lamps differ (SciPy): the image and its baselines alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdlstm_tk.errors import require
from mdlstm_tk.io import Array, Floats
from mdlstm_tk.text.geometry import resampled

# Amplitudes at strength 1.
ROTATION = np.radians(5)
TURNED = 0.15  # probability of any angle up to a right one, as of notes along a margin
ZOOM = 0.2  # as a factor e^±zoom, and a quarter of it along one axis alone
SHEAR = 0.03
PERSPECTIVE = 0.12  # by which one side of the page is longer than the other
SHIFT = 0.06  # of height and width
GAMMA = 0.5  # brightness ^ e^±gamma
CONTRAST = 0.4  # at most, by which the range of brightness shrinks
SHADE = 0.85  # at most, by which light decreases from one side to the other
MOST = 0.95  # of contrast and of shade with any strength: a page is neither inverted nor black
BLUR = 0.4, 1.2  # pixels, in one page of three
NOISE = 0.06  # standard deviation, as a share of the range of brightness
INNER = 128  # points in which a baseline is divided where it leaves the page


def distort_page(
    x: Floats, lines: Sequence[Array], rng: np.random.Generator, strength: float
) -> tuple[Floats, tuple[Array, ...]]:
    """Return a page as another camera might have taken it, with its baselines.

    Args:
        x: (H, W, C).
        lines: baselines (K, 2), x and y in pixels of x.
        rng: source of all random numbers.
        strength: factor of all amplitudes; 0 leaves the page as it is.

    Returns:
        The page in the same extents, and the baselines as far as they are on it.
    """
    ndimage = require("scipy.ndimage", "data")
    height, width = x.shape[:2]
    extents = np.array([width, height])
    matrix = _perspective(extents, rng, strength)
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    places = np.linalg.inv(matrix) @ np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    places = (places[1::-1] / places[2] - 0.5).reshape(2, height, width)
    shade = _shade(extents, rng, strength)
    # Python's number leaves arrays of float32 as they are; NumPy's would make them float64.
    gamma = float(np.exp(strength * GAMMA * rng.uniform(-1, 1)))
    contrast = min(strength * CONTRAST * rng.uniform(), MOST)
    blur, noise = rng.uniform(*BLUR) * (rng.uniform() < strength / 3), strength * NOISE * rng.uniform() ** 2
    channels = []
    for channel in np.moveaxis(x, -1, 0):
        y = ndimage.map_coordinates(channel, places, order=1, mode="nearest")
        low, extent = y.min(), max(np.ptp(y), 1e-6)
        y = ((y - low) / extent) ** gamma * shade * (1 - contrast) + contrast * rng.uniform()
        y = ndimage.gaussian_filter(y, blur) if blur else y
        channels.append(low + extent * (y + noise * rng.standard_normal(y.shape, dtype=np.float32)))
    moved = (_projected(resampled(line, INNER), matrix) for line in lines)
    inside = (line[((line >= 0) & (line <= extents)).all(1)] for line in moved)
    return np.stack(channels, axis=-1).astype(np.float32), tuple(line for line in inside if len(line) > 1)


def _projected(points: Array, matrix: Array) -> Array:
    """Points (K, 2) on the distorted page."""
    x, y, w = matrix @ np.stack([*points.T, np.ones(len(points))])
    return np.stack([x / w, y / w], axis=1)


def _perspective(extents: Array, rng: np.random.Generator, strength: float) -> Array:
    """A random perspective (3, 3) of points around the centre of the page."""
    draws = rng.uniform(-1, 1, 8) * strength
    is_turned, any_angle = rng.uniform() < strength * TURNED, rng.uniform(-0.5, 0.5) * np.pi
    angle, zoom = any_angle if is_turned else draws[0] * ROTATION, np.exp(draws[1] * ZOOM)
    stretch = np.exp(draws[2] * ZOOM / 4)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[stretch, draws[3] * SHEAR], [0, 1 / stretch]]) * zoom
    tilt = draws[4:6] * PERSPECTIVE / extents
    matrix = np.block([[linear, np.zeros((2, 1))], [tilt, np.ones((1, 1))]])
    to_centre, back = np.eye(3), np.eye(3)
    to_centre[:2, 2], back[:2, 2] = -extents / 2, extents / 2 + draws[6:] * SHIFT * extents
    return np.asarray(back @ matrix @ to_centre)


def _shade(extents: Array, rng: np.random.Generator, strength: float) -> Floats:
    """Light (H, W) that decreases along a random direction, or from a random place on."""
    x = np.arange(extents[0]) / extents[0] - 0.5
    y = (np.arange(extents[1]) / extents[1] - 0.5)[:, None]
    angle, depth = rng.uniform(0, 2 * np.pi), min(strength * SHADE * rng.uniform(), MOST)
    slope = x * np.cos(angle) + y * np.sin(angle)
    if rng.uniform() < 0.3:
        slope = np.hypot(x - 0.7 * np.cos(angle), y - 0.7 * np.sin(angle)) - 0.7
    light: Floats = (1 - depth * np.clip(slope + 0.5, 0, 1)).astype(np.float32)
    return light
