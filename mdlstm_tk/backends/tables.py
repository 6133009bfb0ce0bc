"""The order of a sweep and its neighbours (`mdlstm_tk.wavefront`) as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.caches import BoundedCache
from mdlstm_tk.wavefront import Direction, visiting_order, wavefronts

Key = tuple[tuple[int, ...], tuple[Direction, ...], torch.device]


@dataclass(frozen=True)
class SweepTables:
    """What a sweep in one or more directions needs to know of its grid.

    Tables of positions and visit indices are int32 if P < 2³¹, else int64.

    Attributes:
        grid: the extents.
        counts: K_t, the number of positions of each of the T wavefronts.
        starts: (T + 3,) int64, where each wavefront starts in visiting order, with an empty wavefront added
            before the first and after the last: wavefront t is from `starts[t + 1]` up to `starts[t + 2]`.
        order: (dirs, P) flat positions in visiting order.
        predecessors, successors: (D, P) the visit index one step back or forward along each axis, or −1.
    """

    grid: tuple[int, ...]
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
        """The number of positions of the longest wavefront."""
        return max(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables, of those too that are made when they are first used."""
        made_later = self.order.nbytes + self.predecessors.nbytes
        tables = (self.starts, self.order, self.predecessors, self.successors)
        return sum(table.nbytes for table in tables) + made_later

    @cached_property
    def inverse_order(self) -> Tensor:
        """(dirs, P) the visit index of each flat position."""
        with torch.inference_mode(False):
            visits = torch.arange(self.positions, dtype=self.order.dtype, device=self.order.device)
            inverse = torch.empty_like(self.order)
            return inverse.scatter_(1, self.order.long(), visits.expand_as(self.order))

    @cached_property
    def previous(self) -> tuple[Tensor, ...]:
        """For each wavefront (D, K_t), the index of the predecessors within the previous wavefront; outside
        the grid, the index just after its last."""
        front = wavefronts(self.grid)
        index = [front.previous(t) for t in range(len(front))]
        counts = [0, *self.counts[:-1]]
        joined = np.concatenate([np.where(i < 0, k, i) for i, k in zip(index, counts, strict=True)], axis=1)
        with torch.inference_mode(False):
            rows = torch.tensor(joined, dtype=self.order.dtype, device=self.order.device)
            parts: tuple[Tensor, ...] = rows.split(self.counts, dim=1)
        return parts


def sweep_tables(
    grid: tuple[int, ...], directions: Sequence[Direction], device: torch.device
) -> SweepTables:
    """The tables of a grid on a device (cached)."""
    key = grid, tuple(directions), device
    if torch._C._are_functorch_transforms_active():
        return _make_tables(*key)  # a tensor made inside a transform belongs to it and must not be cached
    tables = _cache.get(key)
    if tables is None:
        with torch.inference_mode(False):
            tables = _make_tables(*key)
        _cache.add(key, tables, tables.nbytes)
    return tables


def _make_tables(
    grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device
) -> SweepTables:
    front = wavefronts(grid)
    order = np.stack([visiting_order(grid, direction) for direction in directions])
    return SweepTables(
        grid,
        np.diff(front.starts).tolist(),
        torch.from_numpy(np.pad(front.starts, 1, mode="edge")).to(device),
        torch.from_numpy(order.astype(front.order.dtype)).to(device),
        torch.from_numpy(front.predecessors).to(device),
        torch.from_numpy(front.successors).to(device),
    )


_cache: BoundedCache[Key, SweepTables] = BoundedCache(64 << 20)
