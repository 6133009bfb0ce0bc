"""The products that a sweep in torch does for the whole grid at once: before its wavefronts those of x,
behind them the weights' gradients.

float16 and bfloat16 are multiplied as they are and added up in float32. What becomes of a
pre-activation stays float32: rounded to float16 it could be infinite, and NaN behind a layer norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk.backends.tables import Tables


def state_dtype(x: Tensor) -> torch.dtype:
    """What gates and state are kept in."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` of (dirs, rows, k) and (dirs, k, columns), in the dtype of the state."""
    dtype = state_dtype(a)
    if a.dtype == dtype:
        return torch.bmm(a, b, out=out)
    if a.is_cuda and torch.version.hip is None:
        return torch.bmm(a, b, out_dtype=dtype, out=out)
    return torch.bmm(a.to(dtype), b.to(dtype), out=out)


def project(x: Tensor, weight_ih: Tensor, tables: Tables) -> Tensor:
    """W x, (dirs, P·N, G·n) with rows (position, sample) in visiting order."""
    return multiply(_rows(x)[tables.visit].flatten(1, 2), weight_ih.transpose(1, 2))


def pre_activations(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, output: Tensor, tables: Tables
) -> Tensor:
    """W x + Σ_d U_d h_d + b, (dirs, P·N, G·n), once the whole output is there."""
    a = project(x, weight_ih, tables).add_(
        multiply(_seen(output, tables), weight_hh.transpose(2, 3).flatten(1, 2))
    )
    return a if bias is None else a.add_(bias[:, None])


def visit(y: Tensor, tables: Tables) -> Tensor:
    """(N, *grid, dirs, n) → (dirs, P, N, n) in visiting order."""
    rows = y.flatten(1, -3).permute(2, 1, 0, 3)
    return rows[_each_direction(tables), tables.visit]


def unvisit(visited: Tensor, tables: Tables) -> Tensor:
    """(dirs, P, N, n) in visiting order → (dirs, P, N, n)."""
    return visited[_each_direction(tables), tables.unvisit]


def weight_gradients(
    da: Tensor,  # (dirs, P·N, G·n) gradient of the pre-activations, in visiting order and in x's dtype
    output: Tensor,  # (N, *grid, dirs, n)
    x: Tensor,
    weight_ih: Tensor,
    bias: Tensor | None,
    tables: Tables,
    wants_dx: bool,
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh and bias."""
    across = da.transpose(1, 2)  # (dirs, G·n, P·N)
    of_hh = multiply(across, _seen(output, tables)).unflatten(-1, (-1, output.shape[-1]))
    gradients = [
        None,
        multiply(across, _rows(x)[tables.visit].flatten(1, 2)),
        of_hh.transpose(1, 2),  # (dirs, D, G·n, n)
        None if bias is None else da.sum(dim=1),
    ]
    if wants_dx:
        each = unvisit(multiply(da, weight_ih).unflatten(1, (tables.positions, x.shape[0])), tables)
        gradients[0] = each.sum(dim=0).transpose(0, 1).reshape(x.shape)
    return [None if gradient is None else gradient.to(x.dtype) for gradient in gradients]


def _seen(output: Tensor, tables: Tables) -> Tensor:
    """(h_1 | … | h_D) for every cell, (dirs, P·N, D·n)."""
    h = visit(output, tables)
    h = torch.cat([h, h.new_zeros(h[:, :1].shape)], dim=1)  # rank −1, outside the grid, is a row of zeros
    return torch.cat([h[:, ranks] for ranks in tables.back], dim=-1).flatten(1, 2)


def _rows(x: Tensor) -> Tensor:
    """(N, *grid, C) → (P, N, C)."""
    return x.flatten(1, -2).transpose(0, 1)


def _each_direction(tables: Tables) -> Tensor:
    """(dirs, 1): beside a table (dirs, P), every direction with its own."""
    return torch.arange(len(tables.visit), device=tables.visit.device)[:, None]
