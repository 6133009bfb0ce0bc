"""Tiles of a grid, the jobs that sweep them, and which thread runs what.

Threads share samples or directions where there are enough. Otherwise a grid is swept in *bands* along
axis 0, each as wide as the grid. A band needs the one before it only a little further on than it is itself,
so threads follow each other through the bands. The wavefronts of bands are also shorter: one thread, too,
sweeps in bands where those of the whole grid do not stay in cache. Unlike those of square tiles, all are
equally long but for both ends of a band.

The number of threads decides how a grid and sums of gradients are divided, so the last bits of gradients
depend on it; but not on which thread runs what.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import count, pairwise
from math import prod
from typing import Literal, NamedTuple

import numpy as np
import torch

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.memory import pointer
from mdlstm_tk.backends.cpu.records import Job, address, words
from mdlstm_tk.backends.cpu.threads import Task
from mdlstm_tk.wavefront import Direction, Extents, SweepTables, ragged_tables, tile_tables

# The parts of a sweep that a chain takes: some samples, some directions, or bands in turn.
Division = Literal["samples", "directions", "bands"]
MIN_BAND_GRID = 4096  # rows (position, sample) of a grid that is divided
LONG_WAVEFRONT = 800  # rows of a wavefront, on average, that would not stay in cache
BAND_ROWS = 14  # rows of a wavefront of a band, about, on average
# Floating-point operations, of which a core does 50 to 100 in a nanosecond. Waking a thread takes some
# 50 µs, and beginning a task some 10 µs.
THREAD_OPERATIONS = 20_000_000  # that a thread is woken for
BANDS_OPERATIONS = 100_000_000  # the same to share bands, for which threads wait more often
TASK_OPERATIONS = 100_000_000  # of a task, after which a thread may take another one, or Ctrl-C is noticed
BAND_TASK_OPERATIONS = 20_000_000  # the same of a band, on which another thread waits
MIN_TASK_OPERATIONS = 3_000_000
BAND_TASKS = 4  # tasks of a band, unless they have less than that


class Samples(NamedTuple):
    """Samples first, first + 1, …, which are swept together.

    Attributes:
        grid: the extents.
        first, number: which, and how many.
        valid: for a ragged batch the valid extents of each sample.
    """

    grid: tuple[int, ...]
    first: int
    number: int
    valid: Extents | None = None

    @property
    def rows(self) -> int:
        """The number of rows (position, sample)."""
        return self.number * prod(self.grid) if self.valid is None else sum(map(prod, self.valid))

    @property
    def is_long(self) -> bool:
        """True if wavefronts of the grid would not stay in cache."""
        return self.rows > LONG_WAVEFRONT * (sum(self.grid) - len(self.grid) + 1)

    @property
    def bands(self) -> list[tuple[int, int]]:
        """For each band along axis 0, its start and its extent; a ragged batch is one."""
        grid, samples = self.grid, self.number
        slice_rows = samples * prod(grid[1:])  # at one position along axis 0
        steps = sum(grid[1:]) - len(grid) + 1  # wavefronts of such a slice, less one
        is_small = samples * prod(grid) < MIN_BAND_GRID or slice_rows <= BAND_ROWS
        if self.valid is not None or is_small or steps == 0:  # 0: bands would not shorten wavefronts
            return [(0, grid[0])]
        # A band of height h has slice_rows · h rows in h + steps wavefronts.
        height = max(1, round(BAND_ROWS * steps / (slice_rows - BAND_ROWS)))
        if len(grid) == 2 and samples * height > simd.TILE_ROWS:  # all wavefronts but the outer ones have h
            height = max(1, round(samples * height / simd.TILE_ROWS) * simd.TILE_ROWS // samples)
        return [(start, min(height, grid[0] - start)) for start in range(0, grid[0], height)]


class Buffers(NamedTuple):
    """The most buffers of gradients that chains may have, whatever the number of threads.

    Attributes:
        sums: of the weights.
        dx: of x, where chains add to the same positions.
    """

    sums: int
    dx: int


class Jobs(NamedTuple):
    """The jobs of a sweep.

    Attributes:
        chains: the tasks of each chain.
        order: the first jobs of all tasks, in an order in which one thread may run them.
        sum_count: how many sums each direction has.
        buffers: how many dx there are: chains that add to the same positions have one each.
        longest: rows of the longest wavefront.
        is_tiled: whether states pass from tile to tile.
        is_full: whether all positions are valid.
        memory: all records and tables, to which the jobs hold addresses.
    """

    chains: list[list[Task]]
    order: list[int]
    sum_count: int
    buffers: int
    longest: int
    is_tiled: bool
    is_full: bool
    memory: list[array[int] | SweepTables]


def _divide(
    whole: Samples, dirs: int, operations: int, threads: int, most: Buffers | None
) -> tuple[Division, int, Sequence[Samples]]:
    """The division that keeps most threads busy; of equal ones that by samples, which share least.

    Args:
        whole: all samples.
        dirs: the number of directions.
        operations: floating-point operations of the sweep.
        threads: the largest number of threads.
        most: the most buffers of gradients; None for forward, which has none.

    Returns:
        The division, the number of chains, and the samples that are swept together.
    """
    batch, sums, dx = whole.number, most.sums if most else threads, most.dx if most else threads
    followers = max(1, min(threads, operations // BANDS_OPERATIONS, sums, dx if dirs > 1 else threads))
    threads = max(1, min(threads, operations // THREAD_OPERATIONS))
    sharing_samples, sharing_directions = min(threads, sums, max(batch, 1)), min(threads, dx, dirs)
    if whole.valid is not None:
        return "samples", min(threads, sums), _ragged_ranges(whole, min(threads, sums))
    busy: dict[Division, float] = {  # threads at work, on average
        "samples": batch / -(-batch // sharing_samples),
        "directions": dirs / -(-dirs // sharing_directions),
        "bands": 0.8 * min(followers, (len(whole.bands) + 1) / 2 * dirs),
    }
    division = max(busy, key=lambda name: busy[name])
    if division != "samples" and busy[division] > 1:
        return division, sharing_directions if division == "directions" else followers, [whole]
    limits = pairwise(batch * k // sharing_samples for k in range(sharing_samples + 1))
    return "samples", sharing_samples, [Samples(whole.grid, a, b - a) for a, b in limits]


def make_jobs(
    whole: Samples, directions: tuple[Direction, ...], operations: int, threads: int, most: Buffers | None
) -> Jobs:
    """The jobs of a sweep.

    Args:
        whole: all samples. Bands are those that all have together.
        directions: of the sweep.
        operations: floating-point operations of a row.
        threads: the largest number of threads.
        most: the most buffers of gradients of a sweep that runs from the last position to the first; None
            for one that runs forward.
    """
    grid = whole.grid
    all_operations = whole.rows * len(directions) * operations
    division, chain_count, ranges = _divide(whole, len(directions), all_operations, threads, most)
    backwards = most is not None
    bands = whole.bands if division == "bands" or ranges[0].is_long else [(0, grid[0])]
    bands = bands[:: -1 if backwards else 1]
    sum_count = 1 if division == "directions" else chain_count
    buffers = 1 if division == "samples" or len(directions) == 1 else chain_count
    chains = [_Chain(joins=division != "bands") for _ in range(chain_count)]
    order: list[int] = []
    memory: list[array[int] | SweepTables] = []
    longest, band_numbers = 0, count()
    for range_number, samples in enumerate(ranges):
        for k, direction in enumerate(directions if samples.rows > 0 else ()):
            previous = _SweptBand()
            for start, extent in bands:
                if samples.valid is None:
                    tables, offsets = tile_tables((extent, *grid[1:]), grid, direction), 0
                    first, swept, corner = samples.first, samples.number, _corner(start, grid, direction)
                else:  # one sample, whose positions are those of all
                    tables, offsets = ragged_tables(samples.valid, grid, directions, torch.device("cpu")), k
                    first, swept, corner = 0, 1, samples.first * prod(grid)
                parts = {"samples": range_number, "directions": k, "bands": next(band_numbers)}
                chain = parts[division] % chain_count
                job = Job(
                    direction=k,
                    first_sample=first,
                    samples=swept,
                    corner=corner,
                    begin=0,
                    end=len(tables.counts),
                    starts=pointer("starts", tables.starts[1:]),
                    offsets=pointer("offsets", tables.order[offsets]),
                    predecessors=pointer("predecessors", tables.predecessors),
                    successors=pointer("successors", tables.successors),
                    visits=tables.positions,
                    continues=int(start > 0),
                    chain=chain,
                    sums_index=chain if sum_count > 1 else 0,
                    dx_buffer=chain if buffers > 1 else 0,
                )
                memory.append(tables)
                longest = max(longest, tables.longest * swept)
                limits = [(0, job.end)]
                if chain_count > 1:
                    limits = _cut(tables.counts, swept * operations, division == "bands")
                tasks = []
                for begin, end in limits[:: -1 if backwards else 1]:
                    record = words(job._replace(begin=begin, end=end))
                    memory.append(record)
                    last = begin - extent + 1 if backwards else end + previous.height - 2
                    awaited = previous.chain, previous.tasks_until(last)
                    work = sum(tables.counts[begin:end]) * swept * operations
                    if chains[chain].add(record, work, *awaited):
                        order.append(address(record))
                    tasks.append((begin, end, len(chains[chain].tasks)))
                previous = _SweptBand(chain, extent, tasks)
    return Jobs(
        chains=[chain.tasks for chain in chains],
        order=order,
        sum_count=sum_count,
        buffers=buffers,
        longest=longest,
        is_tiled=len(bands) > 1,
        is_full=whole.valid is None,
        memory=memory,
    )


class _Chain:
    """The tasks of a chain in the making. If it `joins` them, small jobs become one task."""

    def __init__(self, joins: bool) -> None:
        self.tasks: list[Task] = []
        self._joins, self._operations = joins, 0
        self._last: array[int] | None = None

    def add(self, record: array[int], operations: int, awaited_chain: int, awaited_count: int) -> bool:
        """Add a job of so many operations. Returns True if it begins a task, which waits for what `Task`
        says."""
        begins = not self._joins or self._last is None or self._operations + operations > TASK_OPERATIONS
        if begins:
            self.tasks.append(Task(address(record), awaited_chain, awaited_count))
            self._operations = 0
        elif self._last is not None:
            self._last[Job._fields.index("following")] = address(record)
        self._operations += operations
        self._last = record
        return begins


class _SweptBand(NamedTuple):
    """The band that is swept before another one.

    Attributes:
        chain: its chain.
        height: its extent along axis 0.
        tasks: for each task the first wavefront, the one after the last, and the number of tasks of the
            chain that are done after it.
    """

    chain: int = 0
    height: int = 0
    tasks: Sequence[tuple[int, int, int]] = ()

    def tasks_until(self, wavefront: int) -> int:
        """The number of the chain's tasks after which a wavefront of this band is swept; all of the band's
        if it has no such wavefront."""
        if not self.tasks:
            return 0
        return next((n for begin, end, n in self.tasks if begin <= wavefront < end), self.tasks[-1][2])


def _ragged_ranges(whole: Samples, chains: int) -> list[Samples]:
    """A range of samples for each chain, with about the same number of rows each."""
    assert whole.valid is not None
    rows = np.cumsum([0, *map(prod, whole.valid)])
    inner = np.searchsorted(rows, [int(rows[-1]) * k // chains for k in range(1, chains)])
    limits = pairwise([0, *inner.tolist(), whole.number])
    return [Samples(whole.grid, a, b - a, whole.valid[a:b]) for a, b in limits]


def _cut(counts: Sequence[int], operations: int, is_band: bool) -> list[tuple[int, int]]:
    """Ranges of a tile's wavefronts, one for each task.

    Args:
        counts: the visits of each wavefront.
        operations: floating-point operations of a visit.
        is_band: whether another thread sweeps the next band, always one task behind.
    """
    work = np.cumsum([0, *counts]) * operations
    total = int(work[-1])
    tasks = total // TASK_OPERATIONS
    if is_band:
        tasks = max(total // BAND_TASK_OPERATIONS, min(BAND_TASKS, total // MIN_TASK_OPERATIONS))
    limits = np.searchsorted(work, [total * k // tasks for k in range(1, tasks)], side="left")
    return [(a, b) for a, b in pairwise([0, *limits.tolist(), len(counts)]) if a < b]


def _corner(start: int, grid: tuple[int, ...], direction: Direction) -> int:
    """The flat position at which the band begins that is `start` from the near end of axis 0."""
    corner = 0
    for sign, extent in zip(direction, grid, strict=True):
        corner = corner * extent + (start if sign > 0 else extent - 1 - start)
        start = 0
    return corner
