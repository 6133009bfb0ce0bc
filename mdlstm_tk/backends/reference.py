"""The sweep position by position, as the equations are written, differentiated by autograd.

Slow on purpose: this is the truth that every other backend is held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.backends.boundary import face_extents, split_faces
from mdlstm_tk.backends.inputs import SweepInputs, state_dtype
from mdlstm_tk.backends.torch.evaluate import evaluate
from mdlstm_tk.cells.graph import Kernel
from mdlstm_tk.cells.step import pass_kernel
from mdlstm_tk.wavefront import Direction

Position = tuple[int, ...]


def forward(inputs: SweepInputs) -> tuple[Tensor, Tensor | None]:
    """h (N, *grid, dirs, n), and the final states (N, F, dirs, 1 + S, n) if there are initial ones. 16-bit
    inputs are computed in float32."""
    dtype, of_states = inputs.x.dtype, state_dtype(inputs.x)
    inputs = inputs.with_tensors([None if t is None else t.to(of_states) for t in inputs.tensors])
    results = [_sweep(inputs, k, direction) for k, direction in enumerate(inputs.directions)]
    h = torch.stack([of_direction for of_direction, _ in results], dim=-2)
    final = torch.stack([of_direction for _, of_direction in results], dim=2)
    return h.to(dtype), None if inputs.initial is None else final


def _sweep(inputs: SweepInputs, k: int, direction: Direction) -> tuple[Tensor, Tensor]:
    """h (N, *grid, n) of direction number k, and its final states (N, F, 1 + S, n)."""
    x, ndim, units, states_of_cell = inputs.x, inputs.ndim, inputs.units, 1 + inputs.state_count
    sizes = None if inputs.sizes is None else inputs.sizes.to(x.device)
    batch, *grid, _ = x.shape
    kernel = Kernel(pass_kernel("forward", inputs.cell, ndim, inputs.present).stores[:states_of_cell])
    parameters = inputs.cell_parameters()
    slots: dict[str, Sequence[Tensor]] = {}
    if parameters is not None:
        slots["parameter"] = parameters[k].unbind()
    zero = x.new_zeros(batch, states_of_cell, units)
    states: dict[Position, Tensor] = {}  # h and the others, (N, 1 + S, n)
    faces = None if inputs.initial is None else split_faces(inputs.initial[:, :, k], grid)
    for progress in np.ndindex(*grid):  # how far the sweep has come along each axis
        position = _position(progress, grid, direction)
        index: Any = (slice(None), *position)
        a = x[index] @ inputs.weight_ih[k].T  # (N, G·n)
        if inputs.bias is not None:
            a = a + inputs.bias[k]
        previous = []
        for d in range(ndim):
            line: Any = (slice(None), *face_extents(position, d))
            state = zero if faces is None else faces[d][line]  # as it enters the valid extents
            if progress[d] > 0:
                before = (*progress[:d], progress[d] - 1, *progress[d + 1 :])
                predecessor = _position(before, grid, direction)
                entering, state = state, states[predecessor]
                if sizes is not None:
                    state = torch.where(_is_valid(predecessor, sizes), state, entering)
            if inputs.weight_hh is not None:
                a = a + state[:, 0] @ inputs.weight_hh[k, d].T
            previous.append(state)
        slots["a"] = a.unflatten(-1, (-1, units)).unbind(-2)
        slots["h_prev"] = [state[:, 0] for state in previous]
        slots["state_prev"] = [row for state in previous for row in state[:, 1:].unbind(1)]
        rows = evaluate(kernel, slots, zero[:, 0])
        state = torch.stack(rows, dim=1)
        if sizes is not None:
            state = torch.where(_is_valid(position, sizes), state, zero)
        states[position] = state
    in_order = torch.stack([states[position] for position in np.ndindex(*grid)], dim=1)
    grid_states = in_order.reshape(batch, *grid, states_of_cell, units)
    return grid_states[..., 0, :], _final(grid_states, direction, sizes)


def _is_valid(position: Position, sizes: Tensor) -> Tensor:
    """(N, 1, 1), true for the samples whose valid extents a position lies in."""
    return (torch.tensor(position, device=sizes.device) < sizes).all(dim=1)[:, None, None]


def _final(states: Tensor, direction: Direction, sizes: Tensor | None) -> Tensor:
    """(N, *grid, 1 + S, n) → (N, F, 1 + S, n), the last hyperplane of every axis in the sweep's
    direction."""
    faces = []
    for d, sign in enumerate(direction):
        if sign > 0 and sizes is not None:
            index = (sizes[:, d] - 1).view(-1, *[1] * (states.dim() - 1))
            face = states.take_along_dim(index, dim=1 + d)
        else:
            face = states.narrow(1 + d, states.shape[1 + d] - 1 if sign > 0 else 0, 1)
        faces.append(face.flatten(1, -3))
    return torch.cat(faces, dim=1)


def _position(progress: Position, grid: Sequence[int], direction: Direction) -> Position:
    """The position that a sweep in `direction` reaches after `progress` steps along each axis."""
    return tuple(
        index if sign > 0 else extent - 1 - index
        for index, extent, sign in zip(progress, grid, direction, strict=True)
    )
