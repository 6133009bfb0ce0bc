"""Tiles of a grid, the jobs that sweep them, and which thread runs what.

A grid is swept in *bands* along axis 0, each as wide as the grid. Their wavefronts are short enough to
stay in cache and, unlike those of square tiles, all equally long but for both ends of a band. A band needs
the one before it only a little further on than it is itself, so threads follow each other through the
bands. Where there are enough samples or directions, threads share those instead.

Bands depend on shapes alone. Threads decide how sums of gradients are divided, so their last bits depend on
the number of threads; but not on which of them runs what.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mdlstm_tk._util.caches import BoundedCache
from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.records import Job, address, words
from mdlstm_tk.backends.cpu.threads import Task
from mdlstm_tk.backends.tables import ragged_tables
from mdlstm_tk.wavefront import Direction, wavefronts

MIN_BAND_GRID = 4096  # rows (position, sample) of a grid that is divided
BAND_ROWS = 14  # rows of a wavefront of a band, about, on average
# Floating-point operations, of which a core does 50 to 100 in a nanosecond. Waking a thread takes some
# 50 µs, and beginning a task some 10 µs.
THREAD_OPERATIONS = 20_000_000  # that a thread is woken for
BANDS_OPERATIONS = (
    100_000_000  # that a thread is woken for to share bands, for which threads wait more often
)
TASK_OPERATIONS = 20_000_000  # of a task
MIN_TASK_OPERATIONS = 3_000_000
BAND_TASKS = 4  # tasks of a band, unless they have less than that


Valid = tuple[tuple[int, ...], ...]  # extents of each sample


class Samples(NamedTuple):
    """Samples first, first + 1, …, which are swept together.

    Attributes:
        first, number: which, and how many.
        extents: those of the grid.
        valid: for a ragged batch the valid extents of each sample.
    """

    first: int
    number: int
    extents: tuple[int, ...]
    valid: Valid | None = None

    @property
    def rows(self) -> int:
        """The number of rows (position, sample)."""
        return self.number * prod(self.extents) if self.valid is None else sum(map(prod, self.valid))


class Tile(NamedTuple):
    """A band of the grid of some samples, in one direction; `start` counts in the sweep's direction."""

    samples: Samples
    direction: int
    start: int
    extents: tuple[int, ...]


class TileTables(NamedTuple):
    """The tables of a tile and a direction, see `records.Job`."""

    starts: Any
    offsets: Any
    predecessors: Any
    successors: Any
    steps: Any


class Division(NamedTuple):
    """How a sweep is divided among threads.

    Attributes:
        ranges: the samples that are swept together.
        by: what a chain takes: some samples, some directions, or bands in turn.
        chains: how many there are.
    """

    ranges: Sequence[Samples]
    by: Literal["samples", "directions", "bands"]
    chains: int


class Jobs(NamedTuple):
    """The jobs of a sweep.

    Attributes:
        chains: the jobs of each chain.
        order: all jobs, in an order in which one thread may run them.
        slots: how many sums each direction has.
        buffers: how many dx there are: chains that add to the same positions have one each.
        longest: rows of the longest wavefront.
        is_tiled: whether states pass from tile to tile.
        keep: the memory of all records and tables.
    """

    chains: list[list[Task]]
    order: list[int]
    slots: int
    buffers: int
    longest: int
    is_tiled: bool
    keep: list[array[int] | TileTables]


def tile_bands(extents: tuple[int, ...], samples: int) -> list[tuple[int, int]]:
    """For each band of a grid along axis 0, its start and its extent; `samples` are swept together."""
    rest, steps = samples * prod(extents[1:]), sum(extents[1:]) - len(extents) + 1
    if samples * prod(extents) < MIN_BAND_GRID or rest <= BAND_ROWS:
        return [(0, extents[0])]
    # A band of height h has rest · h rows in h + steps wavefronts.
    height = max(1, round(BAND_ROWS * steps / (rest - BAND_ROWS)))
    if (
        len(extents) == 2 and samples * height > simd.TILE_ROWS
    ):  # all wavefronts but those at the ends have h
        height = max(1, round(samples * height / simd.TILE_ROWS) * simd.TILE_ROWS // samples)
    return [(start, min(height, extents[0] - start)) for start in range(0, extents[0], height)]


def divide(whole: Samples, dirs: int, operations: int, threads: int) -> Division:
    """The division that keeps most threads busy; of equal ones that by samples, which share least.

    Args:
        whole: all samples.
        dirs: the number of directions.
        operations: floating-point operations of the sweep.
        threads: the largest number of threads.
    """
    followers = max(1, min(threads, operations // BANDS_OPERATIONS))
    threads = max(1, min(threads, operations // THREAD_OPERATIONS))
    if whole.valid is not None:
        return Division(_ragged_ranges(whole, threads), "samples", threads)
    batch, bands = whole.number, len(tile_bands(whole.extents, whole.number))
    busy: dict[Literal["samples", "directions", "bands"], float] = {  # threads at work, on average
        "samples": batch / -(-batch // min(threads, batch)),
        "directions": dirs / -(-dirs // min(threads, dirs)),
        "bands": 0.8 * min(followers, (bands + 1) / 2 * dirs),
    }
    by = max(busy, key=lambda name: busy[name])
    if by != "samples" and busy[by] > 1:
        return Division([whole], by, min(threads, dirs) if by == "directions" else followers)
    chains = min(threads, batch)
    limits = pairwise(batch * k // chains for k in range(chains + 1))
    return Division([Samples(a, b - a, whole.extents) for a, b in limits], "samples", chains)


def make_jobs(
    division: Division,
    batch: int,
    grid: tuple[int, ...],
    signs: Direction,
    operations: int,
    backwards: bool,
) -> Jobs:
    """The jobs of a sweep.

    Args:
        division: among threads.
        batch: N. Bands are those that all samples have together.
        grid: the extents.
        signs: the directions, dirs · D signs.
        operations: floating-point operations of a row.
        backwards: whether the sweep runs from the last position to the first.
    """
    dirs, by = len(signs) // len(grid), division.by
    chains: list[list[Task]] = [[] for _ in range(division.chains)]
    jobs = Jobs(
        chains,
        order=[],
        slots=1 if by == "directions" else len(chains),
        buffers=1 if by == "samples" or dirs == 1 else len(chains),
        longest=0,
        is_tiled=False,
        keep=[],
    )
    tiles = [
        Tile(samples, direction, start, (extent, *grid[1:]))
        for samples in division.ranges
        if samples.rows > 0
        for direction in range(dirs)
        for start, extent in _bands(samples, batch)[:: -1 if backwards else 1]
    ]
    longest = 0
    for index, tile in enumerate(tiles):
        if index == 0 or tile[:2] != tiles[index - 1][:2]:
            before = _Before()
        samples, direction = tile.samples, signs[tile.direction * len(grid) :][: len(grid)]
        is_ragged = samples.valid is not None
        if samples.valid is None:
            tables = tile_tables(tile.extents, grid, direction)
        else:
            tables = _ragged_tables(samples.valid, grid, signs, tile.direction)
        takes = {"samples": division.ranges.index(samples), "directions": tile.direction, "bands": index}
        chain = takes[by] % len(chains)
        job = Job(
            direction=tile.direction,
            first_sample=0 if is_ragged else samples.first,
            samples=1 if is_ragged else samples.number,
            corner=samples.first * prod(grid) if is_ragged else _corner(tile, grid, direction),
            begin=0,
            end=len(tables.starts) - 1,
            starts=tables.starts.ctypes.data,
            offsets=tables.offsets.ctypes.data,
            predecessors=tables.predecessors.ctypes.data,
            successors=tables.successors.ctypes.data,
            visits=len(tables.offsets),
            steps=tables.steps.ctypes.data,
            continues=int(tile.start > 0),
            chain=chain,
            sums_slot=chain if jobs.slots > 1 else 0,
            dx_buffer=chain if jobs.buffers > 1 else 0,
        )
        jobs.keep.append(tables)
        longest = max(longest, int(np.diff(tables.starts).max()) * job.samples)
        parts = [(0, job.end)]
        if len(chains) > 1:
            parts = _cut(tables.starts, job.samples * operations, by == "bands")
        done = []
        for begin, end in parts[:: -1 if backwards else 1]:
            record = words(job._replace(begin=begin, end=end))
            jobs.keep.append(record)
            jobs.order.append(address(record))
            needed = before.needed(begin - tile.extents[0] + 1 if backwards else end + before.height - 2)
            chains[chain].append(Task(jobs.order[-1], before.chain, needed))
            done.append((begin, end, len(chains[chain])))
        before = _Before(chain, tile.extents[0], done)
    return jobs._replace(longest=longest, is_tiled=any(tile.start > 0 for tile in tiles))


class _Before(NamedTuple):
    """The band that was swept before: its chain, its height, and for each of its tasks the wavefronts and
    how many tasks of the chain are done after it."""

    chain: int = 0
    height: int = 0
    tasks: Sequence[tuple[int, int, int]] = ()

    def needed(self, wavefront: int) -> int:
        """How many tasks of the chain must be done for this band to have come past a wavefront; beyond its
        ends, past the last one."""
        if not self.tasks:
            return 0
        return next((n for begin, end, n in self.tasks if begin <= wavefront < end), self.tasks[-1][2])


def _bands(samples: Samples, batch: int) -> list[tuple[int, int]]:
    """The bands of some samples; a ragged batch is one tile."""
    if samples.valid is not None:
        return [(0, samples.extents[0])]
    return tile_bands(samples.extents, batch)


def _ragged_ranges(whole: Samples, chains: int) -> list[Samples]:
    """A range of samples for each chain, with about the same number of rows each."""
    assert whole.valid is not None
    rows = np.cumsum([0, *map(prod, whole.valid)])
    inner = np.searchsorted(rows, [int(rows[-1]) * k // chains for k in range(1, chains)])
    limits = pairwise([0, *inner.tolist(), whole.number])
    return [Samples(a, b - a, whole.extents, whole.valid[a:b]) for a, b in limits]


def _cut(starts: Any, operations: int, is_band: bool) -> list[tuple[int, int]]:
    """Ranges of a tile's wavefronts, one for each task. A visit takes so many operations."""
    work = starts * operations
    total = int(work[-1])
    count = total // TASK_OPERATIONS
    if is_band:  # a thread follows the one before it by a task
        count = max(count, min(BAND_TASKS, total // MIN_TASK_OPERATIONS))
    limits = np.searchsorted(work, [total * k // count for k in range(1, count)], side="left")
    return [(a, b) for a, b in pairwise([0, *limits.tolist(), len(starts) - 1]) if a < b]


_tables: BoundedCache[tuple[object, ...], TileTables] = BoundedCache(64 << 20)


def tile_tables(extents: tuple[int, ...], grid: tuple[int, ...], direction: Direction) -> TileTables:
    """The tables of a tile of a grid, swept in a direction."""
    key = extents, grid, direction
    tables = _tables.get(key)
    if tables is None:
        front = wavefronts(extents)
        steps = np.array([sign * prod(grid[d + 1 :]) for d, sign in enumerate(direction)], np.int64)
        offsets = np.zeros(1, np.int64)
        for extent, step in zip(extents, steps, strict=True):
            offsets = np.add.outer(offsets, np.arange(extent) * step).reshape(-1)
        tables = TileTables(
            np.ascontiguousarray(front.starts, np.int64),
            offsets[front.order].astype(np.int32),
            np.ascontiguousarray(front.predecessors),
            np.ascontiguousarray(front.successors),
            steps,
        )
        _tables.add(key, tables, sum(table.nbytes for table in tables))
    return tables


def _ragged_tables(
    valid: Valid, grid: tuple[int, ...], signs: tuple[int, ...], direction: int
) -> TileTables:
    """The tables of a ragged batch in one of its directions; offsets count the positions of all samples."""
    ndim = len(grid)
    directions = [signs[k : k + ndim] for k in range(0, len(signs), ndim)]
    tables = ragged_tables([*map(list, valid)], grid, directions, torch.device("cpu"))
    strides = [prod(grid[d + 1 :]) for d in range(ndim)]
    return TileTables(
        tables.starts[1:-1].numpy(),
        tables.order[direction].numpy(),
        tables.predecessors.numpy(),
        tables.successors.numpy(),
        np.multiply(directions[direction], strides).astype(np.int64),
    )


def _corner(tile: Tile, grid: tuple[int, ...], direction: Direction) -> int:
    """The flat position at which a tile begins."""
    corner = 0
    for d, (sign, extent) in enumerate(zip(direction, tile.samples.extents, strict=True)):
        place = tile.start if d == 0 else 0
        corner += (place if sign > 0 else extent - 1 - place) * prod(grid[d + 1 :])
    return corner
