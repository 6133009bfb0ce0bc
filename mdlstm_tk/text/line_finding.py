"""Baselines from the maps of a network (SciPy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import Array
from mdlstm_tk.text.geometry import lengths, resampled, spacing_of

MAPS = 3  # of baselines, of their beginnings, and of their ends
HEAD, TAIL = slice(8), slice(-8, None)  # points of a piece that tell the direction of its ends
MAX_PIECES = 1000  # of a page, the largest
STEP = 4.0  # positions of the maps between points of a piece
EIGHT = np.ones((3, 3), bool)  # neighbours, corners included
# Probabilities: of all positions of a piece, of one of them, of the beginning or end of a line, so that
# pieces are not joined there, and the median along a line that counts.
LOW, HIGH, END, CONFIDENT = 0.4, 0.6, 0.3, 0.85
# Lengths in line spacings of the page: of the shortest line, of the gap and the overlap between pieces of a
# line, and how far one may be from the other one, continued straight on.
SHORTEST, GAP, OVERLAP, OFFSET = 0.5, 2.0, 0.5, 0.2
STRAIGHT = 0.9  # cosine between the directions of pieces of a line, at least
STEEP = 0.7  # share of its length that a line runs down, from which on it may read upwards


def find_baselines(y: Array, window: Sequence[int]) -> list[Array]:
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
    ndimage = require("scipy.ndimage", "image")
    maps = 0.5 + 0.5 * np.tanh(0.5 * y)  # the logistic function, without overflow
    band = maps[..., 0]
    pieces = _pieces(band)
    spacing = spacing_of([line for line in pieces if lengths(line)[-1] > 8] or pieces, len(maps))
    around = [ndimage.maximum_filter(maps[..., k], 5) for k in (1, 2)]  # of beginnings, and of ends
    lines = []
    for line in _joined(pieces, around, spacing):
        places = resampled(line)[:, ::-1].T
        along = ndimage.map_coordinates(band, places, order=1, mode="nearest")
        if lengths(line)[-1] >= SHORTEST * spacing and np.median(along) >= CONFIDENT:
            lines.append((_as_read(line, around) + 0.5) * np.asarray(window)[::-1])
    return lines


def _pieces(band: Array) -> list[Array]:
    """A chain of points along each connected part of the map of baselines."""
    ndimage = require("scipy.ndimage", "image")
    labels, count = ndimage.label(band > LOW, EIGHT)
    peaks = ndimage.maximum(band, labels, range(1, count + 1))
    sizes = np.bincount(labels.ravel())[1:]
    places, pieces = ndimage.find_objects(labels), []
    for k in sorted(np.argsort(-sizes, kind="stable")[:MAX_PIECES].tolist()):
        if peaks[k] >= HIGH and sizes[k] >= 4:
            rows, columns = places[k]
            y, x = np.nonzero(labels[places[k]] == k + 1)
            points = np.stack([x + columns.start, y + rows.start], 1)
            pieces.append(_chain(points, band[places[k]][y, x]))
    return pieces


def _chain(points: Array, weights: Array) -> Array:
    """The weighted means of points (P, 2) in steps along their principal axis."""
    centre = np.average(points, axis=0, weights=weights)
    _, axes = np.linalg.eigh(np.cov((points - centre).T, aweights=weights) + 1e-9 * np.eye(2))
    axis = axes[:, 1]
    axis = axis * np.sign(axis[0] if abs(axis[0]) > 0.5 else axis[1])  # rightwards, or downwards
    along = (points - centre) @ axis
    low, high = along.min(), along.max()
    count = max(int((high - low) / STEP), 1)
    bins = np.minimum(((along - low) / max(high - low, 1e-6) * count).astype(int), count - 1)
    sums = np.stack([np.bincount(bins, weights * axis, count) for axis in points.T], 1)
    totals = np.bincount(bins, weights, count)
    means = sums[totals > 0] / totals[totals > 0, None]
    first, last = (
        means[k] + (end - (means[k] - centre) @ axis) * axis for k, end in ((0, low), (-1, high))
    )
    return np.stack([first, *means[1:-1], last])


def _joined(pieces: Sequence[Array], around: Sequence[Array], spacing: float) -> list[Array]:
    """Join pieces that continue each other, those with the smallest gap first, unless the maps say that a
    line ends and another one begins there. `around` are the maps of beginnings and ends."""
    if not pieces:
        return []
    starts, ends = (np.stack([piece[k] for piece in pieces]) for k in (0, -1))
    first, last = (np.stack([_direction(piece[part]) for piece in pieces]) for part in (HEAD, TAIL))
    offsets = starts - ends[:, None]  # (k, j, 2), from the end of k to the start of j
    along = (offsets * last[:, None]).sum(-1)
    across = offsets[..., 1] * last[:, None, 0] - offsets[..., 0] * last[:, None, 1]
    fits = (along > -OVERLAP * spacing) & (along < GAP * spacing)
    fits &= (np.abs(across) < OFFSET * spacing) & (last @ first.T > STRAIGHT)
    (begins, stops), (begins_next, stops_next) = (
        [_at(each, points) > END for each in around] for points in (ends, starts)
    )
    # The second one is for pieces of text that reads upwards.
    fits &= ~(stops[:, None] & begins_next) & ~(begins[:, None] & stops_next)
    np.fill_diagonal(fits, False)
    pairs = sorted(zip(*np.nonzero(fits), strict=True), key=lambda pair: along[pair])
    chain_of = {k: [k] for k in range(len(pieces))}
    for k, j in ((int(k), int(j)) for k, j in pairs):
        chain, other = chain_of[k], chain_of[j]
        if chain[-1] == k and other[0] == j and chain is not other:
            chain += other
            chain_of |= dict.fromkeys(other, chain)
    chains = [chain for k, chain in chain_of.items() if chain[0] == k]
    return [np.concatenate([pieces[k] for k in chain]) for chain in chains]


def _as_read(line: Array, around: Sequence[Array]) -> Array:
    """A line in the direction of reading: rightwards, or downwards, unless the maps say that a steep one
    begins at its lower end."""
    if _direction(line)[1] < STEEP:
        return line
    (begins_above, begins_below), (ends_above, ends_below) = (_at(each, line[[0, -1]]) for each in around)
    return line[::-1] if begins_below + ends_above > begins_above + ends_below else line


def _at(grid: Array, points: Array) -> Array:
    """The value of a map at each of the points (P, 2)."""
    ndimage = require("scipy.ndimage", "image")
    return np.asarray(ndimage.map_coordinates(grid, points[:, ::-1].T, order=0, mode="nearest"))


def _direction(points: Array) -> Array:
    """The direction of a chain of points."""
    run = points[-1] - points[0]
    return np.asarray(run / max(float(np.hypot(*run)), 1e-6))
