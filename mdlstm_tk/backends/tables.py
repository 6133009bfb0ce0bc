"""The order of a sweep and its neighbours (`mdlstm_tk.wavefront`) as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.wavefront import Direction, Indices, grid_cache, visiting_order, wavefronts


@dataclass(frozen=True)
class SweepTables:
    """What a sweep in one or more directions needs to know of its grid.

    Attributes:
        grid: the extents.
        counts: K_t, the number of positions of each of the T wavefronts.
        starts: (T + 3,) where each wavefront starts in visiting order, with an empty wavefront added before
            the first and after the last: wavefront t is from `starts[t + 1]` up to `starts[t + 2]`.
        order: (dirs, P) flat positions in visiting order.
        inverse_order: (dirs, P) the visit index of each flat position.
        predecessors, successors: (D, P) the visit index one step back or forward along each axis, or −1.
    """

    grid: tuple[int, ...]
    counts: list[int]
    starts: Tensor
    order: Tensor
    inverse_order: Tensor
    predecessors: Tensor
    successors: Tensor

    @property
    def positions(self) -> int:
        """P."""
        return self.order.shape[1]

    @property
    def longest(self) -> int:
        """The number of positions of the longest wavefront."""
        return max(self.counts)

    @cached_property
    def previous(self) -> tuple[Tensor, ...]:
        """For each wavefront (D, K_t), the index of the predecessors within the previous wavefront; outside
        the grid, the index just after its last."""
        front = wavefronts(self.grid)
        index = [front.previous(t) for t in range(len(front))]
        counts = [0, *self.counts[:-1]]
        joined = np.concatenate([np.where(i < 0, k, i) for i, k in zip(index, counts, strict=True)], axis=1)
        parts: tuple[Tensor, ...] = torch.tensor(joined, device=self.starts.device).split(
            self.counts, dim=1
        )
        return parts


def sweep_tables(x: Tensor, directions: Sequence[Direction]) -> SweepTables:
    """The tables of the grid of x (N, *grid, C), on its device (cached)."""
    arguments = (tuple(x.shape[1:-1]), tuple(directions), x.device)
    if torch._C._are_functorch_transforms_active():
        return make_tables(
            *arguments
        )  # a tensor made inside a transform belongs to it and must not be cached
    with torch.inference_mode(False):
        return _cached_tables(*arguments)


def make_tables(
    grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device
) -> SweepTables:
    """The tables of one grid."""
    front = wavefronts(grid)
    order = np.stack([visiting_order(grid, direction) for direction in directions])

    def on_device(table: Indices) -> Tensor:
        return torch.tensor(table, device=device)

    return SweepTables(
        grid,
        np.diff(front.starts).tolist(),
        on_device(np.pad(front.starts, 1, mode="edge")),
        on_device(order),
        on_device(np.argsort(order, axis=1)),
        on_device(front.predecessors),
        on_device(front.successors),
    )


_cached_tables = grid_cache(make_tables)
