"""The order in which a grid is swept, for any number of axes, and its tables on a device.

A *wavefront* is the set of positions with the same coordinate sum. A position needs the positions one step
back along each axis, and those all lie on the previous wavefront, so one step computes a whole wavefront.
All backends take their order and their tables from here.

    >>> rows = batch_rows(((2, 3),), (2, 3), ((1, 1),))    # one sample, which fills the grid
    >>> rows.order[0].tolist()         # flat positions, wavefront after wavefront
    [0, 1, 3, 2, 4, 5]
    >>> rows.starts.tolist()           # wavefront t is from starts[t] up to starts[t + 1]
    [0, 1, 3, 5, 6]
    >>> rows.predecessors.tolist()     # for each axis the row one step back, or -1 outside the grid
    [[-1, -1, 0, -1, 1, 3], [-1, 0, -1, 1, 2, 4]]

Backends see the rows of a batch: the valid positions of all its samples, each swept from its own corner. A
padded position has no row, so nothing is computed or stored for it. All samples begin with wavefront 0, in
every direction, so neighbours are the same for all directions.

Notation
    E_d, P, T   extent along axis d, positions, wavefronts
    N, R        samples, rows
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

MAX_POSITIONS = 2**31 - 1  # of a batch: tables are int32
SMALL_BATCH = 2**18  # positions; larger tables take more than some 10 MB


def _cached(make: Make) -> Make:
    """Keep the tables of the last 16 small batches and of one large one; the first argument of `make` is
    the extents of each sample. A tensor that is made inside a transform belongs to that."""
    of_large, of_small = lru_cache(1)(make), lru_cache(16)(make)

    @wraps(make)
    def look_up(extents: Extents, *others: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return make(extents, *others)
        with torch.inference_mode(False):
            return (of_small if sum(map(prod, extents)) <= SMALL_BATCH else of_large)(extents, *others)

    return cast("Make", look_up)


def check_positions(grid: Sequence[int], count: int | None = None) -> None:
    """Check that a grid has positions, and that tables can hold `count` rows, those of the grid by default.

    Raises:
        InputError: it has no positions, or too many; then the message says what to do.
    """
    if not grid or any(extent < 1 for extent in grid):
        raise InputError(f"a grid needs at least one axis and extents of at least 1, got {tuple(grid)}")
    if (positions := prod(grid) if count is None else count) > MAX_POSITIONS:
        raise InputError(
            f"a sweep takes {MAX_POSITIONS} positions at most, got {positions} in a grid "
            f"{'×'.join(map(str, grid))}; sweep fewer samples, or parts of the grid one after another, "
            "with the states of one as initial_state of the next"
        )


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
class BatchRows:
    """The rows of a batch, wavefront after wavefront: inside a wavefront by position, then by sample.

    Attributes, `starts` in int64 and the others in int32:
        starts: (T + 1,) the first row of each wavefront, and the number of rows R.
        order: (dirs, R) the place of each row among the N·P positions of the batch.
        predecessors, successors: (D, R) the row one step back or forward along each axis, −1 outside.
    """

    starts: Indices
    order: Indices
    predecessors: Indices
    successors: Indices


@_cached
def batch_rows(extents: Extents, grid: tuple[int, ...], directions: tuple[Direction, ...]) -> BatchRows:
    """The rows of a batch whose samples have valid extents of their own (cached; its arrays must not be
    written to).

    Counted from the corner that a sample is swept from, its valid positions are those whose coordinates are
    below its extents.

    Raises:
        InputError: as of `check_positions`.
    """
    batch, stride, dtype = len(extents), prod(grid), np.int32
    check_positions(grid, batch * stride)
    sizes = np.array(extents, dtype).reshape(batch, len(grid)).T  # (D, N)
    whole = sizes.max(axis=1, initial=1)
    # NumPy sorts 16-bit integers by radix, in a fifth of the time.
    sum_dtype = np.uint16 if sum(whole) < 1 << 16 else dtype
    sums = reduce(np.add.outer, [np.arange(extent, dtype=sum_dtype) for extent in whole]).reshape(-1)
    visits = np.argsort(sums, kind="stable")  # (∏ whole,)
    coordinates = [axis.astype(dtype) for axis in np.unravel_index(visits, whole)]
    valid = np.ones((len(visits), batch), bool)
    for axis, limits in zip(coordinates, sizes, strict=True):
        valid &= axis[:, None] < limits
    of_visits = valid.sum(axis=1)
    starts = np.cumsum([0, *np.bincount(np.repeat(sums[visits], of_visits), minlength=1)])
    coordinates = [np.repeat(axis, of_visits) for axis in coordinates]  # (R,)
    sample = (np.flatnonzero(valid) % batch).astype(dtype)

    row = np.full([*(whole + 2), batch], -1, dtype)  # of each position and sample, with a border outside
    steps = [step // row.itemsize for step in row.strides[:-1]]
    places = sum((axis + 1) * step for axis, step in zip(coordinates, steps, strict=True)) + sample
    row.reshape(-1)[places] = np.arange(len(sample), dtype=dtype)
    predecessors, successors = (
        np.stack([row.reshape(-1).take(places + sign * step) for step in steps]) for sign in (-1, 1)
    )
    order = np.tile(sample * dtype(stride), (len(directions), 1))
    for d, (axis, limits) in enumerate(zip(coordinates, sizes, strict=True)):
        stride //= grid[d]
        for here, direction in zip(order, directions, strict=True):
            here += dtype(stride) * (axis if direction[d] > 0 else limits[sample] - 1 - axis)
    return BatchRows(starts, order, predecessors, successors)


@dataclass(frozen=True)
class SweepRows:
    """The rows of a batch on a device. After the R rows of positions come the L lines of positions along
    each axis, at whose ends states enter and leave (`mdlstm_tk.states`).

    Attributes, tables in int32:
        places: N·P, what `order` points into.
        counts, entering: for each wavefront the number of its rows, and of the lines that enter at them.
        starts: (T + 3,) int64, where each wavefront starts, with an empty wavefront added before the first
            and after the last: wavefront t is from `starts[t + 1]` up to `starts[t + 2]`.
        order: (dirs, R) the place of each row.
        predecessors, successors: (D, R) the row one step back or forward along each axis, or R + l where
            line l enters or leaves. Lines are numbered in the order in which they enter.
        lines: (dirs, L) the place of each line among the N·F lines of boundary states.
        slots: (L,) D · the row at which a line enters + its axis.
        ends: (L,) the row at which it leaves.
    """

    places: int
    counts: list[int]
    entering: list[int]
    starts: Tensor
    order: Tensor
    predecessors: Tensor
    successors: Tensor
    lines: Tensor
    slots: Tensor
    ends: Tensor

    @property
    def count(self) -> int:
        """R."""
        return self.order.shape[1]

    @property
    def longest(self) -> int:
        """The number of rows of the longest wavefront."""
        return max(self.counts)

    @cached_property
    def direction(self) -> Tensor:
        """(dirs, 1): together with `order` or `lines` it indexes each direction with its own."""
        with torch.inference_mode(False):
            return torch.arange(len(self.order), device=self.order.device)[:, None]

    @cached_property
    def previous(self) -> tuple[Tensor, ...]:
        """For each wavefront (D, K), the index of the predecessors among the rows of the wavefront before
        and, after them, the lines that enter."""
        with torch.inference_mode(False):
            counts = torch.tensor([[0, *self.counts[:-1]], self.counts, self.entering])
            before, after, enter = counts.to(self.order.device)
            first = self.starts[:-3], self.count + enter.cumsum(0) - enter - before
            shifts = (shift.repeat_interleave(after, output_size=self.count) for shift in first)
            of_rows, of_lines = (self.predecessors - shift for shift in shifts)
            index = torch.where(self.predecessors < self.count, of_rows, of_lines)
            parts: tuple[Tensor, ...] = index.to(self.order.dtype).split(self.counts, dim=1)
        return parts


def sweep_rows(inputs: SweepInputs) -> SweepRows:
    """The rows of a sweep, without those of padded positions."""
    extents = ragged_extents(inputs) or (inputs.grid,) * len(inputs.x)
    return _sweep_rows(extents, inputs.grid, inputs.directions, inputs.x.device)


@_cached
def _sweep_rows(
    extents: Extents, grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device
) -> SweepRows:
    rows = batch_rows(extents, grid, directions)
    starts, order, predecessors, successors = rows.starts, rows.order, rows.predecessors, rows.successors
    count = order.shape[1]
    entering, axis = np.nonzero(predecessors.T < 0)  # of each line
    check_positions(grid, count + len(entering))
    lines = _lines(order[:, entering], axis, grid)
    # In direction 0 a line is found again where it leaves: then it is the same in all.
    leaving, last_axis = np.nonzero(successors.T < 0)
    by_line, same = np.argsort(lines[0]), np.argsort(_lines(order[:1, leaving], last_axis, grid)[0])
    ends = np.empty_like(leaving)
    ends[by_line] = leaving[same]
    predecessors, successors = predecessors.copy(), successors.copy()
    predecessors[axis, entering] = count + np.arange(len(entering))
    successors[last_axis[same], leaving[same]] = count + by_line
    padded_starts = torch.from_numpy(np.concatenate([starts[:1], starts, starts[-1:]]))
    tables = order, predecessors, successors, lines, entering * len(grid) + axis, ends
    arrays = (torch.from_numpy(table.astype(np.int32, copy=False)) for table in tables)
    # A copy to a GPU waits for nothing: what it reads is staged before it returns.
    tensors = (tensor.to(device, non_blocking=True) for tensor in (padded_starts, *arrays))
    enter = np.diff(np.searchsorted(entering, starts))
    return SweepRows(len(extents) * prod(grid), np.diff(starts).tolist(), enter.tolist(), *tensors)


def _lines(places: Indices, axis: Indices, grid: tuple[int, ...]) -> Indices:
    """(dirs, L) the lines along each `axis` (L,) on which places (dirs, L) lie, among the N·F lines."""
    positions, table, first = prod(grid), [], 0
    stride = positions
    for extent in grid:
        table.append((stride, stride := stride // extent, first))
        first += positions // extent
    blocks, strides, firsts = np.array(table).T[:, axis]
    sample, position = np.divmod(places.astype(np.int64), positions)
    return sample * first + firsts + position // blocks * strides + position % strides  # type: ignore[no-any-return]


def visited(x: Tensor, rows: SweepRows) -> Tensor:
    """(N, *grid, C) → (dirs, R, C), in visiting order."""
    return x.reshape(rows.places, x.shape[-1])[rows.order]


def unvisited(values: Tensor, rows: SweepRows) -> Tensor:
    """(dirs, R, k) → (N·P, dirs, k), zeros where there is no row."""
    zeros = values.new_zeros(rows.places, len(values), values.shape[2])
    return zeros.index_put((rows.order, rows.direction), values)


def ragged_extents(inputs: SweepInputs) -> Extents | None:
    """The valid extents of each sample, if one of them is less than the grid's.

    Raises:
        InputError: as of `read_sizes`: nobody has checked those that a captured graph gets.
    """
    extents = None if inputs.sizes is None else read_sizes(inputs.sizes, inputs.grid)
    return None if extents is None or all(row == inputs.grid for row in extents) else extents
