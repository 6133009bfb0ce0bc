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
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

from mdlstm_tk.errors import Argument, InputError

Tile = tuple[int, ...]  # indices of a tile along each axis
Region = tuple[slice, ...]


class Sweep(NamedTuple):
    """One direction of a stage.

    Attributes:
        file: the name of its graph in the archive.
        direction: a sign for each axis.
        stage, position: the number of the stage, and the place of its part among the features of the stage.
    """

    file: str
    direction: tuple[int, ...]
    stage: int = 0
    position: int = 0

    @property
    def rank(self) -> int:
        """The place in the order in which the sweeps of a stage run: each direction turns as few axes as it
        can."""
        value = 0
        for sign in self.direction:  # decodes a Gray code
            value = 2 * value + ((value & 1) ^ (sign < 0))
        return value


class Group(NamedTuple):
    """Tiles of one shape that run in one batch of a sweep, by their indices: the unit of work. Sweeps are
    counted in the order in which they run."""

    sweep: int
    tiles: tuple[Tile, ...]


class Plan:
    """How a grid is cut into tiles, and the steps in which they run.

    Stage s takes level s, and the last stage makes the last level. A tile is the same part of the picture
    at each level: its extents at level 0 are multiples of all windows together, but at the far end.

    Args:
        grid: extents of the input.
        tile: extents of a tile of the input. They are rounded down to a multiple of the windows, and up to
            one of them.
        windows: of the stages.
        sweeps: of all stages, in the order in which they run.
        batch_size: the most tiles in a group.

    Attributes:
        extents, tile_extents: of the grid and of a tile at each level.
        counts: numbers of tiles along each axis.
        starts: the step in which each sweep starts.
        step_count: the number of steps.
        tile_count: the number of tiles that are swept, all sweeps together.
    """

    def __init__(
        self,
        grid: Sequence[int],
        tile: Sequence[int],
        windows: Sequence[Sequence[int]],
        sweeps: Sequence[Sweep],
        batch_size: int,
    ) -> None:
        self.sweeps, self.batch_size = tuple(sweeps), batch_size
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
        self.starts = [0]
        for before, after in pairwise(self.sweeps):
            axes = zip(before.direction, after.direction, self.counts, strict=True)
            self.starts.append(self.starts[-1] + 1 + sum(n - 1 for old, new, n in axes if old != new))
        self._diagonals = sum(self.counts) - len(self.counts) + 1
        self.step_count = self.starts[-1] + self._diagonals
        self.tile_count = prod(self.counts) * len(self.sweeps)

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

    def neighbour(self, sweep: int, tile: Tile, axis: int, steps: int) -> Tile | None:
        """The tile so many steps further along an axis in the direction of a sweep; None beyond the
        border."""
        index = tile[axis] + steps * self.sweeps[sweep].direction[axis]
        return (*tile[:axis], index, *tile[axis + 1 :]) if 0 <= index < self.counts[axis] else None

    def groups(self, step: int) -> list[Group]:
        """The groups of a step, the largest first, so that threads end at about the same time."""
        groups: list[Group] = []
        for sweep, start in enumerate(self.starts):
            if 0 <= step - start < self._diagonals:
                groups += self._diagonal(sweep, step - start)
        return sorted(groups, key=lambda group: -len(group.tiles))  # stable: the order is fixed

    def _diagonal(self, sweep: int, number: int) -> Iterator[Group]:
        """The groups on one anti-diagonal: tiles of equal shape in batches of about equal size."""
        stage, direction, counts = self.sweeps[sweep].stage, self.sweeps[sweep].direction, self.counts
        tiles_by_shape: dict[tuple[int, ...], list[Tile]] = {}
        for first in product(*map(range, counts[:-1])):
            last = number - sum(first)
            if 0 <= last < counts[-1]:
                steps = zip((*first, last), direction, counts, strict=True)
                tile = tuple(i if sign > 0 else n - 1 - i for i, sign, n in steps)
                tiles_by_shape.setdefault(self.shape(stage, tile), []).append(tile)
        for tiles in tiles_by_shape.values():
            batches = -(-len(tiles) // self.batch_size)
            ends = [round(k * len(tiles) / batches) for k in range(batches + 1)]
            for first_tile, end in pairwise(ends):
                yield Group(sweep, tuple(tiles[first_tile:end]))


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
