"""Windows: blocks of positions whose features are joined."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def space_to_depth(x: Tensor, window: Sequence[int]) -> Tensor:
    """(N, *grid, C) → (N, *⌈grid / window⌉, ∏window · C): the positions of each window, in row-major order,
    become features."""
    ndim = len(window)
    missing = [-extent % size for extent, size in zip(x.shape[1:-1], window, strict=True)]
    padding = [0, 0, *(amount for m in reversed(missing) for amount in (0, m))]
    x = nn.functional.pad(x, padding)
    for d, size in reversed(list(enumerate(window))):
        x = x.unflatten(1 + d, (-1, size))
    outer = range(1, 2 * ndim, 2)
    inner = range(2, 2 * ndim + 1, 2)
    return x.permute(0, *outer, *inner, 2 * ndim + 1).flatten(1 + ndim)
