"""Baselines and outlines as chains of points (K, 2): x and y in pixels, y downwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mdlstm_tk.io import Array

SPACINGS = 1 / 80, 1 / 6  # the smallest and the largest line spacing, by the height of the page
ALONE = 1 / 28  # that of a page with one line


def lengths(line: Array) -> Array:
    """The lengths (K,) of a chain up to each of its points."""
    return np.concatenate([[0.0], np.hypot(*np.diff(line, axis=0).T).cumsum()])


def points_at(line: Array, places: Array) -> Array:
    """The points (P, 2) at places (P,) along a chain, which is continued straight on beyond its ends."""
    known = lengths(line)
    points = np.stack([np.interp(places, known, axis) for axis in line.T], axis=1)
    first, last = line[1] - line[0], line[-1] - line[-2]
    points += np.minimum(places, 0)[:, None] * first / max(np.hypot(*first), 1e-9)
    return np.asarray(
        points + np.maximum(places - known[-1], 0)[:, None] * last / max(np.hypot(*last), 1e-9)
    )


def resampled(line: Array, count: int = 64) -> Array:
    """Points (count, 2) at equal distances along a chain, its ends among them."""
    return points_at(line, np.linspace(0, lengths(line)[-1], count))


def downwards(curve: Array) -> Array:
    """Unit vectors (K, 2) across a curve, which point down where it runs rightwards."""
    ahead = np.gradient(curve, axis=0)
    return np.asarray(ahead[:, ::-1] * (-1, 1) / np.maximum(np.hypot(*ahead.T), 1e-9)[:, None])


def distances(points: Array, lines: Sequence[Array]) -> Array:
    """The distances (P, L) of points (P, 2) from chains."""
    starts = np.concatenate([line[:-1] for line in lines])  # (S, 2), of all segments
    runs = np.concatenate([np.diff(line, axis=0) for line in lines])
    offsets = points[:, None] - starts  # (P, S, 2)
    places = np.clip((offsets * runs).sum(-1) / np.maximum((runs**2).sum(1), 1e-12), 0, 1)
    squares = ((offsets - places[..., None] * runs) ** 2).sum(-1)
    firsts = np.cumsum([0, *(len(line) - 1 for line in lines[:-1])])
    return np.sqrt(np.minimum.reduceat(squares, firsts, axis=1))


def simplified(line: Array, precision: float) -> Array:
    """A chain of fewer points (Douglas & Peucker 1973), from which no point of it is farther than
    `precision`."""
    away = distances(line[1:-1], [line[[0, -1]]])[:, 0] if len(line) > 2 else np.zeros(0)
    if not away.size or away.max() <= precision:
        return line[[0, -1]]
    k = 1 + int(away.argmax())
    return np.concatenate([simplified(line[: k + 1], precision)[:-1], simplified(line[k:], precision)])


def spacing_of(lines: Sequence[Array], height: float) -> float:
    """The line spacing of a page: the median distance of a baseline from the nearest other one, within
    bounds, because the lines of a title page or of an envelope are far from each other."""
    if len(lines) < 2:
        return ALONE * height
    coarse = [resampled(line, 9) for line in lines]
    between = np.stack([np.median(distances(line, coarse), axis=0) for line in coarse])
    np.fill_diagonal(between, np.inf)
    return float(np.clip(np.median(between.min(1)), height * SPACINGS[0], height * SPACINGS[1]))


def typical_reach(lines: Iterable[tuple[Array | None, Array | None]]) -> tuple[float, float] | None:
    """The medians of the pixels that outlines reach above and below their baselines; None without any.

    Args:
        lines: baseline and outline of each.
    """
    reaches = []
    for baseline, outline in lines:
        if baseline is None or outline is None or (baseline[-1] == baseline[0]).all():
            continue
        run = (baseline[-1] - baseline[0]) / np.hypot(*(baseline[-1] - baseline[0]))
        level = np.array([run, (-run[1], run[0])]).T  # turns the line level
        (x, y), (columns, rows) = (baseline @ level).T, (outline @ level).T
        order = np.argsort(x)
        below = rows - np.interp(columns, x[order], y[order])
        if np.ptp(below) > 0:
            reaches.append((-below.min(), below.max()))
    return tuple(np.median(reaches, axis=0).tolist()) if reaches else None
