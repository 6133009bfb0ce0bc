"""The jobs of a sweep, and the lanes in which they run.

A job is a band of a grid along axis 0, for some samples, in one direction. Threads share samples, then
directions, then the bands of what is left: a lane is a range of samples, a share of the directions and a
share of the bands. A band needs the one before it only a little further on than it is itself, so lanes
follow each other through the bands. The wavefronts of bands are also shorter: one thread, too, sweeps in
bands where those of the whole grid do not stay in cache.

The number of threads decides how a grid and sums of gradients are divided, so the last bits of gradients
depend on it; but not on which thread runs what.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.records import Job, address, words
from mdlstm_tk.backends.cpu.threads import Task
from mdlstm_tk.wavefront import Direction, Extents, batch_rows

MIN_BAND_GRID = 4096  # rows (position, sample) of a grid that is divided
LONG_WAVEFRONT = 800  # rows of a wavefront, on average, that would not stay in cache
BAND_ROWS = 14  # rows of a wavefront of a band, about, on average
# Floating-point operations, of which a core does 50 to 100 in a nanosecond. Waking a thread takes some
# 50 µs, and beginning a task some 10 µs.
THREAD_OPERATIONS = 20_000_000  # that a thread is woken for
TASK_OPERATIONS = 100_000_000  # of a task, after which a thread may take another one, or Ctrl-C is noticed
BAND_OPERATIONS = 20_000_000  # of a task that another lane waits for; there are at least BAND_TASKS of them
MIN_BAND_OPERATIONS, BAND_TASKS = 3_000_000, 4  # in a band, unless they have less than that


class Jobs(NamedTuple):
    """The jobs of a sweep.

    Attributes:
        lanes: the tasks of each lane.
        order: the jobs in an order in which one thread may run them.
        sums, dx: how many buffers of gradients there are.
        longest: rows of the longest wavefront.
        is_banded: whether states pass from band to band.
        memory: all records and tables, to which the jobs hold addresses.
    """

    lanes: list[list[Task]]
    order: list[int]
    sums: int
    dx: int
    longest: int
    is_banded: bool
    memory: list[Any]


def make_jobs(
    grid: tuple[int, ...],
    samples: int,
    valid: Extents | None,
    directions: tuple[Direction, ...],
    operations: int,
    threads: int,
    most: tuple[int, int] | None,
) -> Jobs:
    """The jobs of a sweep.

    Args:
        grid: the extents.
        samples: N.
        valid: for a ragged batch the valid extents of each sample.
        directions: of the sweep.
        operations: floating-point operations of a row.
        threads: the largest number of threads.
        most: for a sweep that runs from the last position to the first, the most buffers of gradients,
            whatever the number of threads: of the weights, and of x, to whose positions all directions add.
            None for one that runs forward.
    """
    sums, dx = most or (threads, threads)
    rows = [0, *([prod(grid)] * samples if valid is None else map(prod, valid))]
    ends = np.cumsum(rows)
    threads = max(1, min(threads, int(ends[-1]) * len(directions) * operations // THREAD_OPERATIONS))
    ranges = max(1, min(threads, samples, sums))
    shares = min(threads // ranges, len(directions), dx)
    cuts = np.searchsorted(ends, [int(ends[-1]) * k // ranges for k in range(1, ranges)])
    limits = [0, *cuts.tolist(), samples]
    is_long = limits[1] * prod(grid) > LONG_WAVEFRONT * (sum(grid) - len(grid) + 1)
    bands, followers = [(0, grid[0])], 1
    if valid is None and (is_long or threads >= 2 * ranges * shares):
        bands = bands_of(grid, limits[1])
    if shares == len(directions):  # else lanes would add to one dx in two directions
        followers = max(1, min(threads // (ranges * shares), (len(bands) + 1) // 2, sums // ranges))
    step = 1 if most is None else -1
    lanes: list[list[Task]] = [[] for _ in range(ranges * shares * followers)]
    order, memory, longest = [], list[Any](), 0
    for r, (first, last) in enumerate(pairwise(limits)):
        for k, direction in enumerate(directions if ends[last] > ends[first] else ()):
            before = 0, 0, [(0, 0, 0)]  # lane, height; begin, end and number of each task: the band before
            for b, (start, height) in enumerate(bands[::step]):
                whole = ((height, *grid[1:]),) * (last - first)
                table = batch_rows(whole if valid is None else valid[first:last], grid, directions)
                corner = start if direction[0] > 0 or valid is not None else grid[0] - start - height
                counts = np.diff(table.starts)
                lane = (r * shares + k % shares) * followers + b % followers
                job = Job(
                    direction=k,
                    corner=first * prod(grid) + corner * prod(grid[1:]),
                    begin=0,
                    end=len(counts),
                    starts=table.starts.ctypes.data,
                    offsets=table.order[k].ctypes.data,
                    predecessors=table.predecessors.ctypes.data,
                    successors=table.successors.ctypes.data,
                    rows=len(table.order[k]),
                    continues=int(start > 0),
                    lane=lane,
                    sums=r * followers + b % followers,
                    dx=k % shares,
                )
                memory.append(table)
                longest = max(longest, int(counts.max()))
                work = table.starts * operations
                done = []
                for begin, end in _tasks(work, followers > 1)[::step]:
                    record = words(job._replace(begin=begin, end=end))
                    memory.append(record)
                    awaited = 0, 0
                    if followers > 1 and b > 0:
                        other, extent, tasks = before
                        wave = end + extent - 2 if step > 0 else begin - height + 1
                        reached = (n for s, e, n in tasks if s <= wave < e)
                        awaited = other, next(reached, tasks[-1][2])
                    order.append(address(record))
                    lanes[lane].append(Task(order[-1], *awaited))
                    done.append((begin, end, len(lanes[lane])))
                before = lane, height, done
    return Jobs(lanes, order, ranges * followers, shares, longest, len(bands) > 1, memory)


def bands_of(grid: tuple[int, ...], samples: int) -> list[tuple[int, int]]:
    """(start, height) of each band along axis 0: bands whose wavefronts have about BAND_ROWS rows."""
    slice_rows = samples * prod(grid[1:])  # at one position along axis 0
    steps = sum(grid[1:]) - len(grid) + 1  # wavefronts of such a slice, less one
    if samples * prod(grid) < MIN_BAND_GRID or slice_rows <= BAND_ROWS or steps == 0:
        return [(0, grid[0])]
    # A band of height h has slice_rows · h rows in h + steps wavefronts.
    height = max(1, round(BAND_ROWS * steps / (slice_rows - BAND_ROWS)))
    if len(grid) == 2 and samples * height > simd.TILE_ROWS:  # all wavefronts but the outer ones have h
        height = max(1, round(samples * height / simd.TILE_ROWS) * simd.TILE_ROWS // samples)
    return [(start, min(height, grid[0] - start)) for start in range(0, grid[0], height)]


def _tasks(work: Any, is_awaited: bool) -> list[tuple[int, int]]:
    """Ranges of a band's wavefronts, one for each task, from the operations before each wavefront."""
    total = int(work[-1])
    parts = max(1, total // TASK_OPERATIONS)
    if is_awaited:
        parts = max(1, total // BAND_OPERATIONS, min(BAND_TASKS, total // MIN_BAND_OPERATIONS))
    cuts = np.searchsorted(work, [total * k // parts for k in range(1, parts)]).tolist()
    return list(pairwise(sorted({0, len(work) - 1, *cuts})))
