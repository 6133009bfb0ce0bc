"""`mdlstm_tk.wavefront`'s tables as tensors, and which positions a sample has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.wavefront import Direction, Indices, grid_cache, visiting_order, wavefronts


@dataclass(frozen=True)
class Tables:
    """A grid's tables on a device.

    Attributes:
        counts: K_t, positions in each wavefront.
        starts: (T + 3,) where each wavefront starts, with wavefronts of no position before and behind:
            wavefront t is from `starts[t + 1]` up to `starts[t + 2]`.
        visit: (dirs, P) flat positions in visiting order.
        unvisit: (dirs, P) its inverse.
        back, ahead: (D, P) the rank one step back or ahead along each axis, or −1.
        places: per wavefront (D, K_t), where in the wavefront before the cells one step back are; where
            there is none, the place behind its last.
    """

    counts: list[int]
    starts: Tensor
    visit: Tensor
    unvisit: Tensor
    back: Tensor
    ahead: Tensor
    places: tuple[Tensor, ...]

    @property
    def positions(self) -> int:
        """P."""
        return self.visit.shape[1]

    @classmethod
    def of(cls, x: Tensor, directions: Sequence[Direction]) -> Tables:
        """The tables of the grid of x (N, *grid, C), on its device."""
        arguments = (tuple(x.shape[1:-1]), tuple(directions), x.device)
        if torch._C._are_functorch_transforms_active():
            return _tables(*arguments)  # what is made within one belongs to it, and is not to be kept
        with torch.inference_mode(False):
            return _kept_tables(*arguments)


def _tables(grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device) -> Tables:
    front = wavefronts(grid)
    counts = np.diff(front.starts).tolist()
    visit = np.stack([visiting_order(grid, direction) for direction in directions])
    starts = np.pad(front.starts, 1, mode="edge")
    before = np.repeat([0, *counts[:-1]], counts)  # (P,) positions in the wavefront before
    places = np.where(front.back < 0, before, front.back - np.repeat([0, *front.starts[:-2]], counts))

    def there(table: Indices) -> Tensor:
        return torch.tensor(table, device=device)

    return Tables(
        counts,
        there(starts),
        there(visit),
        there(np.argsort(visit, axis=1)),
        there(front.back),
        there(front.ahead),
        there(places).split(counts, dim=1),
    )


_kept_tables = grid_cache(_tables)


def valid_mask(grid: Sequence[int], sizes: Tensor) -> Tensor:
    """(N, *grid) bool: does the position lie inside that sample's valid extent?"""
    batch = sizes.shape[0]  # not len(sizes), which is a constant in an export
    inside = sizes.new_ones(batch, *grid, dtype=torch.bool)
    for d, extent in enumerate(grid):
        below = torch.arange(extent, device=sizes.device) < sizes[:, d, None]  # (N, E_d)
        inside = inside & below.view(-1, *(extent if axis == d else 1 for axis in range(len(grid))))
    return inside
