"""The order in which a grid is swept, for any number of axes. Only NumPy is needed here.

A *wavefront* is the set of positions with the same coordinate sum. A position needs the positions one step
back along each axis, and those all lie on the previous wavefront, so one step computes a whole wavefront.
Everything that sweeps a grid (torch loop, compiled kernels, ONNX graph) takes its order and its tables from
here.

    >>> waves = wavefronts((2, 3))
    >>> waves.order.tolist()          # flat positions, wavefront after wavefront
    [0, 1, 3, 2, 4, 5]
    >>> waves.starts.tolist()         # wavefront t is order[starts[t]:starts[t + 1]]
    [0, 1, 3, 5, 6]
    >>> waves.previous(2).tolist()    # for each axis: index into wavefront 1, or -1 outside the grid
    [[0, 1], [1, -1]]

Notation
    E_d, P, T   extent along axis d, positions, wavefronts
    visit index the place of a position in the order of visiting, 0 … P − 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.caches import BoundedCache
from mdlstm_tk._util.checks import fitting
from mdlstm_tk._util.text import counted, one_line
from mdlstm_tk.errors import InputError

Indices = npt.NDArray[np.integer]
MAX_POSITIONS = 2**31 - 1  # of a grid: tables are int32
Direction = tuple[int, ...]

_cache: BoundedCache[tuple[int, ...], Wavefronts] = BoundedCache(32 << 20)


@dataclass(frozen=True)
class Wavefronts:
    """The wavefronts of one grid, swept from the corner (0, …, 0).

    Attributes, `starts` in int64 and the others in int32:
        grid: extents (E_1, …, E_D), P = ∏ E_d positions.
        order: (P,) the flat (row-major) position at each visit index. Inside a wavefront positions are in
            row-major order.
        starts: (T + 1,) wavefront t is `order[starts[t]:starts[t + 1]]`, T = 1 + Σ (E_d − 1).
        predecessors: (D, P) for each axis and visit index, the visit index of the position one step back,
            or −1 where that lies outside the grid.
        successors: (D, P) the same for the position one step forward.
    """

    grid: tuple[int, ...]
    order: Indices
    starts: Indices
    predecessors: Indices
    successors: Indices

    def __len__(self) -> int:
        """T, the number of wavefronts."""
        return len(self.starts) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table in (self.order, self.starts, self.predecessors, self.successors))

    def slice(self, t: int) -> slice:
        """The visit indices of wavefront t."""
        return slice(int(self.starts[t]), int(self.starts[t + 1]))

    def previous(self, t: int) -> Indices:
        """(D, K_t) for each axis, the index within wavefront t − 1 of the predecessor, or −1."""
        predecessors = self.predecessors[:, self.slice(t)]
        return np.where(predecessors < 0, -1, predecessors - self.starts[max(t - 1, 0)])


def wavefronts(grid: Sequence[int]) -> Wavefronts:
    """The wavefronts of `grid`, D ≥ 1 extents ≥ 1 (cached; its arrays must not be written to).

    Raises:
        InputError: `grid` is empty or no sequence of integers, or an extent is below 1.
    """
    try:
        extents: tuple[int, ...] = fitting(grid, tuple[int, ...])
    except TypeError:
        raise InputError(f"a grid must be a tuple of integers, got {one_line(grid)}") from None
    waves = _cache.get(extents)
    if waves is None:
        check_positions(extents)
        waves = _make_wavefronts(extents)
        _cache.add(extents, waves, waves.nbytes)
    return waves


def check_positions(grid: tuple[int, ...]) -> None:
    """Check that a grid has positions, and not more than tables can hold.

    Raises:
        InputError: it has no positions, or too many; then the message names `tiling`.
    """
    if not grid or any(extent < 1 for extent in grid):
        raise InputError(f"a grid needs at least one axis and extents of at least 1, got {grid}")
    positions = prod(grid)
    if positions > MAX_POSITIONS:
        raise InputError(
            f"a sweep takes {MAX_POSITIONS} positions at most, got {positions} in a grid "
            f"{'×'.join(map(str, grid))}; sweep its parts one after another, with the states of one as "
            "initial_state of the next"
        )


def _make_wavefronts(grid: tuple[int, ...]) -> Wavefronts:
    positions, dtype = prod(grid), np.int32
    # NumPy sorts 16-bit integers by radix, in a fifth of the time.
    sum_dtype = np.uint16 if sum(grid) < 1 << 16 else np.int64
    axes = [np.arange(extent, dtype=sum_dtype) for extent in grid]
    sums = reduce(np.add.outer, axes).reshape(-1)  # (P,) the wavefront of each flat position
    order: Indices = np.argsort(sums, kind="stable").astype(dtype)
    starts = np.concatenate([[0], np.cumsum(np.bincount(sums))])
    predecessors = np.empty((len(grid), positions), dtype)
    visits = np.empty(grid, dtype)  # the visit index of each position
    visits.reshape(-1)[order] = np.arange(positions, dtype=dtype)
    for d, row in enumerate(predecessors):
        previous = np.full(grid, -1, dtype)  # the visit index of the predecessor of each flat position
        before = (slice(None),) * d
        previous[(*before, slice(1, None))] = visits[(*before, slice(-1))]
        np.take(previous.reshape(-1), order, out=row)
    # Seen from the opposite corner, the last position is the first, and successors are predecessors.
    successors = dtype(positions - 1) - predecessors[:, ::-1]
    successors[successors == positions] = -1
    return Wavefronts(grid, order, starts, predecessors, successors)


def visiting_order(grid: tuple[int, ...], direction: Direction) -> Indices:
    """(P,) int64, the flat positions in the order in which a sweep in `direction` visits them.

    A direction is D signs: +1 sweeps an axis upwards from 0, −1 downwards from its far end. The
    predecessors and successors of `wavefronts(grid)`, which are visit indices, hold for every direction.
    """
    positions = np.arange(prod(grid), dtype=np.int64).reshape(grid)
    from_corner = positions[tuple(slice(None, None, sign) for sign in direction)]
    return from_corner.reshape(-1)[wavefronts(grid).order]


def resolve_directions(directions: int | str | Sequence[Direction], ndim: int) -> list[Direction]:
    """The list of ±1 tuples that `directions` stands for.

    Args:
        directions: 1 for the sweep from corner (0, …, 0) alone; "all" for all 2^D corners, as
            (1, 1), (1, −1), (−1, 1), (−1, −1) for D = 2; or the tuples themselves.
        ndim: D.

    Raises:
        InputError: `directions` is something else, a tuple is not D signs, or a tuple is repeated.
    """
    if isinstance(directions, str) and directions == "all":
        return list(product((1, -1), repeat=ndim))
    try:
        fitted: Any = fitting(directions, int | tuple[tuple[int, ...], ...])
    except TypeError:
        fitted = 0
    if fitted == 1:
        return [(1,) * ndim]
    signs: list[Direction] = list(fitted) if isinstance(fitted, tuple) else []
    valid = all(len(d) == ndim and all(sign in (1, -1) for sign in d) for d in signs)
    if not signs or not valid or len(set(signs)) < len(signs):
        raise InputError(
            f"directions must be 1, 'all' or a list of distinct tuples of {counted(ndim, 'sign')} (1 or "
            f"-1), got {' '.join(repr(directions).split())}"
        )
    return signs
