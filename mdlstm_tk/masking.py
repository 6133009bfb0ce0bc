"""Samples of different sizes in one batch: which positions are valid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def valid_mask(grid: Sequence[int], sizes: Tensor) -> Tensor:
    """Whether each position lies inside its sample's valid extents.

    Args:
        grid: the D extents of the padded batch.
        sizes: (N, D) int64, the valid extents of each sample.

    Returns:
        (N, *grid) bool, on the device of `sizes`.
    """
    batch = sizes.shape[0]  # not len(sizes), which is a constant in an export
    valid = sizes.new_ones(batch, *grid, dtype=torch.bool)
    for d, extent in enumerate(grid):
        below = torch.arange(extent, device=sizes.device) < sizes[:, d, None]  # (N, E_d)
        valid = valid & below.view(-1, *(extent if axis == d else 1 for axis in range(len(grid))))
    return valid
