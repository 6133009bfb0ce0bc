"""Distortion of lines of text as hands and pens differ (SciPy)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import require
from mdlstm_tk.io import Floats

# Amplitudes at strength 1; lengths are shares of the height.
ZOOM = (0.12, 0.15)  # of height and width, as a factor e^±zoom
SLANT = 0.35  # columns by which a row moves against the one below
ROTATION = 0.01  # radians
SHIFT = 0.05
WARP = (0.025, 0.03)  # standard deviation at the knots, vertically and horizontally
KNOT_DISTANCE = 0.3
STROKE = 0.15  # probability each of dilation, erosion and blur
GAMMA = 0.4  # brightness ^ e^±gamma
NOISE = 0.03  # standard deviation, as a share of the range of brightness


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
    # Python's numbers leave arrays of float32 as they are; NumPy's would make them float64.
    zoom: list[float] = np.exp(strength * np.array(ZOOM) * rng.uniform(-1, 1, 2)).tolist()
    new_width = max(round(width * zoom[1]), 1)
    slant, angle = strength * SLANT * rng.uniform(-1, 1), strength * ROTATION * rng.uniform(-1, 1)
    shift = strength * SHIFT * height * rng.uniform(-1, 1)
    rows = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    columns = np.arange(new_width, dtype=np.float32) - (new_width - 1) / 2
    warp = strength * height * _warp((height, new_width), rng)
    positions = np.empty((2, height, new_width), np.float32)
    positions[0] = warp[0] + (rows / zoom[0] + shift + (height - 1) / 2) + angle * columns
    positions[1] = warp[1] + slant * rows + (columns / zoom[1] + (width - 1) / 2)
    pen, blur = rng.uniform(0, 1), rng.uniform(0.4, 1.2)
    gamma = float(np.exp(strength * GAMMA * rng.uniform(-1, 1)))
    noise = strength * NOISE * rng.uniform(0, 1)
    channels = []
    for channel in np.moveaxis(x, -1, 0):
        y = ndimage.map_coordinates(channel, positions, order=1, mode="nearest")
        if pen < strength * STROKE:
            y = ndimage.grey_dilation(y, size=(2, 2))
        elif pen < 2 * strength * STROKE:
            y = ndimage.grey_erosion(y, size=(2, 2))
        elif pen < 3 * strength * STROKE:
            y = ndimage.gaussian_filter(y, blur)
        low, extent = float(y.min()), max(float(np.ptp(y)), 1e-6)
        y = low + extent * ((y - low) / extent) ** gamma
        channels.append(y + noise * extent * rng.standard_normal(y.shape, dtype=np.float32))
    return np.stack(channels, axis=-1).astype(np.float32)


def _warp(extents: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A random field (2, H, W) of displacements, linear between knots."""
    distance = max(KNOT_DISTANCE * extents[0], 1.0)
    shares = []  # of each knot in each displacement, (extent, knots), by axis
    for extent in extents:
        place, knots = np.arange(extent) / distance, np.arange(int(extent / distance) + 2)
        shares.append(np.maximum(1 - np.abs(place[:, None] - knots), 0).astype(np.float32))
    field = rng.standard_normal((2, shares[0].shape[1], shares[1].shape[1]), dtype=np.float32)
    field *= np.array(WARP, dtype=np.float32)[:, None, None]
    warp: npt.NDArray[np.float32] = shares[0] @ field @ shares[1].T
    return warp
