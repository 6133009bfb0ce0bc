"""The sweep position by position, as the equations are written, differentiated by autograd.

Slow on purpose: this is the truth that every other backend is held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.step import cell_step
from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import Direction

Position = tuple[int, ...]


def forward(inputs: SweepInputs) -> Tensor:
    """h (N, *grid, dirs, n)."""
    if 0 in inputs.grid:
        raise InputError(f"a grid needs extents of at least 1, got {inputs.grid}")
    outputs = [_sweep(inputs, k, direction) for k, direction in enumerate(inputs.directions)]
    return torch.stack(outputs, dim=-2)


def _sweep(inputs: SweepInputs, k: int, direction: Direction) -> Tensor:
    """h (N, *grid, n) of direction number k."""
    cell, x, sizes = get_cell(inputs.cell), inputs.x, inputs.sizes
    batch, *grid, _ = x.shape
    ndim, units = inputs.ndim, inputs.units
    parameters = inputs.parameters.map(itemgetter(k))
    zero = x.new_zeros(batch, units)
    h: dict[Position, Tensor] = {}
    c: dict[Position, Tensor] = {}
    for step in np.ndindex(*grid):  # how far the sweep has come along each axis
        position = _position(step, grid, direction)
        index: Any = (slice(None), *position)
        a = x[index] @ inputs.weight_ih[k].T  # (N, G·n)
        if inputs.bias is not None:
            a = a + inputs.bias[k]
        states = []
        for d in range(ndim):
            predecessor = _position((*step[:d], step[d] - 1, *step[d + 1 :]), grid, direction)
            if step[d] > 0 and inputs.weight_hh is not None:
                a = a + h[predecessor] @ inputs.weight_hh[k, d].T
            states.append(c[predecessor] if step[d] > 0 else zero)
        result = cell_step(cell, a.unflatten(-1, (-1, units)).unbind(-2), states, parameters)
        h[position], c[position] = result.h, result.c
        if sizes is not None:
            valid = (torch.tensor(position, device=sizes.device) < sizes).all(dim=1, keepdim=True)
            h[position] = torch.where(valid, h[position], zero)
            c[position] = torch.where(valid, c[position], zero)
    rows = [h[position] for position in np.ndindex(*grid)]
    return torch.stack(rows, dim=1).reshape(batch, *grid, units)


def _position(step: Position, grid: Sequence[int], direction: Direction) -> Position:
    """The position in the grid that a sweep in `direction` reaches after `step` steps."""
    return tuple(
        index if sign > 0 else extent - 1 - index
        for index, extent, sign in zip(step, grid, direction, strict=True)
    )
