"""The order of a sweep and its neighbours (`mdlstm_tk.wavefront`) as tensors on a device.

Kernels see rows. A row is a visit and a sample, visit · batch + sample, and the visits of a wavefront
follow each other. Without `sizes` the visits are those of the grid's positions and the batch is N.

A ragged batch is swept as one sample: its visits are the valid positions of all samples, each sample's from
its own corner on, and the batch is 1. A padded position has no row, so nothing is computed or stored for
it. All samples begin with wavefront 0, in every direction, so neighbours are the same for all directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from math import prod
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mdlstm_tk._util.caches import BoundedCache
from mdlstm_tk._util.masking import read_sizes, valid_mask
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.wavefront import Direction, check_positions, visiting_order, wavefronts

Array = npt.NDArray[Any]
Key = tuple[Any, ...]
Extents = tuple[tuple[int, ...], ...]  # of each sample
Make = TypeVar("Make", bound="Callable[..., SweepTables]")

_cache: BoundedCache[Key, SweepTables] = BoundedCache(64 << 20)
_ragged_cache: BoundedCache[Key, SweepTables] = BoundedCache(16 << 20)


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

    @property
    def nbytes(self) -> int:
        """Bytes of all tables, including those that are made when they are first used."""
        inverse = len(self.order) * self.places * self.order.itemsize
        tables = (self.starts, self.order, self.predecessors, self.successors)
        return sum(table.nbytes for table in tables) + inverse + self.predecessors.nbytes

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
        valid_mask: (N, *grid) bool where some rows are at positions that are not valid, else None.
    """

    tables: SweepTables
    batch: int
    ragged: bool = False
    valid_mask: Tensor | None = None

    @property
    def count(self) -> int:
        """The number of rows in each direction."""
        return self.tables.positions * self.batch

    @property
    def row_counts(self) -> list[int]:
        """The number of rows of each wavefront."""
        return [count * self.batch for count in self.tables.counts]


def sweep_rows(inputs: SweepInputs) -> SweepRows:
    """The rows of a sweep, without those of padded positions where the values of `sizes` can be read."""
    grid, batch, sizes = inputs.grid, inputs.x.shape[0], inputs.sizes
    ragged = ragged_extents(inputs)
    if ragged is not None:
        return SweepRows(ragged_tables(ragged, grid, inputs.directions, inputs.x.device), 1, ragged=True)
    tables = sweep_tables(grid, inputs.directions, inputs.x.device)
    mask = None if sizes is None or _is_at_hand(sizes) else valid_mask(grid, sizes.to(inputs.x.device))
    return SweepRows(tables, batch, valid_mask=mask)


def ragged_extents(inputs: SweepInputs) -> Extents | None:
    """The valid extents of each sample, if they can be read and one of them is less than the grid's.

    Raises:
        InputError: they do not lie within the grid: nobody has checked those that a captured graph gets.
    """
    if inputs.sizes is None or not _is_at_hand(inputs.sizes):
        return None
    extents = read_sizes(inputs.sizes, inputs.grid)
    return extents if any(row != inputs.grid for row in extents) else None


def _is_at_hand(sizes: Tensor) -> bool:
    """Tell whether the values can be read without a wait, and not inside a transform."""
    return sizes.device.type == "cpu" and not torch._C._are_functorch_transforms_active()


def _cached(cache: BoundedCache[Key, SweepTables]) -> Callable[[Make], Make]:
    """Decorate a function that makes tables, so that the cache keeps them by its arguments."""

    def decorate(make: Make) -> Make:
        @wraps(make)
        def look_up(*key: Any) -> SweepTables:
            if torch._C._are_functorch_transforms_active():
                return make(*key)  # a tensor made inside a transform belongs to it and must not be kept
            tables = cache.get(key)
            if tables is None:
                with torch.inference_mode(False):
                    tables = make(*key)
                cache.add(key, tables, tables.nbytes)
            return tables

        return cast("Make", look_up)

    return decorate


@_cached(_cache)
def sweep_tables(
    grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device
) -> SweepTables:
    """The tables of a grid on a device."""
    waves = wavefronts(grid)
    order = np.stack([visiting_order(grid, direction) for direction in directions])
    return _tables(prod(grid), waves.starts, order, waves.predecessors, waves.successors, device)


@_cached(_cache)
def tile_tables(extents: tuple[int, ...], grid: tuple[int, ...], direction: Direction) -> SweepTables:
    """The tables of a tile on the CPU, whose places are counted from that of its first visit."""
    waves, places = wavefronts(extents), np.zeros(1, np.int64)
    for d, (extent, sign) in enumerate(zip(extents, direction, strict=True)):
        places = np.add.outer(places, np.arange(extent) * (sign * prod(grid[d + 1 :]))).reshape(-1)
    order = places[waves.order][None]
    return _tables(
        prod(extents), waves.starts, order, waves.predecessors, waves.successors, torch.device("cpu")
    )


def _tables(
    places: int, starts: Array, order: Array, predecessors: Array, successors: Array, device: torch.device
) -> SweepTables:
    """Tables on a device; wavefront t of `starts` is from `starts[t]` up to `starts[t + 1]`."""
    padded_starts = np.concatenate([starts[:1], starts, starts[-1:]])
    arrays = (array.astype(np.int32, copy=False) for array in (order, predecessors, successors))
    # A copy to a GPU waits for nothing: what it reads is staged before it returns.
    tensors = (torch.from_numpy(a).to(device, non_blocking=True) for a in (padded_starts, *arrays))
    return SweepTables(places, np.diff(starts).tolist(), *tensors)


@_cached(_ragged_cache)
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
