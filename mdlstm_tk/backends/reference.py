"""The sweep cell by cell, as the equations are written, differentiated by autograd.

Slow on purpose: this is the truth that every other path is held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.cells.equations import Cell
from mdlstm_tk.cells.step import CellParameters, cell_step
from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import Direction

Position = tuple[int, ...]


def forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    parameters: CellParameters,
    sizes: Tensor | None,
    directions: Sequence[Direction],
    cell: Cell,
) -> Tensor:
    """Arguments as `mdlstm_tk.operator.wavefront`; returns h (N, *grid, dirs, n)."""
    if 0 in x.shape[1:-1]:
        raise InputError(f"a grid needs extents of at least 1, got {tuple(x.shape[1:-1])}")
    outputs = [
        _sweep(
            x,
            weight_ih[k],
            weight_hh[k],
            None if bias is None else bias[k],
            parameters.map(itemgetter(k)),
            sizes,
            direction,
            cell,
        )
        for k, direction in enumerate(directions)
    ]
    return torch.stack(outputs, dim=-2)  # (N, *grid, dirs, n)


def _sweep(
    x: Tensor,  # (N, *grid, C)
    weight_ih: Tensor,  # (G·n, C)
    weight_hh: Tensor,  # (D, G·n, n)
    bias: Tensor | None,  # (G·n)
    parameters: CellParameters,
    sizes: Tensor | None,  # (N, D)
    direction: Direction,
    cell: Cell,
) -> Tensor:
    batch, *grid, _ = x.shape
    ndim, units = len(grid), weight_hh.shape[-1]
    zero = x.new_zeros(batch, units)
    h: dict[Position, Tensor] = {}
    c: dict[Position, Tensor] = {}
    for step in np.ndindex(*grid):  # how far the sweep has come along each axis
        position = _position(step, grid, direction)
        at: Any = (slice(None), *position)
        a = x[at] @ weight_ih.T  # (N, G·n)
        if bias is not None:
            a = a + bias
        states = []
        for d in range(ndim):
            back = _position((*step[:d], step[d] - 1, *step[d + 1 :]), grid, direction)
            if step[d] > 0:
                a = a + h[back] @ weight_hh[d].T
            states.append(c[back] if step[d] > 0 else zero)
        gates = a.unflatten(-1, (-1, units)).unbind(-2)
        h[position], c[position], _ = cell_step(cell, gates, states, parameters)
        if sizes is not None:
            inside = (torch.tensor(position, device=sizes.device) < sizes).all(dim=1, keepdim=True)
            h[position] = torch.where(inside, h[position], zero)
            c[position] = torch.where(inside, c[position], zero)
    rows = [h[position] for position in np.ndindex(*grid)]
    return torch.stack(rows, dim=1).reshape(batch, *grid, units)


def _position(step: Position, grid: Sequence[int], direction: Direction) -> Position:
    """The position in the grid that a sweep in `direction` reaches after `step` steps."""
    return tuple(
        index if sign > 0 else extent - 1 - index
        for index, extent, sign in zip(step, grid, direction, strict=True)
    )
