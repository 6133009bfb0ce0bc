"""The order in which the lines of a page are read, and its regions: columns, and notes beside them.

The order of Breuel (2003, "High performance document layout analysis"), as in kraken: a line comes before
one below it that shares some of its width; and before one to its right, unless a line between them shares
some of the width of both, such as a heading.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mdlstm_tk._util.text_order import Direction
from mdlstm_tk.io import Array

SHARED = 0.1  # of the shorter line, that two lines of a column have in common at least


def reading_order(lines: Sequence[Array], direction: Direction | None = None) -> list[list[int]]:
    """The order of baselines, by regions of lines that stand below each other.

    Args:
        lines: baselines (K, 2).
        direction: of the texts; "rtl": columns are read from the right.

    Returns:
        The indices of the lines of each region.
    """
    if not lines:
        return []
    if direction == "rtl":  # seen in a mirror, where lines run rightwards again
        lines = [line[::-1] * (-1, 1) for line in lines]
    runs = np.stack([line[-1] - line[0] for line in lines])
    angles = np.arctan2(*runs.T[::-1])
    main = np.arctan2(*runs.sum(0)[::-1])  # so that no angle that counts is near ±180°
    slope = main + np.median((angles - main + np.pi) % (2 * np.pi) - np.pi)
    level = np.array([[np.cos(slope), np.sin(slope)], [-np.sin(slope), np.cos(slope)]])
    turned = [line @ level.T for line in lines]
    left, right = (np.array([f(line[:, 0]) for line in turned]) for f in (np.min, np.max))
    y = np.array([np.median(line[:, 1]) for line in turned])
    by_height = np.argsort(y, kind="stable")
    left, right, y = left[by_height], right[by_height], y[by_height]
    shared = _shared(left, right)
    order = _sorted(_before(left, right, y, shared))
    regions = [order[:1]]
    for last, k in pairwise(order):
        if shared[last, k] and y[last] <= y[k]:
            regions[-1].append(k)
        else:
            regions.append([k])
    return [by_height[region].tolist() for region in regions]


def _shared(left: Array, right: Array) -> Array:
    """(L, L) True where two lines share some of their width."""
    common = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    shorter = np.minimum((right - left)[:, None], right - left)
    return np.asarray(common > SHARED * shorter)


def _before(left: Array, right: Array, y: Array, shared: Array) -> Array:
    """(L, L) True where the first line is read before the second."""
    above = y[:, None] < y
    middle = (left + right) / 2
    over = (shared & above).astype(np.float32)
    between = over @ over > 0  # a line between two of them shares the width of both
    beside = ~shared & (middle[:, None] < middle) & ~(between | between.T)
    return np.asarray((shared & above) | beside)


def _sorted(before: Array) -> list[int]:
    """A topological order; where there is a circle, the line with fewest others before it comes next."""
    remaining = before.sum(0).astype(float)
    order: list[int] = []
    for _ in range(len(before)):
        k = int(remaining.argmin())  # of equal ones the first, which is the highest
        order.append(k)
        remaining = remaining - before[k]
        remaining[k] = np.inf
    return order
