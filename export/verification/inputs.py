"""Inputs to compare a model and its network on."""

from __future__ import annotations

import numpy as np

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.export.verification.parity import Float32Array


def random_inputs(
    grid: tuple[int, ...], channels: int, seed: int = 0, channels_last: bool = True
) -> dict[str, Float32Array]:
    """Standard normal inputs by name: a batch of 1 and a batch of 3.

    Each is (N, *grid, C), or (N, C, *grid) if `channels_last` is false.
    """
    rng = np.random.default_rng(seed)
    shape = (*grid, channels) if channels_last else (channels, *grid)
    return {
        f"random × {batch}": rng.standard_normal((batch, *shape)).astype(np.float32) for batch in (1, 3)
    }


def task_inputs(task: str | None, grid: tuple[int, ...], seed: int = 0) -> dict[str, Float32Array]:
    """Samples of the task that a network was trained on, by name: a batch of 1 and a batch of 7.

    Only the diagonal task can make samples of any size (from 3×3 on); for other tasks, and for smaller
    grids, the result is empty.
    """
    if task != "diagonal" or min(grid) < 3:
        return {}
    return {f"task × {count}": DiagonalTask(grid).batch(seed, 0, count, "validation").x for count in (1, 7)}


def odd_grids(ndim: int) -> list[tuple[int, ...]]:
    """Grids that tend to reveal errors: elongated along each axis, a single position, a single row."""
    elongated = (5, 8, 3, 2, *(1,) * ndim)[:ndim]
    row = (1,) * (ndim - 1) + (7,)
    return sorted({elongated, elongated[::-1], (1,) * ndim, row, row[::-1]})
