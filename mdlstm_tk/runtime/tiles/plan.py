"""In which order tiles run: the plan of a tiled run, which depends on shapes alone.

A tile needs the faces of its predecessor tiles, so the tiles on one anti-diagonal, counted from the corner
that a sweep starts from, are independent. The steps of a plan come one after the other; the groups of a
step are independent, too:

step s   anti-diagonal s of the first sweep, and anti-diagonal s − start of the next one, which starts as
         soon as each tile that it takes has been finished by the sweep before
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

from mdlstm_tk.io.metadata import Extents
from mdlstm_tk.runtime.tiles.archive import Sweep

Tile = tuple[int, ...]  # indices of a tile along each axis
Region = tuple[slice, ...]


class Group(NamedTuple):
    """Tiles of one shape that run in one batch of a sweep, by its place in the order: the unit of work."""

    sweep: int
    tiles: tuple[Tile, ...]


class Plan:
    """The tiles that a grid is cut into, and the steps in which they run.

    Stage s takes level s, and the last stage makes the last level. A tile is the same part of the picture
    at each level: its extents at level 0 are multiples of all windows together, but at the far end.

    Args:
        grid: extents of the input.
        tile: extent of a tile along each axis, which is rounded to a multiple of the windows.
        windows: of the stages.
        sweeps: of all stages, in the order in which they run.
        batch_size: the most tiles in a group.

    Attributes:
        extents, tile_extents: of the grid and of a tile at each level.
        counts: numbers of tiles along each axis.
        steps: the groups of each step, the largest first, so that threads end at about the same time.
    """

    def __init__(
        self, grid: Extents, tile: int, windows: Sequence[Extents], sweeps: Sequence[Sweep], batch_size: int
    ) -> None:
        self.sweeps = sweeps
        units = [prod(window[d] for window in windows) for d in range(len(grid))]
        pairs = zip(units, grid, strict=True)
        inner = tuple(min(max(tile // unit, 1), -(-extent // unit)) * unit for unit, extent in pairs)
        self.extents, self.tile_extents = [tuple(grid)], [inner]
        for window in windows:
            self.extents.append(tuple(-(-e // w) for e, w in zip(self.extents[-1], window, strict=True)))
            self.tile_extents.append(
                tuple(t // w for t, w in zip(self.tile_extents[-1], window, strict=True))
            )
        self.counts = tuple(-(-e // t) for e, t in zip(grid, inner, strict=True))
        starts, diagonals = [0], sum(self.counts) - len(self.counts) + 1
        for before, after in pairwise(sweeps):
            axes = zip(before.direction, after.direction, self.counts, strict=True)
            starts.append(starts[-1] + 1 + sum(n - 1 for old, new, n in axes if old != new))
        steps: list[list[Group]] = [[] for _ in range(starts[-1] + diagonals)]
        for sweep, start in enumerate(starts):
            for number in range(diagonals):
                steps[start + number] += self._diagonal(sweep, number, batch_size)
        self.steps = [sorted(groups, key=lambda group: -len(group.tiles)) for groups in steps]

    def region(self, level: int, tile: Tile) -> Region:
        """The part of the grid at a level that a tile covers."""
        parts = zip(tile, self.tile_extents[level], self.extents[level], strict=True)
        return tuple(slice(i * size, min((i + 1) * size, extent)) for i, size, extent in parts)

    def following(self, sweep: int, tile: Tile, axis: int) -> Tile | None:
        """The next tile along an axis in the direction of a sweep; None beyond the border."""
        index = tile[axis] + self.sweeps[sweep].direction[axis]
        return (*tile[:axis], index, *tile[axis + 1 :]) if 0 <= index < self.counts[axis] else None

    def _diagonal(self, sweep: int, number: int, batch_size: int) -> Iterator[Group]:
        """The groups on one anti-diagonal: tiles of equal shape."""
        by_shape: dict[Extents, list[Tile]] = {}
        for first in product(*map(range, self.counts[:-1])):
            last = number - sum(first)
            if 0 <= last < self.counts[-1]:
                signs = zip((*first, last), self.sweeps[sweep].direction, self.counts, strict=True)
                tile = tuple(i if sign > 0 else n - 1 - i for i, sign, n in signs)
                shape = extents_of(self.region(self.sweeps[sweep].stage, tile))
                by_shape.setdefault(shape, []).append(tile)
        for tiles in by_shape.values():
            size = -(-len(tiles) // -(-len(tiles) // batch_size))  # batches of about equal size
            yield from (Group(sweep, tuple(tiles[i : i + size])) for i in range(0, len(tiles), size))


def extents_of(region: Region) -> Extents:
    return tuple(part.stop - part.start for part in region)
