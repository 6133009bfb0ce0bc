"""Baselines from the maps of a network (SciPy), in the order of reading."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mdlstm_tk.errors import require
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.text.polylines import resampled, spacing_of

EIGHT = np.ones((3, 3), bool)  # neighbours, corners included


class Finding(NamedTuple):
    """The numbers by which baselines are found; lengths are in line spacings of the page.

    Attributes:
        low, high: probabilities that all positions of a piece have, and one of them at least.
        gap: the longest one between pieces of a line.
        offset: the largest distance of a piece from the other one, continued straight on.
        shortest: the shortest line.
    """

    low: float = 0.4
    high: float = 0.6
    gap: float = 2.0
    offset: float = 0.3
    shortest: float = 0.5


FINDING = Finding()


def find_baselines(maps: Array, threshold: float = 0.75, finding: Finding = FINDING) -> list[Array]:
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
    pieces = _joined(pieces, spacing, finding)
    return [
        line
        for line in pieces
        if _length(line) >= finding.shortest * spacing and confidence_of(maps, line) >= threshold
    ]


def confidence_of(maps: Array, line: Array) -> float:
    """The mean probability along a line that a baseline is there, from maps (h, w, 3)."""
    ndimage = require("scipy.ndimage", "image")
    places = resampled(line)[:, ::-1].T
    return float(ndimage.map_coordinates(maps[..., 0], places, order=1, mode="nearest").mean())


def _pieces(band: Array, finding: Finding) -> list[Array]:
    """A chain of points along each connected part of the map of baselines."""
    ndimage = require("scipy.ndimage", "image")
    labels, count = ndimage.label(band > finding.low, EIGHT)
    if not count:
        return []
    peaks = ndimage.maximum(band, labels, range(1, count + 1))
    pieces = []
    for k, place in enumerate(ndimage.find_objects(labels)):
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


def _joined(pieces: list[Array], spacing: float, finding: Finding) -> list[Array]:
    """Join pieces that continue each other, those with the smallest gap first."""
    pieces = list(pieces)
    while True:
        best: tuple[float, int, int] | None = None
        starts = np.stack([piece[0] for piece in pieces])
        for k, piece in enumerate(pieces):
            end, ahead = piece[-1], _direction(piece[-8:], spacing)
            offsets = starts - end
            along, across = offsets @ ahead, offsets @ np.array([-ahead[1], ahead[0]])
            fits = (along > -spacing / 2) & (along < finding.gap * spacing)
            fits &= np.abs(across) < finding.offset * spacing
            fits[k] = False
            for j in np.flatnonzero(fits):
                if _direction(pieces[j][:8], spacing) @ ahead > 0.9 and (
                    best is None or along[j] < best[0]
                ):
                    best = (float(along[j]), k, int(j))
        if best is None:
            return pieces
        _, k, j = best
        joined = np.concatenate([pieces[k], pieces[j]])
        pieces = [piece for i, piece in enumerate(pieces) if i not in (k, j)] + [joined]


def _direction(points: Array, spacing: float) -> Array:
    """The direction of a chain of points."""
    run = points[-1] - points[0]
    unit: Array = run / max(float(np.hypot(*run)), 1e-6)
    return unit
