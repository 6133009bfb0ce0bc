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

from mdlstm_tk.backends.faces import Faces, face_extents, line_counts
from mdlstm_tk.backends.inputs import SweepInputs, state_dtype
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.step import cell_step
from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import Direction

Position = tuple[int, ...]


def forward(inputs: SweepInputs) -> Tensor:
    """h (N, *grid, dirs, n)."""
    return forward_states(inputs, None)[0]


def forward_states(inputs: SweepInputs, first: Faces | None) -> tuple[Tensor, Faces]:
    """h (N, *grid, dirs, n) and the final states, from the initial states `first`, or from zeros."""
    if 0 in inputs.grid:
        raise InputError(f"a grid needs extents of at least 1, got {inputs.grid}")
    results = [_sweep(inputs, k, direction, first) for k, direction in enumerate(inputs.directions)]
    h, h_last, c_last = (torch.stack(parts, dim=-2) for parts in zip(*results, strict=True))
    return h, Faces(h_last, c_last.to(state_dtype(inputs.x)))


def _sweep(
    inputs: SweepInputs, k: int, direction: Direction, first: Faces | None
) -> tuple[Tensor, Tensor, Tensor]:
    """h (N, *grid, n) of direction number k, and its final h and c (N, F, n)."""
    cell, x = get_cell(inputs.cell), inputs.x
    sizes = None if inputs.sizes is None else inputs.sizes.to(x.device)
    batch, *grid, _ = x.shape
    ndim, units = inputs.ndim, inputs.units
    parameters = inputs.parameters.map(itemgetter(k))
    zero = x.new_zeros(batch, units)
    h: dict[Position, Tensor] = {}
    c: dict[Position, Tensor] = {}
    faces = [] if first is None else [_split(face[:, :, k].to(x.dtype), grid) for face in first]
    for step in np.ndindex(*grid):  # how far the sweep has come along each axis
        position = _position(step, grid, direction)
        index: Any = (slice(None), *position)
        a = x[index] @ inputs.weight_ih[k].T  # (N, G·n)
        if inputs.bias is not None:
            a = a + inputs.bias[k]
        states = []
        for d in range(ndim):
            predecessor = _position((*step[:d], step[d] - 1, *step[d + 1 :]), grid, direction)
            h_d, c_d = (h[predecessor], c[predecessor]) if step[d] > 0 else (zero, zero)
            if faces:
                line: Any = (slice(None), *face_extents(position, d))
                outside = ~_is_valid(predecessor, sizes) if step[d] > 0 else torch.ones_like(zero) > 0
                h_d, c_d = (
                    torch.where(outside, face[d][line], state)
                    for face, state in zip(faces, (h_d, c_d), strict=True)
                )
            if inputs.weight_hh is not None and (step[d] > 0 or faces):
                a = a + h_d @ inputs.weight_hh[k, d].T
            states.append(c_d)
        result = cell_step(cell, a.unflatten(-1, (-1, units)).unbind(-2), states, parameters)
        h[position], c[position] = result.h, result.c
        if sizes is not None:
            valid = _is_valid(position, sizes)
            h[position] = torch.where(valid, h[position], zero)
            c[position] = torch.where(valid, c[position], zero)
    of_grid = []  # h and c, (N, *grid, n)
    for states_at in (h, c):
        rows = [states_at[position] for position in np.ndindex(*grid)]
        of_grid.append(torch.stack(rows, dim=1).reshape(batch, *grid, units))
    h_last, c_last = (_last(whole, direction, sizes) for whole in of_grid)
    return of_grid[0], h_last, c_last


def _is_valid(position: Position, sizes: Tensor | None) -> Tensor:
    """(N, 1), or one for all samples: whether a position lies inside their valid extents."""
    if sizes is None:
        return torch.tensor(True)
    return (torch.tensor(position, device=sizes.device) < sizes).all(dim=1, keepdim=True)


def _split(face: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """(N, F, n) → for each axis (N, *extents of the other axes, n)."""
    parts = face.split(line_counts(grid), dim=1)
    batch, _, units = face.shape
    return [part.reshape(batch, *face_extents(grid, d), units) for d, part in enumerate(parts)]


def _last(whole: Tensor, direction: Direction, sizes: Tensor | None) -> Tensor:
    """(N, *grid, n) → (N, F, n), the last hyperplane of every axis in the sweep's direction."""
    faces = []
    for d, sign in enumerate(direction):
        if sign > 0 and sizes is not None:
            index = (sizes[:, d] - 1).view(-1, *[1] * (whole.dim() - 1))
            face = whole.take_along_dim(index, dim=1 + d)
        else:
            face = whole.narrow(1 + d, whole.shape[1 + d] - 1 if sign > 0 else 0, 1)
        faces.append(face.flatten(1, -2))
    return torch.cat(faces, dim=1)


def _position(step: Position, grid: Sequence[int], direction: Direction) -> Position:
    """The position in the grid that a sweep in `direction` reaches after `step` steps."""
    return tuple(
        index if sign > 0 else extent - 1 - index
        for index, extent, sign in zip(step, grid, direction, strict=True)
    )
