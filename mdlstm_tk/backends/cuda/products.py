"""The matrix products of a sweep that span the whole grid, or all places where initial states enter it.

float16 and bfloat16 are multiplied as they are and added up in float32. Pre-activations stay float32:
rounded to float16 they could be infinite, and NaN after a layer norm.

Notation: N batch, P positions, F lines, C input features, G gates, n units, D axes; rows as in
`mdlstm_tk.wavefront`, with "visits" and "batch" of a `SweepRows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk.inputs import Gradients, SweepInputs, state_dtype
from mdlstm_tk.states import at_rows, by_direction, end_rows, take_rows
from mdlstm_tk.wavefront import SweepRows, unvisited, visited

# How `multiply_transposed` sums: rows of a part, and the most numbers in the sums of parts at a time.
SUM_ROWS = 256
MAX_PART_SUMS = 1 << 20


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` of (dirs, rows, k) and (dirs, k, columns), in the dtype of the state."""
    dtype = state_dtype(a)
    if a.dtype == dtype:
        return torch.bmm(a, b, out=out)
    if a.is_cuda and torch.version.hip is None:
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


def project_input(inputs: SweepInputs, rows: SweepRows) -> Tensor:
    """W x, (dirs, rows, G·n)."""
    return multiply(visited(inputs.x, rows), inputs.weight_ih.transpose(1, 2))


def pre_activations(inputs: SweepInputs, rows: SweepRows, hidden: Tensor | None) -> Tensor:
    """W x + Σ_d U_d h_d + b, (dirs, rows, G·n), from `gather_hidden`; without it W x + b."""
    a = project_input(inputs, rows)
    if hidden is not None and inputs.weight_hh is not None:
        a += multiply(hidden, recurrent_weights(inputs.weight_hh))
    return a if inputs.bias is None else a + inputs.bias[:, None]


def gather_hidden(inputs: SweepInputs, output: Tensor, rows: SweepRows) -> Tensor:
    """(h_1 | … | h_D) of the predecessors of every row, with those that enter, (dirs, rows, D·n)."""
    h = to_visiting_order(output, rows)  # (dirs, visits, batch, n)
    h = torch.nn.functional.pad(h, (0, 0, 0, 0, 0, 1))  # the last one, at index −1, is zeros
    hidden = torch.stack([h[:, index] for index in rows.tables.predecessors], dim=3).flatten(1, 2)
    if inputs.initial is not None:
        hidden += at_rows(inputs.initial[..., :1, :], inputs, rows, leaving=False).permute(1, 2, 0, 3)
    return hidden.flatten(2)


def add_entering_products(a: Tensor, inputs: SweepInputs, rows: SweepRows) -> None:
    """Add U_d h_d of the h_d that enter the grid to `a` (dirs, rows, G·n)."""
    weight_hh, initial = inputs.weight_hh, inputs.initial
    if weight_hh is None or initial is None or a.shape[1] == 0:
        return
    entering = end_rows(inputs, rows, leaving=False)
    h = by_direction(initial[..., :1, :]).to(weight_hh.dtype)
    parts = h.split([rows_d.shape[1] for rows_d in entering], dim=1)
    for d, (h_d, rows_d) in enumerate(zip(parts, entering, strict=True)):
        product = multiply(h_d, weight_hh[:, d].transpose(1, 2)).masked_fill(rows_d[..., None] < 0, 0)
        # The rows differ where they are not −1.
        a.index_put_((_direction(a), rows_d.clamp(min=0)), product, accumulate=True)


def entering_gradients(da: Tensor, weight_hh: Tensor, inputs: SweepInputs, rows: SweepRows) -> Tensor:
    """U_dᵀ da, the gradient of the h that enter, (dirs, F·N, n), from that of the pre-activations."""
    entering = enumerate(end_rows(inputs, rows, leaving=False))
    return torch.cat([multiply(take_rows(da, rows_d), weight_hh[:, d]) for d, rows_d in entering], dim=1)


def _direction(rows: Tensor) -> Tensor:
    """(dirs, 1): together with `rows` (dirs, …) it indexes each direction with its own rows."""
    return torch.arange(len(rows), device=rows.device)[:, None]


def to_visiting_order(y: Tensor, rows: SweepRows) -> Tensor:
    """(N, *grid, dirs, n) → (dirs, visits, batch, n)."""
    order = rows.tables.order
    places = y.reshape(rows.batch, rows.tables.places, *y.shape[-2:]).permute(2, 1, 0, 3)
    return places[_direction(order), order]


def input_gradients(
    inputs: SweepInputs,
    da: Tensor,
    operands: Tensor | None,
    rows: SweepRows,
    wants_dx: bool,
    wants_weights: bool,
) -> Gradients:
    """The gradients of x, weight_ih, weight_hh and bias that are wanted.

    Args:
        inputs: of the sweep.
        da: (dirs, rows, G·n) gradient of the pre-activations, in x's dtype.
        operands: (dirs, rows, D·n) the h of the predecessors; not needed without weight_hh.
        rows: of the sweep.
        wants_dx, wants_weights: see `Engine.backward`.
    """
    x, gradients = inputs.x, Gradients()
    if wants_weights:
        gradients["weight_ih"] = multiply_transposed(da, visited(x, rows)).to(x.dtype)
    if wants_weights and inputs.weight_hh is not None and operands is not None:
        joint = multiply_transposed(da, operands).unflatten(-1, (inputs.ndim, inputs.units))
        gradients["weight_hh"] = joint.transpose(1, 2).to(x.dtype)  # (dirs, D, G·n, n)
    if wants_dx:
        per_direction = multiply(da, inputs.weight_ih).unflatten(1, (rows.tables.positions, rows.batch))
        dx = unvisited(per_direction, rows).sum(dim=0).transpose(0, 1).reshape(x.shape)
        gradients["x"] = dx.to(x.dtype)
    if wants_weights and inputs.bias is not None:
        gradients["bias"] = da.sum(dim=1, dtype=state_dtype(da)).to(x.dtype)
    return gradients


def recurrent_weights(weight_hh: Tensor) -> Tensor:
    """(dirs, D, G·n, n) → (dirs, D·n, G·n): (h_1 | … | h_D) times this is Σ_d U_d h_d."""
    return weight_hh.transpose(2, 3).flatten(1, 2)


def transposed_recurrent_weights(weight_hh: Tensor) -> Tensor:
    """(dirs, D, G·n, n) → (dirs, G·n, D·n): da times this is the gradient of (h_1 | … | h_D)."""
    return weight_hh.transpose(1, 2).flatten(2, 3)
