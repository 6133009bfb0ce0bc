"""Windows: blocks of positions whose features are joined."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

SHORT_RUN = 8  # numbers


def space_to_depth(x: Tensor, window: Sequence[int]) -> Tensor:
    """(N, *grid, C) → (N, *⌈grid / window⌉, ∏window · C): the positions of each window, in row-major order,
    become features."""
    ndim = len(window)
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    # The number of windows, not an inferred -1 or `-extent % size`: torch.export would guard extents by the
    # one, and take them for 0 by the other where a maximum over windows follows.
    counts = [(extent + size - 1) // size for extent, size in zip(x.shape[1:-1], window, strict=True)]
    missing = [n * size - e for n, size, e in zip(counts, window, x.shape[1:-1], strict=True)]
    if captured or any(missing):  # torch copies x even if nothing is missing
        x = nn.functional.pad(x, [0, 0, *(amount for m in reversed(missing) for amount in (0, m))])
    for d, size in reversed(list(enumerate(window))):
        x = x.unflatten(1 + d, (counts[d], size))
    if not captured and prod(window[:-1]) > 1 and window[-1] * x.shape[-1] < SHORT_RUN:
        # torch would copy runs of this many numbers, one after another. It takes a quarter of the time to
        # bring the windows of a row to the back first, and then all features of a window.
        x = x.movedim(2 * ndim - 1, -1).contiguous().movedim(-1, 2 * ndim - 1)
    outer = range(1, 2 * ndim, 2)
    inner = range(2, 2 * ndim + 1, 2)
    return x.permute(0, *outer, *inner, 2 * ndim + 1).flatten(1 + ndim)
