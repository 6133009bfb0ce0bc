"""The matrix products of a sweep that span the whole grid: those of x before the first wavefront, and the
gradients of the weights after the last.

float16 and bfloat16 are multiplied as they are and added up in float32. What becomes of a pre-activation
stays float32: rounded to float16 it could be infinite, and NaN after a layer norm.

Notation: N batch, P positions, C input features, G gates, n units, D axes; rows as in
`mdlstm_tk.backends.tables`, with "visits" and "batch" of a `SweepRows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk.backends.faces import by_direction, line_counts, take_rows
from mdlstm_tk.backends.inputs import SweepInputs, state_dtype
from mdlstm_tk.backends.tables import SweepRows

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
        whole = parts * SUM_ROWS
        if parts > 0:
            a_parts, b_parts = (
                t[:, :whole].reshape(-1, SUM_ROWS, t.shape[2]) for t in (a_rows, b_rows)
            )  # (dirs·parts, SUM_ROWS, m or k)
            part_sums = multiply(a_parts.transpose(1, 2), b_parts)
            result += part_sums.unflatten(0, (-1, parts)).sum(dim=1)
        result += multiply(a_rows[:, whole:].transpose(1, 2), b_rows[:, whole:])
    return result


def project_input(inputs: SweepInputs, rows: SweepRows) -> Tensor:
    """W x, (dirs, rows, G·n)."""
    return multiply(_visited_input(inputs.x, rows), inputs.weight_ih.transpose(1, 2))


def pre_activations(inputs: SweepInputs, output: Tensor, rows: SweepRows) -> Tensor:
    """W x + Σ_d U_d h_d + b, (dirs, rows, G·n), once h of the whole grid is known."""
    a = project_input(inputs, rows)
    if inputs.weight_hh is not None:
        a = a.add_(multiply(gather_hidden(output, rows), inputs.weight_hh.transpose(2, 3).flatten(1, 2)))
    return a if inputs.bias is None else a.add_(inputs.bias[:, None])


def face_products(inputs: SweepInputs, h: Tensor, rows: Tensor, a: Tensor) -> Tensor:
    """`a` with U_d h_d added at the positions where the h_d of a face enters.

    Args:
        inputs: of the sweep.
        h: (N, F, dirs, n) on the faces.
        rows: (dirs, F, N) where each line enters, see `faces.end_rows`.
        a: (dirs, all rows, G·n), which is not changed.
    """
    if inputs.weight_hh is None or a.shape[1] == 0:
        return a
    for d, (h_d, rows_d) in enumerate(_of_axes(inputs, h, rows)):
        product = multiply(h_d, inputs.weight_hh[:, d].transpose(1, 2)).masked_fill(
            rows_d[..., None] < 0, 0
        )
        # The rows of one axis are all different, but for those that are −1, where nothing is added.
        a = a.index_put((_direction(rows_d), rows_d.clamp(min=0)), product, accumulate=True)
    return a


def face_gradients(
    inputs: SweepInputs, da: Tensor, h: Tensor, rows: Tensor, dw_hh: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The gradient of h on the faces (dirs, F·N, n), and `dw_hh` with what the faces add to it.

    Args:
        inputs, h, rows: as for `face_products`.
        da: (dirs, all rows, G·n) gradient of the pre-activations, in x's dtype.
        dw_hh: (dirs, D, G·n, n), or None if the cell is not recurrent.
    """
    if inputs.weight_hh is None or dw_hh is None:
        return torch.zeros_like(by_direction(h)), dw_hh
    dh, dw = [], []
    for d, (h_d, rows_d) in enumerate(_of_axes(inputs, h, rows)):
        da_d = take_rows(da, rows_d)  # (dirs, F_d·N, G·n)
        dh.append(multiply(da_d, inputs.weight_hh[:, d]))
        dw.append(multiply_transposed(da_d, h_d))
    return torch.cat(dh, dim=1).to(h.dtype), dw_hh + torch.stack(dw, dim=1).to(dw_hh.dtype)


def _of_axes(inputs: SweepInputs, h: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each axis (dirs, F_d·N, n) of h on its face, and the rows (dirs, F_d·N) where they enter."""
    counts, batch = line_counts(inputs.grid), inputs.x.shape[0]
    parts = by_direction(h).split([count * batch for count in counts], dim=1)
    return list(zip(parts, rows.flatten(1).split([count * batch for count in counts], dim=1), strict=True))


def _direction(rows: Tensor) -> Tensor:
    """(dirs, 1): together with `rows` (dirs, …) it indexes each direction with its own rows."""
    return torch.arange(len(rows), device=rows.device)[:, None]


def to_visiting_order(y: Tensor, rows: SweepRows) -> Tensor:
    """(N, *grid, dirs, n) → (dirs, visits, batch, n)."""
    order = rows.tables.order
    places = y.reshape(rows.batch, rows.tables.places, *y.shape[-2:]).permute(2, 1, 0, 3)
    return places[_direction(order), order]


def to_grid_order(visited: Tensor, rows: SweepRows) -> Tensor:
    """(dirs, visits, batch, k) → (dirs, places, batch, k), zeros where there is no visit."""
    if rows.ragged:
        visited = _with_zeros(visited)
    inverse_order = rows.tables.inverse_order
    return visited[_direction(inverse_order), inverse_order]


def gather_hidden(output: Tensor, rows: SweepRows) -> Tensor:
    """(h_1 | … | h_D) of the predecessors of every row, (dirs, rows, D·n)."""
    h = _with_zeros(to_visiting_order(output, rows))
    return torch.cat([h[:, index] for index in rows.tables.predecessors], dim=-1).flatten(1, 2)


def _with_zeros(visited: Tensor) -> Tensor:
    """(dirs, visits + 1, batch, k): the last one, at index −1, is zeros."""
    return torch.cat([visited, visited.new_zeros(len(visited), 1, *visited.shape[2:])], dim=1)


def weight_gradients(
    inputs: SweepInputs, da: Tensor, output: Tensor, rows: SweepRows, wants_dx: bool
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh and bias.

    Args:
        inputs: of the sweep.
        da: (dirs, rows, G·n) gradient of the pre-activations, in x's dtype.
        output: (N, *grid, dirs, n).
        rows: of the sweep.
        wants_dx: whether the gradient of x is needed.
    """
    x = inputs.x
    dx = dw_hh = None
    if wants_dx:
        per_direction = multiply(da, inputs.weight_ih).unflatten(1, (rows.tables.positions, rows.batch))
        dx = to_grid_order(per_direction, rows).sum(dim=0).transpose(0, 1).reshape(x.shape)
    if inputs.weight_hh is not None:
        joint = multiply_transposed(da, gather_hidden(output, rows)).unflatten(-1, (-1, output.shape[-1]))
        dw_hh = joint.transpose(1, 2)  # (dirs, D, G·n, n)
    dw_ih = multiply_transposed(da, _visited_input(x, rows))
    db = None if inputs.bias is None else da.sum(dim=1, dtype=state_dtype(da))
    return [None if g is None else g.to(x.dtype) for g in (dx, dw_ih, dw_hh, db)]


def _visited_input(x: Tensor, rows: SweepRows) -> Tensor:
    """(N, *grid, C) → (dirs, rows, C)."""
    places = x.reshape(rows.batch, rows.tables.places, x.shape[-1]).transpose(0, 1)
    return places[rows.tables.order].flatten(1, 2)
