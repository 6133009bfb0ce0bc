"""Baselines from the maps of a network (SciPy), in the order of reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.text.polylines import resampled, spacing_of

HEAD, TAIL = slice(8), slice(-8, None)  # points of a piece that tell the direction of its ends
OVERLAP = 0.5  # line spacings by which pieces of a line may overlap
STRAIGHT = 0.9  # cosine between the directions of pieces of a line, at least
STEEP = 0.7  # share of its length that a line runs down, from which on it may read upwards
MAX_PIECES = 1000  # of a page, the largest
EIGHT = np.ones((3, 3), bool)  # neighbours, corners included


class Finding(NamedTuple):
    """The numbers by which baselines are found; lengths are in line spacings of the page.

    Attributes:
        low, high: probabilities that all positions of a piece have, and one of them at least.
        gap: the longest one between pieces of a line.
        offset: the largest distance of a piece from the other one, continued straight on.
        end: probability of an end and of a beginning from which lines are not joined there.
        shortest: the shortest line.
    """

    low: float = 0.4
    high: float = 0.6
    gap: float = 2.0
    offset: float = 0.2
    end: float = 0.3
    shortest: float = 0.5


FINDING = Finding()


def lines_of_output(y: Array, window: Sequence[int]) -> list[Array]:
    """The baselines in the output of a network.

    Args:
        y: (h, w, 3) logits of the maps.
        window: positions of x under a position of the maps.

    Returns:
        Baselines (K, 2), x and y in positions of x.

    Raises:
        InputError: y holds NaN or infinity.
    """
    if not np.isfinite(y).all():
        raise InputError("the model returns NaN or infinity, in which there are no lines")
    maps = 0.5 + 0.5 * np.tanh(0.5 * y)  # the logistic function, without overflow
    return [(line + 0.5) * np.asarray(window)[::-1] for line in find_baselines(maps)]


def find_baselines(maps: Array, threshold: float = 0.85, finding: Finding = FINDING) -> list[Array]:
    """The baselines in maps.

    Args:
        maps: (h, w, 3) probabilities.
        threshold: the lowest confidence of a line, see `confidence_of`.
        finding: how they are found.

    Returns:
        Baselines (K, 2), x and y in positions of the maps, from the middle of the first one.
    """
    pieces = _pieces(maps[..., 0], finding)
    if not pieces:
        return []
    spacing = spacing_of([line for line in pieces if _length(line) > 8] or pieces)
    pieces = _joined(pieces, maps, spacing, finding)
    return [
        _as_read(line, maps)
        for line in pieces
        if _length(line) >= finding.shortest * spacing and confidence_of(maps, line) >= threshold
    ]


def confidence_of(maps: Array, line: Array) -> float:
    """The median probability along a line that a baseline is there, from maps (h, w, 3)."""
    ndimage = require("scipy.ndimage", "image")
    places = resampled(line)[:, ::-1].T
    return float(np.median(ndimage.map_coordinates(maps[..., 0], places, order=1, mode="nearest")))


def _pieces(band: Array, finding: Finding) -> list[Array]:
    """A chain of points along each connected part of the map of baselines."""
    ndimage = require("scipy.ndimage", "image")
    labels, count = ndimage.label(band > finding.low, EIGHT)
    if not count:
        return []
    peaks = ndimage.maximum(band, labels, range(1, count + 1))
    sizes = np.bincount(labels.ravel())[1:]
    places, pieces = ndimage.find_objects(labels), []
    for k in sorted(np.argsort(-sizes, kind="stable")[:MAX_PIECES].tolist()):
        place = places[k]
        if peaks[k] < finding.high:
            continue
        y, x = np.nonzero(labels[place] == k + 1)
        if len(x) < 4:
            continue
        weights = band[place][y, x]
        pieces.append(_chain(np.stack([x + place[1].start, y + place[0].start], 1), weights))
    return [piece for piece in pieces if len(piece) > 1]


def _chain(points: Array, weights: Array, step: float = 4.0) -> Array:
    """The weighted means of points (P, 2) in steps along their principal axis."""
    centre = np.average(points, axis=0, weights=weights)
    _, axes = np.linalg.eigh(np.cov((points - centre).T, aweights=weights) + 1e-9 * np.eye(2))
    axis = axes[:, 1]
    axis = axis * np.sign(axis[0] if abs(axis[0]) > 0.5 else axis[1])  # rightwards, or downwards
    along = (points - centre) @ axis
    low, high = along.min(), along.max()
    count = max(int((high - low) / step), 1)
    bins = np.minimum(((along - low) / max(high - low, 1e-6) * count).astype(int), count - 1)
    sums = np.stack([np.bincount(bins, weights * axis, count) for axis in points.T], 1)
    totals = np.bincount(bins, weights, count)
    means = (sums / np.maximum(totals, 1e-9)[:, None])[totals > 0]
    if len(means) == 1:
        run = (high - low) / 2 * axis
        return np.stack([means[0] - run, means[0] + run])
    ends = [
        means[k] + ((each - centre) @ axis - (means[k] - centre) @ axis) * axis
        for k, each in ((0, centre + low * axis), (-1, centre + high * axis))
    ]
    return np.concatenate([ends[:1], means[1:-1], ends[1:]])


def _length(line: Array) -> float:
    return float(np.hypot(*np.diff(line, axis=0).T).sum())


def _joined(pieces: Sequence[Array], maps: Array, spacing: float, finding: Finding) -> list[Array]:
    """Join pieces that continue each other, those with the smallest gap first, unless the maps say that a
    line ends and another one begins there."""
    starts, ends = (np.stack([piece[k] for piece in pieces]) for k in (0, -1))
    first, last = (np.stack([_direction(piece[part]) for piece in pieces]) for part in (HEAD, TAIL))
    offsets = starts - ends[:, None]  # (k, j, 2), from the end of k to the start of j
    along = (offsets * last[:, None]).sum(-1)
    across = offsets[..., 1] * last[:, None, 0] - offsets[..., 0] * last[:, None, 1]
    fits = (along > -OVERLAP * spacing) & (along < finding.gap * spacing)
    fits &= (np.abs(across) < finding.offset * spacing) & (last @ first.T > STRAIGHT)
    fits &= ~(
        (_near(maps[..., 2], ends) > finding.end)[:, None] & (_near(maps[..., 1], starts) > finding.end)
    )
    np.fill_diagonal(fits, False)
    pairs = sorted(zip(*np.nonzero(fits), strict=True), key=lambda pair: along[pair])
    next_of: dict[int, int] = {}
    chain_of = list(range(len(pieces)))  # so that no chain becomes a circle
    for k, j in ((int(k), int(j)) for k, j in pairs):
        if k not in next_of and j not in next_of.values() and chain_of[k] != chain_of[j]:
            next_of[k] = j
            chain_of = [chain_of[k] if chain == chain_of[j] else chain for chain in chain_of]
    joined = []
    for k in sorted(set(range(len(pieces))) - set(next_of.values())):
        chain = [pieces[k]]
        while k in next_of:
            k = next_of[k]
            chain.append(pieces[k])
        joined.append(np.concatenate(chain))
    return joined


def _as_read(line: Array, maps: Array) -> Array:
    """A line in the direction of reading: rightwards, or downwards, unless the maps say that a steep one
    begins at its lower end."""
    if _direction(line)[1] < STEEP:
        return line
    (begins_above, begins_below), (ends_above, ends_below) = (
        _near(maps[..., k], line[[0, -1]]) for k in (1, 2)
    )
    return line[::-1] if begins_below + ends_above > begins_above + ends_below else line


def _near(grid: Array, points: Array) -> Array:
    """The largest value of a map around each of the points (P, 2)."""
    ndimage = require("scipy.ndimage", "image")
    largest = ndimage.maximum_filter(grid, 5)
    return np.asarray(ndimage.map_coordinates(largest, points[:, ::-1].T, order=0, mode="nearest"))


def _direction(points: Array) -> Array:
    """The direction of a chain of points."""
    run = points[-1] - points[0]
    return np.asarray(run / max(float(np.hypot(*run)), 1e-6))
