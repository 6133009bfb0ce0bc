"""The sweep wavefront by wavefront in plain torch operations, on any device and in any dtype.

All directions run in one sweep. Their tensors are laid out in visiting order with rows (position, sample),
so a wavefront is a contiguous slice, and a direction is only another order of visiting. float16 and
bfloat16 inputs are multiplied as they are; gates and states are float32.

Notation: N batch, P positions, T wavefronts, K positions of one wavefront, G gates, n units, D axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.backends.tables import SweepTables, sweep_tables
from mdlstm_tk.backends.torch import products
from mdlstm_tk.backends.torch.gradient import cell_gradient
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.step import CellParameters, cell_step
from mdlstm_tk.masking import valid_mask


def forward(
    inputs: SweepInputs, save: bool = False, recompute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the sweep.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the pre-activations (dirs, P·N, G·n)
        and c (dirs, P·N, n) in visiting order. Both are empty otherwise, and so are the pre-activations if
        `recompute`.
    """
    cell, x, weight_hh = get_cell(inputs.cell), inputs.x, inputs.weight_hh
    batch, dirs, units = x.shape[0], len(inputs.weight_ih), inputs.units
    tables = sweep_tables(inputs.grid, inputs.directions, x.device)
    w_hh = None if weight_hh is None else weight_hh.transpose(2, 3).flatten(1, 2)  # (dirs, D·n, G·n)
    projected = products.project_input(inputs, tables)  # (dirs, P·N, G·n)
    if inputs.bias is not None:
        projected = projected + inputs.bias[:, None]
    a = list(projected.split(_row_counts(tables, batch), dim=1))
    invalid = _invalid_masks(inputs, tables)
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
        step = cell_step(cell, a[t].unflatten(-1, (-1, units)).unbind(-2), c_d, parameters)
        h = step.h.unflatten(1, (count, batch))  # (dirs, K, N, n)
        c = step.c.unflatten(1, (count, batch))
        if invalid is not None:
            h, c = h.masked_fill(invalid[t], 0), c.masked_fill(invalid[t], 0)
        outputs.append(h)
        if save:
            states.append(c)
        h_prev, c_prev = torch.cat([h, zero], dim=1), torch.cat([c, zero], dim=1)

    visited = torch.cat(outputs, dim=1).to(x.dtype)  # (dirs, P, N, n)
    output = products.to_grid_order(visited, tables).permute(2, 1, 0, 3)
    output = output.reshape(batch, *inputs.grid, dirs, units)
    if not save:
        return output, x.new_empty(0), x.new_empty(0)
    saved_a = x.new_empty(0) if recompute else torch.cat(a, dim=1)
    return output, saved_a, torch.cat(states, dim=1).flatten(1, 2)


def backward(
    inputs: SweepInputs,
    grad: Tensor,
    output: Tensor,
    saved_a: Tensor,
    saved_c: Tensor,
    wants_dx: bool = True,
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh, bias and the cell's parameters.

    Args:
        inputs: as for `forward`.
        grad: (N, *grid, dirs, n) gradient of the output.
        output, saved_a, saved_c: what `forward` returned with `save`; if the pre-activations are empty,
            they are computed again.
        wants_dx: whether the gradient of x is needed.
    """
    cell, x, weight_hh = get_cell(inputs.cell), inputs.x, inputs.weight_hh
    batch, dirs, ndim, units = x.shape[0], len(inputs.weight_ih), inputs.ndim, inputs.units
    tables = sweep_tables(inputs.grid, inputs.directions, x.device)
    counts, dtype = tables.counts, saved_c.dtype
    if saved_a.numel() == 0:
        saved_a = products.pre_activations(inputs, output, tables)
    a = saved_a.split(_row_counts(tables, batch), dim=1)
    dh = list(
        products.to_visiting_order(grad, tables).to(dtype).split(counts, dim=1)
    )  # T × (dirs, K, N, n)
    c = saved_c.unflatten(1, (tables.positions, batch)).split(counts, dim=1)
    invalid = _invalid_masks(inputs, tables)
    parameters = _parameter_rows(inputs)
    front_sums: list[CellParameters] = []  # the gradients of the cell's parameters, (dirs, rows, n) each
    w_hh = None if weight_hh is None else weight_hh.transpose(1, 2).flatten(2, 3)  # (dirs, G·n, D·n)

    zero = saved_c.new_zeros(dirs, 1, batch, units)
    dc = torch.zeros_like(dh[-1])
    da: list[Tensor] = []
    for t in reversed(range(len(counts))):
        c_prev = torch.cat([c[t - 1], zero], dim=1) if t > 0 else zero
        c_d = [c_prev.index_select(1, index).flatten(1, 2) for index in tables.previous[t]]
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

    all_da = torch.cat(da[::-1], dim=1)  # (dirs, P·N, G·n)
    # torch sums many numbers in parts, which is more precise than adding one wavefront after another.
    gradients = [
        None if of_fronts[0] is None else torch.stack(of_fronts).sum(dim=0).to(x.dtype)
        for of_fronts in zip(*front_sums, strict=True)
    ]
    return [*products.weight_gradients(inputs, all_da, output, tables, wants_dx), *gradients]


def _row_counts(tables: SweepTables, batch: int) -> list[int]:
    """The number of rows (position, sample) of each wavefront."""
    return [count * batch for count in tables.counts]


def _parameter_rows(inputs: SweepInputs) -> CellParameters:
    """The rows of each parameter, (dirs, 1, n) each."""
    return inputs.parameters.map(lambda tensor: tensor.unsqueeze(1).unbind(-2))


def _invalid_masks(inputs: SweepInputs, tables: SweepTables) -> tuple[Tensor, ...] | None:
    """For each wavefront (dirs, K, N, 1), whether the position lies outside its sample's valid extents."""
    if inputs.sizes is None:
        return None
    invalid = ~valid_mask(inputs.grid, inputs.sizes).flatten(1).T[tables.order]  # (dirs, P, N)
    masks: tuple[Tensor, ...] = invalid.unsqueeze(-1).split(tables.counts, dim=1)
    return masks
