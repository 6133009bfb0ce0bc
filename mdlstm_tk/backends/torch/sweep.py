"""The sweep wavefront by wavefront in plain torch ops, on any device and in any dtype.

All directions go in one sweep. Their tensors are laid out in visiting order with rows (position,
sample), so a wavefront is a contiguous slice, and a direction is nothing but another order of
visiting. float16 and bfloat16 inputs are multiplied as they are; gates and state are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdlstm_tk.backends.tables import Tables, valid_mask
from mdlstm_tk.backends.torch import products
from mdlstm_tk.cells.equations import Cell
from mdlstm_tk.cells.step import CellParameters, cell_step, cell_step_backward
from mdlstm_tk.wavefront import Direction


def forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    parameters: CellParameters,
    sizes: Tensor | None,
    directions: Sequence[Direction],
    cell: Cell,
    save: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as `mdlstm_tk.operator.wavefront`.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the pre-activations (dirs, P·N, G·n)
        and c (dirs, P·N, n) in visiting order. Both are empty otherwise, and the pre-activations also
        if `recompute`.
    """
    batch, grid = x.shape[0], tuple(x.shape[1:-1])
    dirs, _, _, units = weight_hh.shape
    tables = Tables.of(x, directions)
    recurrent = weight_hh.transpose(2, 3).flatten(1, 2)  # (dirs, D·n, G·n)
    projected = products.project(x, weight_ih, tables)  # (dirs, P·N, G·n)
    if bias is not None:
        projected = projected + bias[:, None]
    a = list(projected.split(_row_counts(tables, batch), dim=1))
    outside = _outside(x, sizes, tables)
    rows = parameters.map(lambda tensor: tensor.unsqueeze(1).unbind(-2))  # (dirs, 1, n) each

    zero = a[0].new_zeros(dirs, 1, batch, units)
    h, c = zero, zero  # the wavefront before, with a row of zeros behind it: (dirs, K + 1, N, n)
    outputs, states = [], []
    for t, count in enumerate(tables.counts):
        if t > 0:
            operand = torch.cat([h.index_select(1, index) for index in tables.places[t]], dim=-1)
            a[t] = a[t] + products.multiply(operand.flatten(1, 2).to(x.dtype), recurrent)
        before = [c.index_select(1, index).flatten(1, 2) for index in tables.places[t]]  # (dirs, K·N, n)
        gates = a[t].unflatten(-1, (-1, units)).unbind(-2)  # G × (dirs, K·N, n)
        new_h, new_c, _ = cell_step(cell, gates, before, rows)
        new_h = new_h.unflatten(1, (count, batch))  # (dirs, K, N, n)
        new_c = new_c.unflatten(1, (count, batch))
        if outside is not None:
            new_h, new_c = new_h.masked_fill(outside[t], 0), new_c.masked_fill(outside[t], 0)
        outputs.append(new_h)
        if save:
            states.append(new_c)
        h, c = torch.cat([new_h, zero], dim=1), torch.cat([new_c, zero], dim=1)

    visited = torch.cat(outputs, dim=1).to(x.dtype)  # (dirs, P, N, n)
    output = products.unvisit(visited, tables).permute(2, 1, 0, 3).reshape(batch, *grid, dirs, units)
    if not save:
        return output, x.new_empty(0), x.new_empty(0)
    saved_a = x.new_empty(0) if recompute else torch.cat(a, dim=1)
    return output, saved_a, torch.cat(states, dim=1).flatten(1, 2)


def backward(
    grad: Tensor,
    output: Tensor,
    saved_a: Tensor,
    saved_c: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    parameters: CellParameters,
    sizes: Tensor | None,
    directions: Sequence[Direction],
    cell: Cell,
    wants_dx: bool = True,
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh, bias and the cell's parameters.

    Args:
        grad: (N, *grid, dirs, n) gradient of the output.
        output, saved_a, saved_c: what `forward` returned with `save`; without the pre-activations they
            are computed again.
    """
    batch = x.shape[0]
    dirs, ndim, _, units = weight_hh.shape
    tables = Tables.of(x, directions)
    counts = tables.counts
    dtype = saved_c.dtype
    if saved_a.numel() == 0:
        saved_a = products.pre_activations(x, weight_ih, weight_hh, bias, output, tables)
    a = saved_a.split(_row_counts(tables, batch), dim=1)
    dh = list(products.visit(grad, tables).to(dtype).split(counts, dim=1))  # T × (dirs, K, N, n)
    new_c = saved_c.unflatten(1, (tables.positions, batch)).split(counts, dim=1)
    outside = _outside(x, sizes, tables)
    rows = parameters.map(lambda tensor: tensor.unsqueeze(1).unbind(-2))  # (dirs, 1, n) each
    gradients = parameters.map(lambda tensor: torch.zeros_like(tensor, dtype=dtype))
    recurrent = weight_hh.transpose(1, 2).flatten(2, 3)  # (dirs, G·n, D·n)

    zero = saved_c.new_zeros(dirs, 1, batch, units)
    dc = torch.zeros_like(dh[-1])
    da: list[Tensor] = []
    for t in reversed(range(len(counts))):
        before_c = torch.cat([new_c[t - 1], zero], dim=1) if t > 0 else zero
        states = [before_c.index_select(1, index).flatten(1, 2) for index in tables.places[t]]
        if outside is not None:
            dh[t], dc = dh[t].masked_fill(outside[t], 0), dc.masked_fill(outside[t], 0)
        step_da, step_dc, step_gradients = cell_step_backward(
            cell,
            a[t].unflatten(-1, (-1, units)).unbind(-2),
            states,
            new_c[t].flatten(1, 2),
            dh[t].flatten(1, 2),
            dc.flatten(1, 2),
            rows,
        )
        gradients.add(step_gradients.map(lambda cells: torch.stack([g.sum(dim=1) for g in cells], dim=1)))
        da.append(torch.cat(step_da, dim=-1).to(x.dtype))  # (dirs, K·N, G·n)
        if t == 0:
            break
        # What reaches the wavefront before, and in a last row what leads outside the grid.
        back_h = products.multiply(da[-1], recurrent).unflatten(-1, (ndim, units))
        dh_before, dc_before = before_c.new_zeros(2, *before_c.shape)
        for d, index in enumerate(tables.places[t]):
            dh_before.index_add_(1, index, back_h[:, :, d].unflatten(1, (counts[t], batch)))
            dc_before.index_add_(1, index, step_dc[d].unflatten(1, (counts[t], batch)))
        dh[t - 1] = dh[t - 1] + dh_before[:, :-1]
        dc = dc_before[:, :-1]

    all_da = torch.cat(da[::-1], dim=1)  # (dirs, P·N, G·n)
    of_products = products.weight_gradients(all_da, output, x, weight_ih, bias, tables, wants_dx)
    cast = gradients.map(lambda tensor: tensor.to(x.dtype))
    return [*of_products, cast.peephole, cast.norm_weight, cast.norm_bias]


def _row_counts(tables: Tables, batch: int) -> list[int]:
    """Rows of each wavefront."""
    return [count * batch for count in tables.counts]


def _outside(x: Tensor, sizes: Tensor | None, tables: Tables) -> tuple[Tensor, ...] | None:
    """Per wavefront (dirs, K, N, 1): does the position lie outside that sample's valid extent?"""
    if sizes is None:
        return None
    beyond = ~valid_mask(x.shape[1:-1], sizes).flatten(1).T[tables.visit]  # (dirs, P, N)
    parts: tuple[Tensor, ...] = beyond.unsqueeze(-1).split(tables.counts, dim=1)
    return parts
