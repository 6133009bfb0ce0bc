"""Distortion of training images: shift, rotation, zoom, and an elastic warp, in one resampling (SciPy)."""

from __future__ import annotations

from typing import Any

import numpy as np

from mdlstm_tk.data.base import Floats
from mdlstm_tk.errors import require

TURN = 0.15  # radians, for a square image at strength 1
ZOOM = 0.1
SHIFT = 0.08  # of the smaller extent
WARP = 0.04  # of the smaller extent: the standard deviation of the elastic displacement
SMOOTH = 0.2  # of the smaller extent: how far the warp stays alike (Simard et al. 2003)


def distort(
    x: Floats, y: Any, rng: np.random.Generator, strength: float, with_target: bool
) -> tuple[Floats, Any]:
    """A distorted copy of an image (H, W, C), and of its mask (H, W) if the target is one.

    All displacements are measured by the smaller extent, and a long image turns less, so that a line of
    text stays inside its frame. What comes in from beyond the border repeats it.
    """
    ndimage = require("scipy.ndimage", "data")
    extents = np.array(x.shape[:2])
    small = int(extents.min())
    turn = strength * TURN * small / extents.max() * rng.uniform(-1, 1)
    zoom = 1 + strength * ZOOM * rng.uniform(-1, 1, 2)
    shift = strength * SHIFT * small * rng.uniform(-1, 1, 2)
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * zoom[:, None]

    centre = (extents - 1) / 2
    places = np.moveaxis(np.indices(x.shape[:2]), 0, -1) - centre  # (H, W, 2)
    places = places @ matrix.T + centre + shift
    sigma = SMOOTH * small
    if sigma >= 1 and strength > 0:
        warp = ndimage.gaussian_filter(rng.standard_normal((*x.shape[:2], 2)), (sigma, sigma, 0))
        places += warp * (strength * WARP * small / max(float(warp.std()), 1e-6))
    coordinates = np.moveaxis(places, -1, 0)
    channels = [
        ndimage.map_coordinates(channel, coordinates, order=1, mode="nearest")
        for channel in np.moveaxis(x, -1, 0)
    ]
    if with_target:
        y = ndimage.map_coordinates(y, coordinates, order=0, mode="nearest")
    return np.stack(channels, axis=-1).astype(np.float32), y
