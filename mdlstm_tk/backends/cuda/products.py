"""The matrix products of a sweep.

float16 and bfloat16 are multiplied as they are and added up in float32. Pre-activations stay float32:
rounded to float16 they could be infinite, and NaN after a layer norm.

Notation: C input features, G gates, n units, D axes, R rows of a `SweepRows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk.inputs import Gradients, SweepInputs, state_dtype
from mdlstm_tk.wavefront import SweepRows, unvisited, visited

# How `multiply_transposed` sums: rows of a part, and the most numbers in the sums of parts at a time.
SUM_ROWS = 256
MAX_PART_SUMS = 1 << 20


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` of (dirs, rows, k) and (dirs, k, columns), in the dtype of the state."""
    dtype = state_dtype(a)
    if a.dtype == dtype:
        return torch.bmm(a, b, out=out)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=dtype, out=out)
    return torch.bmm(a.to(dtype), b.to(dtype), out=out)


def multiply_transposed(a: Tensor, b: Tensor) -> Tensor:
    """`aᵀ @ b` of (dirs, rows, m) and (dirs, rows, k), in the dtype of the state.

    It is a sum over all rows, and made of the sums of SUM_ROWS rows each. Where k is small, BLAS may add
    one row after another, and a float32 sum of 65536 rows is then wrong by 1e-5 of itself.
    """
    result = a.new_zeros(a.shape[0], a.shape[2], b.shape[2], dtype=state_dtype(a))
    step = SUM_ROWS * max(1, MAX_PART_SUMS // max(1, result.numel()))  # rows whose parts are in memory
    for a_rows, b_rows in zip(a.split(step, dim=1), b.split(step, dim=1), strict=True):
        parts = a_rows.shape[1] // SUM_ROWS
        full = parts * SUM_ROWS  # the number of rows in full parts
        if parts > 0:
            a_parts, b_parts = (
                t[:, :full].reshape(-1, SUM_ROWS, t.shape[2]) for t in (a_rows, b_rows)
            )  # (dirs·parts, SUM_ROWS, m or k)
            part_sums = multiply(a_parts.transpose(1, 2), b_parts)
            result += part_sums.unflatten(0, (-1, parts)).sum(dim=1)
        result += multiply(a_rows[:, full:].transpose(1, 2), b_rows[:, full:])
    return result


def gather_hidden(h: Tensor, entering: Tensor, rows: SweepRows) -> Tensor:
    """(h_1 | … | h_D) of the predecessors of every row, (dirs, R, D·n), from h of all rows (dirs, R, n) and
    of the lines that enter."""
    h = torch.cat([h, entering.to(h.dtype)], dim=1)
    return torch.stack([h[:, index] for index in rows.predecessors], dim=2).flatten(2)


def input_gradients(
    inputs: SweepInputs,
    da: Tensor,
    hidden: Tensor | None,
    rows: SweepRows,
    wants_dx: bool,
    wants_weights: bool,
) -> Gradients:
    """The gradients of x, weight_ih, weight_hh and bias that are wanted.

    Args:
        inputs: of the sweep.
        da: (dirs, R, G·n) gradient of the pre-activations, in x's dtype.
        hidden: (dirs, R, D·n) the h of the predecessors; not needed without weight_hh.
        rows: of the sweep.
        wants_dx, wants_weights: see `Engine.backward`.
    """
    x, gradients = inputs.x, Gradients()
    if wants_dx:
        dx = unvisited(multiply(da, inputs.weight_ih), rows).sum(dim=1).reshape(x.shape)
        gradients["x"] = dx.to(x.dtype)
    if not wants_weights:
        return gradients
    gradients["weight_ih"] = multiply_transposed(da, visited(x, rows)).to(x.dtype)
    if inputs.weight_hh is not None and hidden is not None:
        joint = multiply_transposed(da, hidden).unflatten(-1, (inputs.ndim, inputs.units))
        gradients["weight_hh"] = joint.transpose(1, 2).to(x.dtype)  # (dirs, D, G·n, n)
    if inputs.bias is not None:
        gradients["bias"] = da.sum(dim=1, dtype=state_dtype(da)).to(x.dtype)
    return gradients
