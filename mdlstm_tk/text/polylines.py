"""Baselines as chains of points: distances, spacing, and which of two sets are the same lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdlstm_tk.errors import require
from mdlstm_tk.io import Array

POINTS = 64  # at equal distances, in which a baseline is compared with others
NEAR = 0.25  # of the line spacing: the distance up to which a part of a baseline is on another one
LEAST_SHARE = 0.7  # of the lengths of both that are near each other, where they are the same line
SPACINGS = 1 / 80, 1 / 6  # the smallest and the largest line spacing, by the height of the page
ALONE = 1 / 28  # that of a page with one line


def lengths(line: Array) -> Array:
    """The lengths (K,) of a chain of points (K, 2) up to each of them."""
    return np.concatenate([[0.0], np.hypot(*np.diff(line, axis=0).T).cumsum()])


def resampled(line: Array, count: int = POINTS) -> Array:
    """Points (count, 2) at equal distances along a chain of points (K, 2), its ends among them."""
    places = lengths(line)
    at = np.linspace(0, places[-1], count)
    return np.stack([np.interp(at, places, axis) for axis in line.T], axis=1)


def distances(points: Array, lines: Sequence[Array]) -> Array:
    """The distances (P, L) of points (P, 2) from chains of points."""
    starts = np.concatenate([line[:-1] for line in lines])  # (S, 2), of all segments
    runs = np.concatenate([np.diff(line, axis=0) for line in lines])
    squares = np.maximum(np.square(runs).sum(1), 1e-12)
    offsets = points[:, None] - starts  # (P, S, 2)
    places = np.clip((offsets * runs).sum(-1) / squares, 0, 1)[..., None]
    of_segments = np.square(offsets - places * runs).sum(-1)
    firsts = np.cumsum([0, *(len(line) - 1 for line in lines[:-1])])
    return np.sqrt(np.minimum.reduceat(of_segments, firsts, axis=1))


def spacing_of(lines: Sequence[Array], height: float) -> float:
    """The line spacing of a page: the median distance of a baseline from the nearest other one, within
    bounds, because the lines of a title page or of an envelope are far from each other.

    Args:
        lines: baselines (K, 2).
        height: of the page, in their units.
    """
    if len(lines) < 2:
        return ALONE * height
    coarse = [resampled(line, 9) for line in lines]
    between = np.stack([np.median(distances(line, coarse), axis=0) for line in coarse])
    np.fill_diagonal(between, np.inf)
    return float(np.clip(np.median(between.min(1)), height * SPACINGS[0], height * SPACINGS[1]))


def same_lines(found: Sequence[Array], true: Sequence[Array], spacing: float) -> list[tuple[int, int]]:
    """The pairs (found, true) of baselines that are the same line.

    They lie within a quarter of the line spacing of each other over 70 % of both lengths. Each belongs to
    one pair; the pairs are as many as there can be.

    Args:
        found, true: baselines, each (K, 2).
        spacing: of the true lines, see `spacing_of`.
    """
    if not (found and true):
        return []
    shares = np.minimum(_shares(found, true, spacing), _shares(true, found, spacing).T)
    scores = np.where(shares >= LEAST_SHARE, 1 + shares, 0)
    optimize = require("scipy.optimize", "image")
    rows, columns = optimize.linear_sum_assignment(scores, maximize=True)
    return [(int(k), int(j)) for k, j in zip(rows, columns, strict=True) if scores[k, j]]


def _shares(lines: Sequence[Array], others: Sequence[Array], spacing: float) -> Array:
    """The share (L, M) of each line that is near each other one."""
    points, reach = np.concatenate([resampled(line) for line in lines]), NEAR * spacing
    near = np.zeros((len(points), len(others)), bool)
    for k, other in enumerate(others):  # most lines are far from most others
        around = ((points >= other.min(0) - reach) & (points <= other.max(0) + reach)).all(1)
        near[around, k] = distances(points[around], [other])[:, 0] <= reach
    return np.asarray(near.reshape(len(lines), POINTS, len(others)).mean(1))


def simplified(line: Array, precision: float) -> Array:
    """A chain of fewer points (Douglas & Peucker 1973), from which no point of it is farther than
    `precision`."""
    kept, parts = {0, len(line) - 1}, [(0, len(line) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        away = distances(line[first + 1 : last], [line[[first, last]]])[:, 0]
        if away.max() > precision:
            middle = first + 1 + int(away.argmax())
            kept.add(middle)
            parts += [(first, middle), (middle, last)]
    return line[sorted(kept)]
