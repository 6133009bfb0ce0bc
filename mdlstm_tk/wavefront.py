"""The order in which a grid is swept, for any number of axes, and its tables on a device.

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

Backends see rows. A row is a visit and a sample, visit · batch + sample, and the visits of a wavefront
follow each other. Without `sizes` the visits are those of the grid's positions and the batch is N.

A ragged batch is swept as one sample: its visits are the valid positions of all samples, each sample's from
its own corner on, and the batch is 1. A padded position has no row, so nothing is computed or stored for
it. All samples begin with wavefront 0, in every direction, so neighbours are the same for all directions.

Notation
    E_d, P, T   extent along axis d, positions, wavefronts
    visit index the place of a position in the order of visiting, 0 … P − 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce, wraps
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mdlstm_tk._util.masking import read_sizes
from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    from mdlstm_tk.inputs import SweepInputs

Indices = npt.NDArray[np.integer]
Direction = tuple[int, ...]
Extents = tuple[tuple[int, ...], ...]  # of each sample
Make = TypeVar("Make", bound="Callable[..., Any]")

MAX_POSITIONS = 2**31 - 1  # of a grid: tables are int32
SMALL_GRID = 2**18  # positions; tables of larger grids take more than some 10 MB


def _cached(make: Make) -> Make:
    """Keep the tables of the last 16 small grids and of one large one; the first argument of `make` is the
    extents, of a grid or of each sample. A tensor that is made inside a transform belongs to that."""
    of_large, of_small = lru_cache(1)(make), lru_cache(16)(make)

    @wraps(make)
    def look_up(extents: Any, *others: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return make(extents, *others)
        positions = prod(extents) if isinstance(extents[0], int) else sum(map(prod, extents))
        with torch.inference_mode(False):
            return (of_small if positions <= SMALL_GRID else of_large)(extents, *others)

    return cast("Make", look_up)


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
        InputError: as of `check_positions`.
    """
    extents = tuple(map(int, grid))
    check_positions(extents)
    return _wavefronts(extents)


def check_positions(grid: Sequence[int]) -> None:
    """Check that a grid has positions, and not more than tables can hold.

    Raises:
        InputError: it has no positions, or too many; then the message says what to do.
    """
    if not grid or any(extent < 1 for extent in grid):
        raise InputError(f"a grid needs at least one axis and extents of at least 1, got {tuple(grid)}")
    if (positions := prod(grid)) > MAX_POSITIONS:
        raise InputError(
            f"a sweep takes {MAX_POSITIONS} positions at most, got {positions} in a grid "
            f"{'×'.join(map(str, grid))}; sweep its parts one after another, with the states of one as "
            "initial_state of the next"
        )


@_cached
def _wavefronts(grid: tuple[int, ...]) -> Wavefronts:
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


def resolve_directions(directions: Any, ndim: int) -> list[Direction]:
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
    if isinstance(directions, int) and directions == 1:
        return [(1,) * ndim]
    try:
        signs = [tuple(map(int, direction)) for direction in directions]
    except (TypeError, ValueError):
        signs = []
    if (
        not signs
        or any(len(d) != ndim or not {1, -1}.issuperset(d) for d in signs)
        or len({*signs}) < len(signs)
    ):
        raise InputError(
            f"directions must be 1, 'all' or a list of distinct tuples of {ndim} signs (1 or -1), "
            f"got {directions!r}"
        )
    return signs


@dataclass(frozen=True)
class SweepTables:
    """The order of a sweep in one or more directions over a grid, or over a ragged batch.

    P below is the number of visits. Tables are int32.

    Attributes:
        places: what `order` points into: the positions of the grid; or those of all N samples, sample after
            sample.
        counts: K_t, the number of visits of each of the T wavefronts.
        starts: (T + 3,) int64, where each wavefront starts in visiting order, with an empty wavefront added
            before the first and after the last: wavefront t is from `starts[t + 1]` up to `starts[t + 2]`.
        order: (dirs, P) the place of each visit.
        predecessors, successors: (D, P) the visit one step back or forward along each axis, or −1.
    """

    places: int
    counts: list[int]
    starts: Tensor
    order: Tensor
    predecessors: Tensor
    successors: Tensor

    @property
    def positions(self) -> int:
        """P."""
        return self.order.shape[1]

    @property
    def longest(self) -> int:
        """The number of visits of the longest wavefront."""
        return max(self.counts)

    @cached_property
    def inverse_order(self) -> Tensor:
        """(dirs, places) the visit of each place, or −1 where a ragged batch has none."""
        with torch.inference_mode(False):
            visits = torch.arange(self.positions, dtype=self.order.dtype, device=self.order.device)
            inverse = visits.new_full((len(self.order), self.places), -1)
            return inverse.scatter_(1, self.order.long(), visits.expand_as(self.order))

    @cached_property
    def previous(self) -> tuple[Tensor, ...]:
        """For each wavefront (D, K_t), the index of the predecessors within the previous wavefront; outside
        the grid, the index just after its last."""
        with torch.inference_mode(False):
            counts = torch.tensor([0, *self.counts], device=self.order.device)
            before = self.starts[:-3].repeat_interleave(counts[1:], output_size=self.positions)
            after = counts[:-1].repeat_interleave(counts[1:], output_size=self.positions)
            index = torch.where(self.predecessors < 0, after, self.predecessors - before)
            parts: tuple[Tensor, ...] = index.to(self.order.dtype).split(self.counts, dim=1)
        return parts


@dataclass(frozen=True)
class SweepRows:
    """The rows of a sweep: see the top of this file.

    Attributes:
        tables: of the grid or of the ragged batch.
        batch: N, or 1 for a ragged batch.
        ragged: whether the visits are the valid positions of all samples.
    """

    tables: SweepTables
    batch: int
    ragged: bool = False

    @property
    def count(self) -> int:
        """The number of rows in each direction."""
        return self.tables.positions * self.batch

    @property
    def row_counts(self) -> list[int]:
        """The number of rows of each wavefront."""
        return [count * self.batch for count in self.tables.counts]


def sweep_rows(inputs: SweepInputs) -> SweepRows:
    """The rows of a sweep, without those of padded positions."""
    grid, device, ragged = inputs.grid, inputs.x.device, ragged_extents(inputs)
    if ragged is not None:
        return SweepRows(ragged_tables(ragged, grid, inputs.directions, device), 1, ragged=True)
    return SweepRows(sweep_tables(grid, inputs.directions, device), inputs.x.shape[0])


def visited(x: Tensor, rows: SweepRows) -> Tensor:
    """(N, *grid, C) → (dirs, rows, C), in visiting order."""
    places = x.reshape(rows.batch, rows.tables.places, x.shape[-1]).transpose(0, 1)
    return places[rows.tables.order].flatten(1, 2)


def unvisited(values: Tensor, rows: SweepRows) -> Tensor:
    """(dirs, visits, batch, k) → (dirs, places, batch, k), zeros where there is no visit."""
    if rows.ragged:  # then index −1 is a row of zeros
        values = torch.cat([values, values.new_zeros(len(values), 1, *values.shape[2:])], dim=1)
    return values[torch.arange(len(values), device=values.device)[:, None], rows.tables.inverse_order]


def ragged_extents(inputs: SweepInputs) -> Extents | None:
    """The valid extents of each sample, if one of them is less than the grid's.

    Raises:
        InputError: as of `read_sizes`: nobody has checked those that a captured graph gets.
    """
    extents = None if inputs.sizes is None else read_sizes(inputs.sizes, inputs.grid)
    return None if extents is None or all(row == inputs.grid for row in extents) else extents


@_cached
def sweep_tables(
    grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device
) -> SweepTables:
    """The tables of a grid on a device."""
    waves = wavefronts(grid)
    order = np.stack([visiting_order(grid, direction) for direction in directions])
    return _tables(prod(grid), waves.starts, order, waves.predecessors, waves.successors, device)


@_cached
def tile_tables(extents: tuple[int, ...], grid: tuple[int, ...], direction: Direction) -> SweepTables:
    """The tables of a tile on the CPU, whose places are counted from that of its first visit."""
    waves, places = wavefronts(extents), np.zeros(1, np.int64)
    for d, (extent, sign) in enumerate(zip(extents, direction, strict=True)):
        places = np.add.outer(places, np.arange(extent) * (sign * prod(grid[d + 1 :]))).reshape(-1)
    order, device = places[waves.order][None], torch.device("cpu")
    return _tables(prod(extents), waves.starts, order, waves.predecessors, waves.successors, device)


@_cached
def ragged_tables(
    extents: Extents, grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device
) -> SweepTables:
    """The tables of a ragged batch, which its backward pass and its other layers use again.

    Counted from the corner that a sample is swept from, its valid positions are those whose coordinates are
    below its extents. So its rows are a part of the rows of the whole grid, in the same order."""
    waves, batch, positions = wavefronts(grid), len(extents), prod(grid)
    check_positions((batch, *grid))
    dtype = np.int32
    coordinates = [axis.astype(dtype) for axis in np.unravel_index(waves.order, grid)]  # D × (P,)
    sizes = np.array(extents, dtype).T  # (D, N)
    valid = np.ones((positions, batch), bool)
    for axis, limits in zip(coordinates, sizes, strict=True):
        valid &= axis[:, None] < limits
    flat_rows = np.flatnonzero(valid)  # of (visit, sample), in row-major order: one for each row
    visits = valid.sum(axis=1)  # of all samples, for each visit of the grid
    sample = flat_rows - np.repeat(np.arange(positions) * batch, visits)
    # The row of each visit and sample, −1 where it is not valid and at visit −1, which is outside the grid.
    row = np.full((positions + 1, batch), -1, dtype)
    row.reshape(-1)[flat_rows] = np.arange(len(flat_rows), dtype=dtype)
    predecessors, successors = (
        np.stack([row[neighbours].take(flat_rows) for neighbours in table])
        for table in (waves.predecessors, waves.successors)
    )  # (D, rows)
    order = np.empty((len(directions), len(flat_rows)), dtype)
    order[:] = (np.arange(batch, dtype=dtype) * dtype(positions)).take(sample)
    for d, (axis, limits) in enumerate(zip(coordinates, sizes, strict=True)):
        stride = dtype(prod(grid[d + 1 :]))
        up = np.repeat(stride * axis, visits)  # what the axis adds to a place, in either direction
        down = (stride * (limits - 1)).take(sample) - up
        for places, direction in zip(order, directions, strict=True):
            places += up if direction[d] > 0 else down
    starts = np.searchsorted(flat_rows, waves.starts * batch)
    last = 1 + max(1, int(np.count_nonzero(np.diff(starts))))  # the wavefronts after these have no rows
    return _tables(batch * positions, starts[:last], order, predecessors, successors, device)


def _tables(
    places: int,
    starts: Indices,
    order: Indices,
    predecessors: Indices,
    successors: Indices,
    device: torch.device,
) -> SweepTables:
    """Tables on a device; wavefront t of `starts` is from `starts[t]` up to `starts[t + 1]`."""
    padded_starts = np.concatenate([starts[:1], starts, starts[-1:]])
    arrays = (array.astype(np.int32, copy=False) for array in (order, predecessors, successors))
    # A copy to a GPU waits for nothing: what it reads is staged before it returns.
    tensors = (torch.from_numpy(a).to(device, non_blocking=True) for a in (padded_starts, *arrays))
    return SweepTables(places, np.diff(starts).tolist(), *tensors)
