"""The sweep wavefront by wavefront in plain torch ops, on any device and in any dtype.

All directions go in one sweep. Their tensors are laid out in visiting order with rows (position,
sample), so a wavefront is a contiguous slice, and a direction is nothing but another order of
visiting. float16 and bfloat16 inputs use their own precision in the products and float32 in gates
and state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.backends.step import CellParameters, cell_step, cell_step_backward
from mdlstm_tk.cells import Cell
from mdlstm_tk.wavefront import Direction, visiting_order, wavefronts


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
    """Arguments as `mdlstm_tk.op.wavefront`.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the pre-activations (dirs, P·N, G·n)
        and c (dirs, P·N, n) in visiting order. Both are empty otherwise, and the pre-activations also
        if `recompute`.
    """
    batch, grid = x.shape[0], tuple(x.shape[1:-1])
    dirs, _, _, units = weight_hh.shape
    tables = _tables(grid, tuple(directions), x.device)
    recurrent = weight_hh.transpose(2, 3).flatten(1, 2)  # (dirs, D·n, G·n)
    projected = _project(x, weight_ih, bias, tables).to(state_dtype(x))
    a = list(projected.split(tables.row_counts(batch), dim=1))
    outside = _outside(grid, sizes, tables)
    rows = parameters.map(lambda tensor: tensor.unsqueeze(1).unbind(-2))  # (dirs, 1, n) each

    zero = a[0].new_zeros(dirs, 1, batch, units)
    h, c = zero, zero  # the wavefront before, with a row of zeros behind it: (dirs, K + 1, N, n)
    outputs, states = [], []
    for t, count in enumerate(tables.counts):
        if t > 0:
            operand = torch.cat([h.index_select(1, index) for index in tables.back[t]], dim=-1)
            a[t] = a[t] + (operand.flatten(1, 2).to(x.dtype) @ recurrent).to(a[t].dtype)
        before = [c.index_select(1, index).flatten(1, 2) for index in tables.back[t]]  # (dirs, K·N, n)
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
    ordered = visited[torch.arange(dirs, device=x.device)[:, None], tables.unvisit]
    output = ordered.permute(2, 1, 0, 3).reshape(batch, *grid, dirs, units)
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
    batch, grid = x.shape[0], tuple(x.shape[1:-1])
    dirs, ndim, _, units = weight_hh.shape
    tables = _tables(grid, tuple(directions), x.device)
    counts, row_counts = tables.counts, tables.row_counts(batch)
    dtype = saved_c.dtype
    zero = saved_c.new_zeros(dirs, 1, batch, units)
    h = torch.cat([_visit(output, tables), zero.to(x.dtype)], dim=1)  # (dirs, P + 1, N, n)
    if saved_a.numel() == 0:
        operand = torch.cat([h.index_select(1, ranks) for ranks in tables.ranks], dim=-1).flatten(1, 2)
        saved_a = _project(x, weight_ih, bias, tables).to(dtype)
        saved_a += operand @ weight_hh.transpose(2, 3).flatten(1, 2)
    a = saved_a.split(row_counts, dim=1)
    dh = list(_visit(grad, tables).to(dtype).split(counts, dim=1))  # T × (dirs, K, N, n)
    new_c = saved_c.unflatten(1, (-1, batch)).split(counts, dim=1)
    outside = _outside(grid, sizes, tables)
    rows = parameters.map(lambda tensor: tensor.unsqueeze(1).unbind(-2))  # (dirs, 1, n) each
    gradients = parameters.map(lambda tensor: torch.zeros_like(tensor, dtype=dtype))
    recurrent = weight_hh.transpose(1, 2).flatten(2, 3)  # (dirs, G·n, D·n)

    dc = torch.zeros_like(dh[-1])
    da: list[Tensor] = []
    for t in reversed(range(len(counts))):
        before_c = torch.cat([new_c[t - 1], zero], dim=1) if t > 0 else zero
        states = [before_c.index_select(1, index).flatten(1, 2) for index in tables.back[t]]
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
        da.append(torch.cat(step_da, dim=-1))  # (dirs, K·N, G·n)
        if t == 0:
            break
        # What reaches the wavefront before, and in a last row what leads outside the grid.
        back_h = (da[-1].to(x.dtype) @ recurrent).to(dtype).unflatten(-1, (ndim, units))
        dh_before, dc_before = before_c.new_zeros(2, *before_c.shape)
        for d, index in enumerate(tables.back[t]):
            dh_before.index_add_(1, index, back_h[:, :, d].unflatten(1, (counts[t], batch)))
            dc_before.index_add_(1, index, step_dc[d].unflatten(1, (counts[t], batch)))
        dh[t - 1] = dh[t - 1] + dh_before[:, :-1]
        dc = dc_before[:, :-1]

    all_da = torch.cat(da[::-1], dim=1).to(x.dtype)  # (dirs, P·N, G·n)
    weight_ih_grad = all_da.transpose(1, 2) @ _rows(x)[tables.visit].flatten(1, 2)
    weight_hh_grad = torch.stack(
        [all_da.transpose(1, 2) @ h.index_select(1, ranks).flatten(1, 2) for ranks in tables.ranks], dim=1
    )
    dx = None
    if wants_dx:
        visited = (all_da @ weight_ih).unflatten(1, (-1, batch))  # (dirs, P, N, C)
        each = visited[torch.arange(dirs, device=x.device)[:, None], tables.unvisit]
        dx = each.sum(dim=0).transpose(0, 1).reshape(x.shape)
    cast = gradients.map(lambda tensor: tensor.to(x.dtype))
    return [
        dx,
        weight_ih_grad,
        weight_hh_grad,
        None if bias is None else all_da.sum(dim=1),
        cast.peephole,
        cast.norm_weight,
        cast.norm_bias,
    ]


def _project(x: Tensor, weight_ih: Tensor, bias: Tensor | None, tables: _Tables) -> Tensor:
    """W x + b in visiting order, (dirs, P·N, G·n)."""
    projected = _rows(x)[tables.visit].flatten(1, 2) @ weight_ih.transpose(1, 2)
    return projected if bias is None else projected + bias[:, None]


def state_dtype(x: Tensor) -> torch.dtype:
    """What gates and state are kept in."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _rows(x: Tensor) -> Tensor:
    """(N, *grid, C) → (P, N, C)."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(0, 1)


def _visit(y: Tensor, tables: _Tables) -> Tensor:
    """(N, *grid, dirs, n) → (dirs, P, N, n) in visiting order."""
    rows = y.reshape(y.shape[0], -1, *y.shape[-2:]).permute(2, 1, 0, 3)
    return rows[torch.arange(y.shape[-2], device=y.device)[:, None], tables.visit]


@dataclass(frozen=True)
class _Tables:
    """A grid's tables on a device.

    Attributes:
        counts: K_t, positions in each wavefront.
        visit: (dirs, P) flat positions in visiting order.
        unvisit: (dirs, P) its inverse.
        back: per wavefront (D, K_t), the places of the predecessors in the wavefront before; where
            there is none, the place behind its last, which holds zeros.
        ranks: (D, P) the same counted over the whole grid.
    """

    counts: list[int]
    visit: Tensor
    unvisit: Tensor
    back: list[Tensor]
    ranks: Tensor

    def row_counts(self, batch: int) -> list[int]:
        return [count * batch for count in self.counts]


@lru_cache(maxsize=64)
def _tables(grid: tuple[int, ...], directions: tuple[Direction, ...], device: torch.device) -> _Tables:
    front = wavefronts(grid)
    counts = np.diff(front.starts).tolist()
    visit = np.stack([visiting_order(grid, direction) for direction in directions])
    back = []
    for t in range(len(front)):
        places = front.predecessors(t)
        back.append(np.where(places < 0, counts[t - 1] if t > 0 else 0, places))
    ranks = np.where(front.back < 0, len(front.order), front.back)
    return _Tables(
        counts,
        torch.as_tensor(visit, device=device),
        torch.as_tensor(np.argsort(visit, axis=1), device=device),
        [torch.as_tensor(places, device=device) for places in back],
        torch.as_tensor(ranks, device=device),
    )


def _outside(grid: tuple[int, ...], sizes: Tensor | None, tables: _Tables) -> tuple[Tensor, ...] | None:
    """Per wavefront (dirs, K, N, 1): does the position lie outside that sample's valid extent?"""
    if sizes is None:
        return None
    device = tables.visit.device
    coordinates = torch.as_tensor(np.indices(grid).reshape(len(grid), -1), device=device)
    beyond = coordinates.T[tables.visit][:, :, None] >= sizes.to(device)  # (dirs, P, N, D)
    parts: tuple[Tensor, ...] = beyond.any(dim=-1, keepdim=True).split(tables.counts, dim=1)
    return parts
