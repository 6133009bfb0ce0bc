"""The order in which a grid is swept, for any number of axes. Only NumPy is needed here.

A *wavefront* is the set of positions with the same coordinate sum. A position needs the positions one step
back along each axis, and those all lie on the previous wavefront, so one step computes a whole wavefront.
Everything that sweeps a grid (torch loop, compiled kernels, ONNX graph) takes its order and its tables from
here.

    >>> front = wavefronts((2, 3))
    >>> front.order.tolist()          # flat positions, wavefront after wavefront
    [0, 1, 3, 2, 4, 5]
    >>> front.starts.tolist()         # wavefront t is order[starts[t]:starts[t + 1]]
    [0, 1, 3, 5, 6]
    >>> front.previous(2).tolist()    # for each axis: index into wavefront 1, or -1 outside the grid
    [[0, 1], [1, -1]]

Notation
    E_d, P, T   extent along axis d, positions, wavefronts
    visit index the place of a position in the order of visiting, 0 … P − 1
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import product
from math import prod
from operator import index
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])
Indices = npt.NDArray[np.int64]
LARGE_GRID = 1 << 14  # positions; the tables of a larger grid take megabytes
Direction = tuple[int, ...]

_caches: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Wavefronts:
    """The wavefronts of one grid, swept from the corner (0, …, 0).

    Attributes:
        grid: extents (E_1, …, E_D), P = ∏ E_d positions.
        order: (P,) the flat (row-major) position at each visit index. Inside a wavefront positions are in
            row-major order.
        inverse_order: (P,) the visit index of each flat position; `inverse_order[order] == arange(P)`.
        starts: (T + 1,) wavefront t is `order[starts[t]:starts[t + 1]]`, T = 1 + Σ (E_d − 1).
        predecessors: (D, P) for each axis and visit index, the visit index of the position one step back,
            or −1 where that lies outside the grid.
        successors: (D, P) the same for the position one step forward.
    """

    grid: tuple[int, ...]
    order: Indices
    inverse_order: Indices
    starts: Indices
    predecessors: Indices
    successors: Indices

    def __len__(self) -> int:
        """T, the number of wavefronts."""
        return len(self.starts) - 1

    def slice(self, t: int) -> slice:
        """The visit indices of wavefront t."""
        return slice(int(self.starts[t]), int(self.starts[t + 1]))

    def previous(self, t: int) -> Indices:
        """(D, K_t) for each axis, the index within wavefront t − 1 of the predecessor, or −1."""
        predecessors = self.predecessors[:, self.slice(t)]
        return np.where(predecessors < 0, -1, predecessors - self.starts[max(t - 1, 0)])


def grid_cache(function: F) -> F:
    """Cache what `function(grid, …)` returns for the last 64 small grids and the last 4 large ones."""
    small, large = lru_cache(maxsize=64)(function), lru_cache(maxsize=4)(function)
    register_cache(small.cache_clear)
    register_cache(large.cache_clear)

    @wraps(function)
    def cached(grid: tuple[int, ...], *rest: Hashable) -> Any:
        return (small if prod(grid) <= LARGE_GRID else large)(grid, *rest)

    return cast("F", cached)


def register_cache(clear: Callable[[], None]) -> None:
    """Let `clear_caches` call `clear` as well."""
    _caches.append(clear)


def clear_caches() -> None:
    """Free all memory that is kept between calls: tables of grids, and packed weights."""
    for clear in _caches:
        clear()


@grid_cache
def wavefronts(grid: tuple[int, ...]) -> Wavefronts:
    """The wavefronts of `grid`, a tuple of D ≥ 1 extents ≥ 1 (cached).

    Raises:
        InputError: `grid` is empty or an extent is below 1.
    """
    if not grid or any(extent < 1 for extent in grid):
        raise InputError(f"a grid needs at least one axis and extents of at least 1, got {grid}")
    coordinates = np.indices(grid).reshape(len(grid), -1)  # (D, P)
    front = coordinates.sum(axis=0)  # (P,) the wavefront of each flat position
    order = np.argsort(front, kind="stable")
    inverse_order = np.empty_like(order)
    inverse_order[order] = np.arange(len(order))
    starts = np.concatenate([[0], np.cumsum(np.bincount(front))])
    strides = np.cumprod([1, *grid[:0:-1]])[::-1]  # flat distance of one step along each axis
    predecessors = np.where(
        coordinates[:, order] > 0,
        inverse_order[np.maximum(order - strides[:, None], 0)],
        -1,
    )
    successors = np.full_like(predecessors, -1)
    for previous, following in zip(predecessors, successors, strict=True):
        (visits,) = np.nonzero(previous >= 0)
        following[previous[visits]] = visits
    for table in (order, inverse_order, starts, predecessors, successors):
        table.setflags(write=False)
    return Wavefronts(grid, order, inverse_order, starts, predecessors, successors)


def visiting_order(grid: tuple[int, ...], direction: Direction) -> Indices:
    """(P,) the flat positions in the order in which a sweep in `direction` visits them.

    A direction is D signs: +1 sweeps an axis upwards from 0, −1 downwards from its far end. The
    predecessors and successors of `wavefronts(grid)`, which are visit indices, hold for every direction.
    """
    positions = np.arange(np.prod(grid, dtype=np.int64)).reshape(grid)
    mirrored = positions[tuple(slice(None, None, sign) for sign in direction)]
    return mirrored.reshape(-1)[wavefronts(grid).order]


def resolve_directions(directions: int | str | Sequence[Direction], ndim: int) -> list[Direction]:
    """The list of ±1 tuples that `directions` stands for.

    Args:
        directions: 1 for the sweep from corner (0, …, 0) alone; "all" for all 2^D corners, as
            (1, 1), (1, −1), (−1, 1), (−1, −1) for D = 2; or the tuples themselves.
        ndim: D.

    Raises:
        InputError: it is anything else, a tuple is not D signs, or one is repeated.
    """
    if isinstance(directions, str) and directions == "all":
        return list(product((1, -1), repeat=ndim))
    try:
        if index(directions) == 1:  # type: ignore[arg-type]
            return [(1,) * ndim]
    except TypeError:  # no integer
        pass
    try:
        chosen = [tuple(map(index, direction)) for direction in directions]  # type: ignore[union-attr]
    except TypeError:
        chosen = []
    valid = all(len(d) == ndim and all(sign in (1, -1) for sign in d) for d in chosen)
    if not chosen or not valid or len(set(chosen)) < len(chosen):
        raise InputError(
            f"directions must be 1, 'all' or a list of distinct tuples of {ndim} signs (1 or -1), "
            f"got {' '.join(repr(directions).split())}"
        )
    return chosen
