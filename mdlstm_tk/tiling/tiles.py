"""The tiles of a grid, and the states on the faces between them.

A sweep visits tiles in an order in which the predecessors of a tile, one tile back along each axis, come
before it. The *front* separates the tiles that were visited from the others: on each line of positions
along each axis it is the place where the sweep enters the next tile of that line. So one hyperplane for
each axis is enough to hold the states of a front, however many tiles there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from mdlstm_tk.backends.boundary import line_counts, split_faces
from mdlstm_tk.wavefront import Direction


class Tile(NamedTuple):
    """A part of a grid.

    Attributes:
        offsets: for each axis, the number of tiles between it and the corner that the sweep starts from.
        ranges: for each axis, its positions in the grid.
    """

    offsets: tuple[int, ...]
    ranges: tuple[slice, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Its extents."""
        return tuple(positions.stop - positions.start for positions in self.ranges)

    def of(self, tensor: Tensor) -> Tensor:
        """Its part of a tensor (N, *grid, …), a view."""
        return tensor[(slice(None), *self.ranges)]


def cut(grid: Sequence[int], extents: Sequence[int], direction: Direction) -> list[Tile]:
    """The tiles of a grid, in an order in which a sweep can visit them.

    Args:
        grid: the extents of the grid.
        extents: extents of a tile. Tiles at the far ends are smaller where they do not divide the grid.
        direction: of the sweep.
    """
    axes = []
    for total, extent, sign in zip(grid, extents, direction, strict=True):
        ranges = [slice(start, min(start + extent, total)) for start in range(0, total, extent)]
        axes.append(list(enumerate(ranges[::sign])))
    return [
        Tile(tuple(offset for offset, _ in axis), tuple(positions for _, positions in axis))
        for axis in product(*axes)
    ]


class Front:
    """The states, or gradients of states, of a front.

    They start as those on the faces of the whole grid. A tile reads its part and overwrites it with the
    states that leave the tile. After the last tile `boundary` is again that of the whole grid.

    Args:
        boundary: (N, F, 1, 1 + S, n), where the first tiles enter.
        grid: the extents of the whole grid.
    """

    def __init__(self, boundary: Tensor, grid: Sequence[int]) -> None:
        self.boundary = boundary.clone(memory_format=torch.contiguous_format)
        self._faces = split_faces(self.boundary, grid)

    def read(self, tile: Tile) -> Tensor:
        """The states at the faces of a tile, copied."""
        parts = [face[_lines(tile, d)] for d, face in enumerate(self._faces)]
        lines = [part.reshape(len(part), prod(part.shape[1:-3]), *part.shape[-3:]) for part in parts]
        return torch.cat(lines, dim=1)

    def write(self, tile: Tile, boundary: Tensor) -> None:
        """Overwrite the states at the faces of a tile."""
        for d, part in enumerate(boundary.split(line_counts(tile.grid), dim=1)):
            target = self._faces[d][_lines(tile, d)]
            target.copy_(part.reshape(target.shape))

    def clear(self, tile: Tile, d: int, samples: Tensor) -> None:
        """Put zeros onto the face of axis d of a tile, of the `samples` (N,) that are True."""
        face = self._faces[d][_lines(tile, d)]
        face.masked_fill_(samples.view(-1, *[1] * (face.dim() - 1)), 0)


def _lines(tile: Tile, d: int) -> tuple[slice, ...]:
    """The lines of a tile along axis d, an index of the face of that axis."""
    return (slice(None), *tile.ranges[:d], *tile.ranges[d + 1 :])
