"""The sweep wavefront by wavefront in plain torch operations, on any device and in any dtype.

All directions run in one sweep. Their tensors are laid out in visiting order with rows (visit, sample), so
a wavefront is a contiguous slice, and a direction is only another order of visiting. A ragged batch is one
sample here, whose positions are the valid ones of all samples: see `mdlstm_tk.backends.tables`. float16 and
bfloat16 inputs are multiplied as they are; gates and states are float32.

Notation: N batch, P positions, T wavefronts, K positions of one wavefront, G gates, n units, D axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdlstm_tk.backends.faces import (
    Faces,
    end_rows,
    face_rows,
    final_states,
    from_directions,
    line_ends,
    with_zeros,
)
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.backends.tables import SweepRows, sweep_rows
from mdlstm_tk.backends.torch import products
from mdlstm_tk.backends.torch.gradient import cell_gradient
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.cell import total
from mdlstm_tk.cells.step import CellParameters, cell_step


def forward(
    inputs: SweepInputs, save: bool = False, recompute: bool = False, first: Faces | None = None
) -> tuple[Tensor, Tensor, Tensor, Faces | None]:
    """Run the sweep, from the initial states `first` if they are given.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the pre-activations (dirs, rows, G·n)
        and c (dirs, rows, n) in visiting order. Both are empty otherwise, and so are the pre-activations if
        `recompute`. With `first` also the final states, else None.
    """
    cell, x, weight_hh = get_cell(inputs.cell), inputs.x, inputs.weight_hh
    dirs, units, rows = len(inputs.weight_ih), inputs.units, sweep_rows(inputs)
    tables, batch = rows.tables, rows.batch
    w_hh = None if weight_hh is None else weight_hh.transpose(2, 3).flatten(1, 2)  # (dirs, D·n, G·n)
    projected = products.project_input(inputs, rows)  # (dirs, rows, G·n)
    if inputs.bias is not None:
        projected = projected + inputs.bias[:, None]
    entering = None
    if first is not None:
        ends, _ = line_ends(inputs)
        projected = products.face_products(inputs, first.h, end_rows(ends, inputs, rows), projected)
        entering = _AtRows(first.c, face_rows(ends, inputs, rows), rows)
    a = list(projected.split(rows.row_counts, dim=1))
    invalid = _invalid_masks(rows)
    parameters = _parameter_rows(inputs)

    zero = a[0].new_zeros(dirs, 1, batch, units)
    h_prev, c_prev = zero, zero  # the previous wavefront, then a row of zeros: (dirs, K + 1, N, n)
    outputs, states = [], []
    for t, count in enumerate(tables.counts):
        previous = tables.previous[t]
        if t > 0 and w_hh is not None:
            operand = torch.cat([h_prev.index_select(1, index) for index in previous], dim=-1)
            a[t] = a[t] + products.multiply(operand.flatten(1, 2).to(x.dtype), w_hh)
        c_d = [c_prev.index_select(1, index).flatten(1, 2) for index in previous]  # D × (dirs, K·N, n)
        if entering is not None:
            c_d = [state + entering.at(t, d) for d, state in enumerate(c_d)]
        step = cell_step(cell, a[t].unflatten(-1, (-1, units)).unbind(-2), c_d, parameters)
        h = step.h.unflatten(1, (count, batch))  # (dirs, K, N, n)
        c = step.c.unflatten(1, (count, batch))
        if invalid is not None:
            h, c = h.masked_fill(invalid[t], 0), c.masked_fill(invalid[t], 0)
        outputs.append(h)
        if save or first is not None:
            states.append(c)
        h_prev, c_prev = torch.cat([h, zero], dim=1), torch.cat([c, zero], dim=1)

    visited = torch.cat(outputs, dim=1).to(x.dtype)  # (dirs, P, N, n)
    output = products.to_grid_order(visited, rows).permute(2, 1, 0, 3)
    output = output.reshape(*x.shape[:-1], dirs, units)
    all_c = torch.cat(states, dim=1).flatten(1, 2) if states else x.new_empty(0)
    last = None if first is None else final_states(inputs, output, all_c)
    if not save:
        return output, x.new_empty(0), x.new_empty(0), last
    saved_a = x.new_empty(0) if recompute else torch.cat(a, dim=1)
    return output, saved_a, all_c, last


def backward(
    inputs: SweepInputs,
    grad: Tensor,
    output: Tensor,
    saved_a: Tensor,
    saved_c: Tensor,
    wants_dx: bool = True,
    first: Faces | None = None,
    d_last: Faces | None = None,
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh, bias and the cell's parameters; and with
    `first` those of its h and c.

    Args:
        inputs: as for `forward`.
        grad: (N, *grid, dirs, n) gradient of the output.
        output, saved_a, saved_c: what `forward` returned with `save`; if the pre-activations are empty,
            they are computed again.
        wants_dx: whether the gradient of x is needed.
        first: the initial states that `forward` was given.
        d_last: the gradient of the final states, given together with `first`.
    """
    cell, x, weight_hh = get_cell(inputs.cell), inputs.x, inputs.weight_hh
    dirs, ndim, units, rows = len(inputs.weight_ih), inputs.ndim, inputs.units, sweep_rows(inputs)
    tables, batch = rows.tables, rows.batch
    counts, dtype = tables.counts, saved_c.dtype
    if saved_a.numel() == 0:
        saved_a = products.pre_activations(inputs, output, rows)
        if first is not None:
            saved_a = products.face_products(inputs, first.h, _entering_rows(inputs, rows), saved_a)
    a = saved_a.split(rows.row_counts, dim=1)
    dh = list(products.to_visiting_order(grad, rows).to(dtype).split(counts, dim=1))  # T × (dirs, K, N, n)
    c = saved_c.unflatten(1, (tables.positions, batch)).split(counts, dim=1)
    invalid = _invalid_masks(rows)
    parameters = _parameter_rows(inputs)
    front_sums: list[CellParameters] = []  # the gradients of the cell's parameters, (dirs, rows, n) each
    w_hh = None if weight_hh is None else weight_hh.transpose(1, 2).flatten(2, 3)  # (dirs, G·n, D·n)
    states = None if first is None or d_last is None else _StateGradients(inputs, first, d_last, rows)

    zero = saved_c.new_zeros(dirs, 1, batch, units)
    dc = torch.zeros_like(dh[-1])
    da: list[Tensor] = []
    for t in reversed(range(len(counts))):
        c_prev = torch.cat([c[t - 1], zero], dim=1) if t > 0 else zero
        c_d = [c_prev.index_select(1, index).flatten(1, 2) for index in tables.previous[t]]
        if states is not None:
            c_d = [state + states.entering.at(t, d) for d, state in enumerate(c_d)]
            dh[t], dc = states.add_leaving(t, dh[t], dc)
        if invalid is not None:
            dh[t], dc = dh[t].masked_fill(invalid[t], 0), dc.masked_fill(invalid[t], 0)
        step = cell_gradient(
            cell,
            a[t].unflatten(-1, (-1, units)).unbind(-2),
            c_d,
            c[t].flatten(1, 2),
            dh[t].flatten(1, 2),
            dc.flatten(1, 2),
            parameters,
        )
        front_sums.append(
            step.parameters.map(lambda rows: torch.stack([row.sum(dim=1) for row in rows], dim=1))
        )
        da.append(torch.cat(list(step.a), dim=-1).to(x.dtype))  # (dirs, K·N, G·n)
        if states is not None:
            states.keep_entering(t, step.c_prev)
        if t == 0:
            break
        # The gradients that reach the previous wavefront; the last row takes what leads outside the grid.
        dh_prev, dc_prev = c_prev.new_zeros(2, *c_prev.shape)
        for d, index in enumerate(tables.previous[t]):
            dc_prev.index_add_(1, index, step.c_prev[d].unflatten(1, (counts[t], batch)))
        if w_hh is not None:
            dh_d = products.multiply(da[-1], w_hh).unflatten(-1, (ndim, units))
            for d, index in enumerate(tables.previous[t]):
                dh_prev.index_add_(1, index, dh_d[:, :, d].unflatten(1, (counts[t], batch)))
        dh[t - 1] = dh[t - 1] + dh_prev[:, :-1]
        dc = dc_prev[:, :-1]

    all_da = torch.cat(da[::-1], dim=1)  # (dirs, rows, G·n)
    # torch sums many numbers in parts, which is more precise than adding one wavefront after another.
    gradients = [
        None if of_fronts[0] is None else torch.stack(of_fronts).sum(dim=0).to(x.dtype)
        for of_fronts in zip(*front_sums, strict=True)
    ]
    dx, dw_ih, dw_hh, db = products.weight_gradients(inputs, all_da, output, rows, wants_dx)
    if first is None or states is None:
        return [dx, dw_ih, dw_hh, db, *gradients]
    entering_rows = _entering_rows(inputs, rows)
    dh_first, dw_hh = products.face_gradients(inputs, all_da, first.h, entering_rows, dw_hh)
    dc_first = states.dc_entering[:, :-1]
    of_states = [from_directions(gradient, inputs) for gradient in (dh_first, dc_first)]
    return [dx, dw_ih, dw_hh, db, *gradients, *of_states]


class _AtRows:
    """States of the faces at the rows where their lines end."""

    def __init__(self, face: Tensor, faces_at: Tensor, rows: SweepRows) -> None:
        self.face = with_zeros(face)  # (dirs, F·N + 1, n)
        self.direction = torch.arange(len(self.face), device=face.device)[:, None]
        self.rows = faces_at.split(rows.row_counts, dim=2)  # T × (D, dirs, K·N)

    def at(self, t: int, d: int) -> Tensor:
        """(dirs, K·N, n), for wavefront t the states of axis d, 0 where no line ends."""
        return self.face[self.direction, self.rows[t][d]]


class _StateGradients:
    """What the initial and the final states add to the backward pass, wavefront by wavefront."""

    def __init__(self, inputs: SweepInputs, first: Faces, d_last: Faces, rows: SweepRows) -> None:
        entering, leaving = (face_rows(ends, inputs, rows) for ends in line_ends(inputs))
        self.entering = _AtRows(first.c, entering, rows)
        self.leaving = [_AtRows(face, leaving, rows) for face in (d_last.h.to(first.c.dtype), d_last.c)]
        self.dc_entering = torch.zeros_like(self.entering.face)  # (dirs, F·N + 1, n)

    def add_leaving(self, t: int, dh: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
        """dh and dc (dirs, K, N, n) of wavefront t with the gradients of the final states."""
        axes = range(len(self.entering.rows[t]))
        h, c = (total([faces.at(t, d) for d in axes]) for faces in self.leaving)
        return dh + h.view(dh.shape), dc + c.view(dc.shape)

    def keep_entering(self, t: int, dc_prev: Sequence[Tensor]) -> None:
        """Keep the gradients of the c that entered at wavefront t, D × (dirs, K·N, n)."""
        for rows, gradient in zip(self.entering.rows[t], dc_prev, strict=True):
            # Where no line ends, they go to the row of zeros, which nobody reads.
            self.dc_entering.index_put_((self.entering.direction, rows), gradient)


def _entering_rows(inputs: SweepInputs, rows: SweepRows) -> Tensor:
    """(dirs, F, N), the rows where the lines of the faces enter."""
    ends, _ = line_ends(inputs)
    return end_rows(ends, inputs, rows)


def _parameter_rows(inputs: SweepInputs) -> CellParameters:
    """The rows of each parameter, (dirs, 1, n) each."""
    return inputs.parameters.map(lambda tensor: tensor.unsqueeze(1).unbind(-2))


def _invalid_masks(rows: SweepRows) -> tuple[Tensor, ...] | None:
    """For each wavefront (dirs, K, N, 1), whether the row is at a position that is not valid; None if all
    are valid."""
    if rows.valid_mask is None:
        return None
    invalid = ~rows.valid_mask.flatten(1).T[rows.tables.order]  # (dirs, P, N)
    masks: tuple[Tensor, ...] = invalid.unsqueeze(-1).split(rows.tables.counts, dim=1)
    return masks
