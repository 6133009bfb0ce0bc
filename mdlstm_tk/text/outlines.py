"""Outlines of lines, from their baselines, their neighbours and the ink (SciPy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mdlstm_tk.errors import require
from mdlstm_tk.io import Array
from mdlstm_tk.text.polylines import lengths, resampled

STEP = 2.0  # pixels of x between the points of an outline that are searched
CORE = 0.35, 0.05  # line spacings above and below a baseline that its outline always holds
NEAR = 0.1  # cost of a boundary that is a line spacing nearer than its extent; ink costs up to 1
BEYOND = 10.0  # cost of a boundary beyond another baseline
THICK = 0.3  # line spacings, of a baseline that others do not cross
SIDE = 0.15  # line spacings that an outline is longer than its baseline at each end
MAX_COLUMNS = 1024
POINTS_TOGETHER = 8  # points of a boundary that become one, the outermost


def outlines(x: Array, lines: Sequence[Array], spacing: float, reach: tuple[float, float]) -> list[Array]:
    """The outlines (K, 2) of lines, in pixels of x.

    The upper and the lower boundary of a line are paths along its baseline that cross as little ink as
    possible, between the baseline and the reach of a typical line; neither crosses a neighbouring
    baseline.

    Args:
        x: (H, W), grey; ink is darker than paper, or brighter.
        lines: baselines (K, 2).
        spacing: of the lines, in pixels.
        reach: pixels that a typical line reaches above and below its baseline.
    """
    ndimage = require("scipy.ndimage", "image")
    paper = ndimage.median_filter(x[::4, ::4], 9)
    low, high = float(x.min()), float(x.max())
    ink = np.abs(x - np.kron(paper, np.ones((4, 4), x.dtype))[: x.shape[0], : x.shape[1]])
    ink = ink / max(high - low, 1e-6)
    image: Any = require("PIL.Image", "image").new("I", ink.shape[::-1])  # the number of each baseline
    draw = require("PIL.ImageDraw", "image").Draw(image)
    for number, line in enumerate(lines, 1):
        draw.line([tuple(point) for point in line.tolist()], number, max(round(THICK * spacing), 1))
    drawn = np.asarray(image)
    return [
        _outline(ink, (drawn > 0) & (drawn != number), line, spacing, reach)
        for number, line in enumerate(lines, 1)
    ]


def _outline(ink: Array, others: Array, line: Array, spacing: float, reach: tuple[float, float]) -> Array:
    """The outline of a line; `others` (H, W) is true on other baselines."""
    ndimage = require("scipy.ndimage", "image")
    count = int(np.clip(lengths(line)[-1] / STEP, 4, MAX_COLUMNS))
    points = resampled(line, count)
    ahead = np.gradient(points, axis=0)
    ahead /= np.maximum(np.hypot(*ahead.T), 1e-6)[:, None]
    points = np.concatenate(
        [points[:1] - SIDE * spacing * ahead[:1], points, points[-1:] + SIDE * spacing * ahead[-1:]]
    )
    ahead = np.concatenate([ahead[:1], ahead, ahead[-1:]])
    down = ahead[:, ::-1] * (-1, 1)
    above, below = reach
    offsets = np.arange(-np.ceil(above), np.ceil(below) + 1)  # (R,)
    places = points[:, None] + offsets[:, None] * down[:, None]  # (P, R, 2)
    at = np.moveaxis(places[..., ::-1], -1, 0) - 0.5
    cost = ndimage.map_coordinates(ink, at, order=1, mode="nearest")
    blocked = ndimage.map_coordinates(others, at, order=0, mode="constant")
    core = CORE[0] * spacing, CORE[1] * spacing
    edges = []
    for side, limit, least in ((-1, above, core[0]), (1, below, core[1])):
        rows = np.flatnonzero(offsets * side >= min(least, limit))[::side]  # outwards
        depth = np.abs(offsets[rows])
        of_side = cost[:, rows] + NEAR / spacing * (limit - depth).clip(0)
        of_side = of_side + BEYOND * np.maximum.accumulate(blocked[:, rows], axis=1)
        edges.append(depth[_path(of_side)] * side)
    upper, lower = (_coarse(edge, side) for edge, side in ((edges[0], -1), (edges[1], 1)))
    rows = np.linspace(0, len(points) - 1, len(upper)).round().astype(int)
    at, down = points[rows], down[rows]
    polygon = np.concatenate([at + upper[:, None] * down, (at + lower[:, None] * down)[::-1]])
    return np.asarray(np.clip(polygon, 0, np.array(ink.shape[::-1])))


def _path(cost: Array) -> Array:
    """The row in each column of the cheapest path along the columns of cost (P, R), whose rows change by
    one at most."""
    total, steps = cost[0], np.zeros(cost.shape, np.int8)
    far = np.full(1, np.inf)
    for p in range(1, len(cost)):
        around = np.stack([np.concatenate([far, total[:-1]]), total, np.concatenate([total[1:], far])])
        best = around.argmin(0)
        steps[p] = best - 1
        total = cost[p] + around[best, np.arange(len(total))]
    path = np.empty(len(cost), int)
    path[-1] = int(total.argmin())
    for p in range(len(cost) - 1, 0, -1):
        path[p - 1] = path[p] + steps[p, path[p]]
    return path


def _coarse(edge: Array, side: int) -> Array:
    """Fewer points of a boundary, each the outermost of several."""
    count = max(-(-len(edge) // POINTS_TOGETHER), 2)
    parts = np.array_split(edge, count)
    return np.array([side * (part * side).max() for part in parts])
