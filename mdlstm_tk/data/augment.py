"""The distortion of images: shift, rotation, zoom and an elastic warp in one resampling (SciPy)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.task import Extents
from mdlstm_tk.errors import require

# Amplitudes at strength 1. "Smaller extent" is the smaller of height and width.
ROTATION = 0.15  # radians, for a square image
ZOOM = 0.1
SHIFT = 0.08  # times the smaller extent
WARP_STD = 0.04  # times the smaller extent: standard deviation of the elastic displacement
WARP_SIGMA = 0.2  # times the smaller extent: correlation length of the warp (Simard et al. 2003)

POSITIONS_TOGETHER = 2**14  # of images that are displaced together: few enough to stay in cache
MAX_WARP_EXTENT = 64  # larger images interpolate the warp, which is smooth, between fewer positions


def distort(
    samples: Sequence[tuple[npt.NDArray[Any], Any]],
    rngs: Sequence[np.random.Generator],
    strength: float,
    with_targets: bool,
) -> list[tuple[npt.NDArray[Any], Any]]:
    """Return distorted copies of images, and of their masks if `with_targets`.

    Displacements scale with the smaller extent and long images rotate less, so that a line of text stays
    inside its frame. Pixels from outside the image repeat its border. Displacements of small images are
    computed together, if their extents are equal: the calls would take longer than the arithmetic.

    Args:
        samples: an image (H, W, C), and a mask of classes (H, W), or any other target, which is returned
            unchanged.
        rngs: for each sample the source of its random displacement.
        strength: factor of all amplitudes; 0 leaves the images as they are.
        with_targets: True if targets are masks.
    """
    ndimage = require("scipy.ndimage", "data")
    distorted, of_extents = list(samples), dict[Extents, list[int]]()
    for index, (x, _) in enumerate(samples):
        of_extents.setdefault(x.shape[:2], []).append(index)
    for extents, indices in of_extents.items():
        number = max(1, POSITIONS_TOGETHER // max(1, prod(extents)))
        for start in range(0, len(indices), number):
            some = indices[start : start + number]
            places = _displaced(extents, [rngs[index] for index in some], strength, ndimage)
            for index, coordinates in zip(some, places, strict=True):
                x, y = samples[index]
                new = np.empty(x.shape, np.float32)
                for channel in range(x.shape[2]):
                    new[..., channel] = ndimage.map_coordinates(
                        x[..., channel], coordinates, order=1, mode="nearest"
                    )
                if with_targets:
                    y = ndimage.map_coordinates(y, coordinates, order=0, mode="nearest")
                distorted[index] = new, y
    return distorted


def _displaced(
    extents: Extents, rngs: Sequence[np.random.Generator], strength: float, ndimage: Any
) -> npt.NDArray[Any]:
    """For each generator the place (2, H, W) in the old image of each pixel of the new one."""
    smaller, larger = sorted(extents)
    draws = np.stack([rng.uniform(-1, 1, 5) for rng in rngs])
    angles = strength * ROTATION * smaller / larger * draws[:, 0]
    zooms, shifts = 1 + strength * ZOOM * draws[:, 1:3], strength * SHIFT * smaller * draws[:, 3:]
    cosines, sines = np.cos(angles), np.sin(angles)
    rotations = np.stack([np.stack([cosines, -sines], -1), np.stack([sines, cosines], -1)], 1)
    matrices = rotations * zooms[..., None]  # (N, 2, 2)

    positions, centre = _centred_positions(extents)
    # Sums in place of `@`: NumPy's BLAS has threads of its own, which spin after each small product and
    # take the second core from the training.
    columns = np.moveaxis(matrices, 2, 0)[:, :, None, None]
    positions = positions[..., :1] * columns[0] + positions[..., 1:] * columns[1]
    positions += centre + shifts[:, None, None]
    if WARP_SIGMA * smaller >= 1 and strength > 0:
        positions += strength * WARP_STD * smaller * _random_warps(extents, rngs, ndimage)
    return np.asarray(positions.transpose(0, 3, 1, 2))


@lru_cache(maxsize=16)
def _centred_positions(extents: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The positions (H, W, 2) of a grid, counted from its centre, and the centre (2,)."""
    centre = (np.array(extents) - 1) / 2
    return np.moveaxis(np.indices(extents), 0, -1) - centre, centre


def _random_warps(extents: Extents, rngs: Sequence[np.random.Generator], ndimage: Any) -> npt.NDArray[Any]:
    """Smooth random fields (N, H, W, 2) with standard deviation 1, one of each generator."""
    step = -(-min(extents) // MAX_WARP_EXTENT)
    coarse = [-(-extent // step) for extent in extents]
    sigma = WARP_SIGMA * min(extents) / step
    noise = np.stack([rng.standard_normal((*coarse, 2)) for rng in rngs])
    warps = ndimage.gaussian_filter(noise, (0, sigma, sigma, 0))
    warps /= np.maximum(warps.reshape(len(rngs), -1).std(axis=1), 1e-6)[:, None, None, None]
    if step > 1:
        zoom = [extent / knots for extent, knots in zip(extents, coarse, strict=True)]
        options = {"order": 1, "mode": "nearest", "grid_mode": True}
        warps = np.stack([ndimage.zoom(warp, (*zoom, 1), **options) for warp in warps])
    return np.asarray(warps)
