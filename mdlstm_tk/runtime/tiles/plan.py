"""In which order tiles run: the plan of a tiled run, which depends on shapes alone.

A tile needs the faces of its predecessor tiles, so the tiles on one anti-diagonal, counted from the corner
that a sweep starts from, are independent. The steps of a plan come one after the other; the groups of a
step are independent, too:

step 0   tile (0, 0) of the first sweep
step 1   tiles (0, 1) and (1, 0)
…
step s   anti-diagonal s of the first sweep, and anti-diagonal s − start of the next one, which starts as
         soon as each tile that it takes has been finished by the sweep before

Where directions turn one axis at a time, a sweep starts while the one before still ends, and there are
about as many tiles in each step as the grid has along that axis.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

from mdlstm_tk.errors import Argument, InputError

Tile = tuple[int, ...]  # indices of a tile along each axis
Region = tuple[slice, ...]


class Group(NamedTuple):
    """Tiles of one shape that run in one batch of a sweep, by their indices: the unit of work. Sweeps are
    counted in the order in which they run."""

    sweep: int
    tiles: tuple[Tile, ...]


class Tiling:
    """How a grid is cut into tiles.

    Stage s takes level s, and the last stage makes the last level. A tile is the same part of the picture
    at each level: its extents at level 0 are multiples of all windows together, but at the far end.

    Args:
        grid: extents of the input.
        tile: extents of a tile of the input. They are rounded down to a multiple of the windows, and up to
            one of them.
        windows: of the stages.
    """

    def __init__(self, grid: Sequence[int], tile: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        total = [prod(window[d] for window in windows) for d in range(len(grid))]
        inner = [
            min(max(size // unit, 1), -(-extent // unit)) * unit
            for size, unit, extent in zip(tile, total, grid, strict=True)
        ]
        self.extents: list[tuple[int, ...]] = [tuple(grid)]
        self.tile_extents: list[tuple[int, ...]] = [tuple(inner)]
        for window in windows:
            self.extents.append(tuple(-(-e // w) for e, w in zip(self.extents[-1], window, strict=True)))
            self.tile_extents.append(
                tuple(t // w for t, w in zip(self.tile_extents[-1], window, strict=True))
            )
        self.counts = tuple(-(-e // t) for e, t in zip(grid, inner, strict=True))

    def region(self, level: int, tile: Tile) -> Region:
        """The part of the grid at a level that a tile covers."""
        return tuple(
            slice(i * size, min((i + 1) * size, extent))
            for i, size, extent in zip(tile, self.tile_extents[level], self.extents[level], strict=True)
        )

    def shape(self, level: int, tile: Tile) -> tuple[int, ...]:
        """The extents of a tile at a level."""
        return shape_of(self.region(level, tile))

    def tiles(self) -> Iterator[Tile]:
        """All tiles in the order of the grid."""
        return product(*map(range, self.counts))


def shape_of(region: Region) -> tuple[int, ...]:
    """The extents of a region."""
    return tuple(part.stop - part.start for part in region)


def tile_extents(tile: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """The extents of a tile, from one number for all axes or one for each."""
    try:
        extents = tuple(map(operator.index, tile if isinstance(tile, Sequence) else (tile,) * ndim))
    except TypeError:  # a fraction or a text
        extents = ()
    if len(extents) != ndim or min(extents) < 1:
        expected = f"tile must be a positive integer, or {ndim} of them, got {tile}; try "
        raise InputError(expected, Argument("tile", 512))
    return extents


def run_order(directions: Sequence[Sequence[int]]) -> list[int]:
    """The order in which the sweeps of one stage run: each direction turns as few axes as it can."""

    def rank(k: int) -> int:
        value = 0
        for sign in directions[k]:  # decodes a Gray code
            value = 2 * value + ((value & 1) ^ (sign < 0))
        return value

    return sorted(range(len(directions)), key=rank)


@dataclass(frozen=True)
class Plan:
    """The steps of a run: how the grid is cut, the stage and the direction of each sweep in the order in
    which they run, and the most tiles in a group."""

    tiling: Tiling
    sweeps: tuple[tuple[int, tuple[int, ...]], ...]
    batch_size: int

    @cached_property
    def starts(self) -> list[int]:
        """The step in which each sweep starts."""
        starts = [0]
        for (_, before), (_, direction) in pairwise(self.sweeps):
            axes = zip(before, direction, self.tiling.counts, strict=True)
            starts.append(starts[-1] + 1 + sum(n - 1 for old, new, n in axes if old != new))
        return starts

    @property
    def step_count(self) -> int:
        """The number of steps."""
        return self.starts[-1] + self._diagonals

    @property
    def tile_count(self) -> int:
        """The number of tiles that are swept, all sweeps together."""
        return prod(self.tiling.counts) * len(self.sweeps)

    def groups(self, step: int) -> list[Group]:
        """The groups of a step, the largest first, so that threads end at about the same time."""
        groups: list[Group] = []
        for sweep, start in enumerate(self.starts):
            if 0 <= step - start < self._diagonals:
                groups += self._diagonal(sweep, step - start)
        return sorted(groups, key=lambda group: -len(group.tiles))  # stable: the order is fixed

    def successor(self, sweep: int, tile: Tile, axis: int) -> Tile | None:
        """The next tile along an axis in the direction of a sweep; None at the border."""
        index = tile[axis] + self.sweeps[sweep][1][axis]
        if not 0 <= index < self.tiling.counts[axis]:
            return None
        return (*tile[:axis], index, *tile[axis + 1 :])

    @property
    def _diagonals(self) -> int:
        return sum(self.tiling.counts) - len(self.tiling.counts) + 1

    def _diagonal(self, sweep: int, number: int) -> Iterator[Group]:
        """The groups on one anti-diagonal: tiles of equal shape in batches of about equal size."""
        stage, direction = self.sweeps[sweep]
        counts = self.tiling.counts
        tiles_by_shape: dict[tuple[int, ...], list[Tile]] = {}
        for front in product(*map(range, counts[:-1])):
            last = number - sum(front)
            if 0 <= last < counts[-1]:
                steps = zip((*front, last), direction, counts, strict=True)
                tile = tuple(i if sign > 0 else n - 1 - i for i, sign, n in steps)
                tiles_by_shape.setdefault(self.tiling.shape(stage, tile), []).append(tile)
        for tiles in tiles_by_shape.values():
            batches = -(-len(tiles) // self.batch_size)
            ends = [round(k * len(tiles) / batches) for k in range(batches + 1)]
            for first, end in pairwise(ends):
                yield Group(sweep, tuple(tiles[first:end]))
