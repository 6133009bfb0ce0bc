"""The order in which the lines of a page are read, and its regions: columns, and notes beside them.

The order of Breuel (2003, "High performance document layout analysis"), as in kraken: a line comes before
one below it that shares some of its width; and before one to its right, unless a line between them shares
some of the width of both, such as a heading.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.text_order import Direction

MAX_LINES = 500  # that are put in order; of more, only the first by height are
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
    chosen = by_height[:MAX_LINES]
    shared = _shared(left[chosen], right[chosen])
    order = [int(chosen[k]) for k in _sorted(_before(left[chosen], right[chosen], y[chosen], shared))]
    order += by_height[MAX_LINES:].tolist()
    place = {int(k): p for p, k in enumerate(chosen)}
    regions = [[order[0]]]
    for last, k in pairwise(order):
        if last in place and k in place and shared[place[last], place[k]] and y[last] <= y[k]:
            regions[-1].append(k)
        else:
            regions.append([k])
    return regions


def _shared(left: Array, right: Array) -> Array:
    """(L, L) True where two lines share some of their width."""
    common = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    shorter = np.minimum((right - left)[:, None], right - left)
    return np.asarray(common > SHARED * shorter)


def _before(left: Array, right: Array, y: Array, shared: Array) -> Array:
    """(L, L) True where the first line is read before the second."""
    above = y[:, None] < y
    middle = (left + right) / 2
    beside = ~shared & (middle[:, None] < middle)
    for k in range(len(y)):  # a line between two of them that shares the width of both
        is_between = (
            shared[k][:, None]
            & shared[k]
            & ((above[:, k, None] & above[k]) | (above[k][:, None] & above[:, k]))
        )
        beside &= ~is_between
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
