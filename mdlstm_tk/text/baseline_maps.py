"""The maps that a finder of lines learns: where baselines are, where they begin, and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mdlstm_tk.io import Array, Floats

MAPS = 3  # of baselines, of their beginnings, and of their ends
STRIDE = 2  # pixels of x, along both axes, under a position of the maps
RADIUS = 1.0, 3.0  # in positions: half the width of a drawn baseline, and the radius of a drawn end


def draw_maps(lines: Sequence[Array], extents: tuple[int, int]) -> Floats:
    """Draw baselines as a network should see them.

    Args:
        lines: baselines (K, 2), x and y in pixels of x (the input), each from the left end of a
            line that stands upright.
        extents: (h, w) of the maps.

    Returns:
        (h, w, 3), from 0 to 1, with soft edges: of the baselines, their beginnings and their ends.
    """
    maps = np.zeros((*extents, MAPS), np.float32)
    for line in lines:
        points = np.asarray(line, np.float32) / STRIDE - 0.5
        for start, end in pairwise(points):
            _draw(maps[..., 0], start, end, RADIUS[0])
        for k, point in ((1, points[0]), (2, points[-1])):
            _draw(maps[..., k], point, point, RADIUS[1])
    return maps


def _draw(grid: Floats, start: Array, end: Array, radius: float) -> None:
    """Draw a segment: 1 up to half a position less than the radius, 0 from half a position more."""
    reach = radius + 0.5
    low = np.maximum(np.floor(np.minimum(start, end) - reach).astype(int), 0)
    high = np.minimum(np.ceil(np.maximum(start, end) + reach).astype(int) + 1, grid.shape[::-1])
    if (high <= low).any():
        return
    x = np.arange(low[0], high[0], dtype=np.float32) - start[0]
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] - start[1]
    run = end - start
    place = np.clip((x * run[0] + y * run[1]) / max(float(run @ run), 1e-6), 0, 1)
    distance = np.hypot(x - place * run[0], y - place * run[1])
    part = grid[low[1] : high[1], low[0] : high[0]]
    np.maximum(part, np.clip(reach - distance, 0, 1), out=part)
