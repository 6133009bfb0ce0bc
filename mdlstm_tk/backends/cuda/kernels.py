"""The part of a wavefront that is not a matrix product, in Triton: forward and backward.

Rows are (position, sample) in visiting order, so a wavefront is contiguous in a, c and da. A program takes
ROWS rows of one direction and BLOCK units of each; with layer norm all units. What reaches a position from
its
neighbours is fetched by it, or was written by one neighbour alone: nothing is added up atomically, so
    results
do not depend on which program runs first.

`forward` and `backward` are templates: `mdlstm_tk.backends.cuda.codegen` makes one kernel of them for each
cell, with other values for the globals `_cell` and `RECURRENT`.

Notation
    N, P, D      batch, positions, axes (AXES)
    n, G         hidden units (UNITS), gates (GATES)
    visit        index of a position in visiting order
    local row    row within (dirs, rows of one wavefront)
    global row   row within (dirs, P·N)
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

RECURRENT = tl.constexpr(True)  # whether the gates see h; each specialised kernel has its own value


def _cell(*blocks: Any) -> Any:
    """The cell on blocks (ROWS, BLOCK); each specialised kernel has its own in place of this one."""
    raise NotImplementedError


@triton.jit
def tanh(x):
    """tanh by a Padé approximant [7/6] near 0, where the formula with exp would lose digits."""
    size = tl.abs(x)
    s = tl.minimum(size, 1.0) * tl.minimum(size, 1.0)
    numerator = 135135.0 + s * (17325.0 + s * (378.0 + s))
    near = size * (numerator / (135135.0 + s * (62370.0 + s * (3150.0 + s * 28.0))))
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    result = tl.where(size < 0.5, near, far)
    return tl.where(x < 0.0, -result, result)


@triton.jit
def _rows(starts_ptr, order_ptr, direction, t, batch, positions, ROWS: tl.constexpr):
    """This program's rows of wavefront t, (ROWS, 1) each.

    Returns:
        The visit and the sample; the local row, the global row, and the row within (N, P); and whether the
        wavefront has such a row.
    """
    first, end = tl.load(starts_ptr + t + 1), tl.load(starts_ptr + t + 2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    exists = row < (end - first) * batch
    visit, sample = first + row // batch, row % batch
    position = tl.load(order_ptr + direction * positions + visit, mask=exists, other=0)
    local_row = direction * (end - first) * batch + row
    global_row = (direction * positions + first) * batch + row
    return visit, sample, local_row, global_row, sample * positions + position, exists


@triton.jit
def _predecessor(predecessors_ptr, direction, visit, sample, exists, batch, positions):
    """The global row one step back along an axis, and whether there is one."""
    previous = tl.load(predecessors_ptr + visit, mask=exists, other=-1)
    return (direction * positions + previous) * batch + sample, previous >= 0


@triton.jit
def _successor(successors_ptr, starts_ptr, direction, t, visit, sample, exists, batch):
    """The local row of the next wavefront one step forward along an axis, and whether there is one."""
    first, end = tl.load(starts_ptr + t + 2), tl.load(starts_ptr + t + 3)
    following = tl.load(successors_ptr + visit, mask=exists, other=-1)
    return (direction * (end - first) + following - first) * batch + sample, following >= 0


@triton.jit
def _parameter_rows(tensor, direction, unit, dtype: tl.constexpr, COUNT: tl.constexpr, UNITS: tl.constexpr):
    """A direction's rows of a parameter (dirs, COUNT, n); none if there is no such parameter."""
    rows = ()
    if tensor is not None:
        for k in tl.static_range(COUNT):
            row_ptr = tensor + (direction * COUNT + k) * UNITS + unit
            rows += (tl.load(row_ptr, mask=unit < UNITS, other=0.0).to(dtype),)
    return rows


@triton.jit
def _accumulate(tensor, rows, index, unit, COUNT: tl.constexpr, UNITS: tl.constexpr):
    """Add what this program's rows contribute to its part of a gradient (…, COUNT, n)."""
    if tensor is not None:
        for k in tl.static_range(COUNT):
            row_ptr = tensor + (index * COUNT + k) * UNITS + unit
            before = tl.load(row_ptr, mask=unit < UNITS, other=0.0)
            tl.store(row_ptr, before + tl.sum(rows[k], axis=0, keep_dims=True), mask=unit < UNITS)


def forward(
    a_ptr, recurrent_ptr, operand_ptr, next_operand_ptr, c_ptr, output_ptr,
    bias, peephole, norm_weight, norm_bias,
    starts_ptr, order_ptr, predecessors_ptr, successors_ptr, valid_ptr, t, batch, positions,
    AXES: tl.constexpr, GATES: tl.constexpr, UNITS: tl.constexpr,
    KEEP_C: tl.constexpr, KEEP_GATES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The positions of wavefront t.

    Args:
        a_ptr: (dirs, P·N, G·n) W x. If KEEP_GATES, what backward needs of the gates replaces it.
        recurrent_ptr: (dirs, rows, G·n) Σ_d U_d h_d of this wavefront, if the cell is recurrent.
        operand_ptr: (dirs, rows, D·n) the h_d that it came from; set to zeros.
        next_operand_ptr: (dirs, rows of the next wavefront, D·n) zeros; written where there is a successor.
        c_ptr: (dirs, P·N, n), written; or unless KEEP_C a, whose first n columns c takes.
        output_ptr: (N, P, dirs, n), written.
        bias, peephole, norm_weight, norm_bias: (dirs, rows of each, n) or None.
        starts_ptr, order_ptr, predecessors_ptr, successors_ptr: see `SweepTables`.
        valid_ptr: (N, P) bool, or None if all positions are valid.
        t, batch, positions: the wavefront, N, P.
    """
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    visit, sample, local_row, global_row, place, exists = _rows(
        starts_ptr, order_ptr, direction, t, batch, positions, ROWS
    )
    mask = exists & (unit < UNITS)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    c_width: tl.constexpr = UNITS if KEEP_C else GATES * UNITS

    a, bias_rows = (), _parameter_rows(bias, direction, unit, dtype, GATES, UNITS)
    for k in tl.static_range(GATES):
        column = k * UNITS + unit
        value = tl.load(a_ptr + global_row * (GATES * UNITS) + column, mask=mask, other=0.0)
        if RECURRENT:
            value += tl.load(recurrent_ptr + local_row * (GATES * UNITS) + column, mask=mask, other=0.0)
        if bias is not None:
            value += bias_rows[k]
        a += (value,)
    c_prev = ()
    for d in tl.static_range(AXES):
        row, inside = _predecessor(
            predecessors_ptr + d * positions, direction, visit, sample, exists, batch, positions
        )
        c_prev += (tl.load(c_ptr + row * c_width + unit, mask=mask & inside, other=0.0),)
    h_rows, c_rows, gates = _cell(
        a, c_prev,
        _parameter_rows(peephole, direction, unit, dtype, 2 * AXES + 1, UNITS),
        _parameter_rows(norm_weight, direction, unit, dtype, GATES + 1, UNITS),
        _parameter_rows(norm_bias, direction, unit, dtype, GATES + 1, UNITS),
        unit, UNITS,
    )  # fmt: skip
    h, c_new = h_rows[0], c_rows[0]
    if valid_ptr is not None:
        valid = tl.load(valid_ptr + place, mask=exists, other=0) != 0
        h, c_new = tl.where(valid, h, 0.0), tl.where(valid, c_new, 0.0)

    tl.store(output_ptr + (place * dirs + direction) * UNITS + unit, h, mask=mask)
    tl.store(c_ptr + global_row * c_width + unit, c_new, mask=mask)
    if KEEP_GATES:
        for k in tl.static_range(GATES):
            tl.store(a_ptr + global_row * (GATES * UNITS) + k * UNITS + unit, gates[k], mask=mask)
    if RECURRENT:
        for d in tl.static_range(AXES):
            column = d * UNITS + unit
            tl.store(operand_ptr + local_row * (AXES * UNITS) + column, 0.0, mask=mask)
            row, inside = _successor(
                successors_ptr + d * positions, starts_ptr, direction, t, visit, sample, exists, batch
            )
            tl.store(next_operand_ptr + row * (AXES * UNITS) + column, h, mask=mask & inside)


def backward(
    grad_ptr, gates_ptr, c_ptr, dh_ptr, dc_ptr, next_dc_ptr, peephole, norm_weight, norm_bias,
    da_ptr, dpeephole, dnorm_weight, dnorm_bias,
    starts_ptr, order_ptr, predecessors_ptr, successors_ptr, valid_ptr, t, batch, positions, blocks,
    AXES: tl.constexpr, GATES: tl.constexpr, UNITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the positions of wavefront t. The arguments are those of `forward`, and:

    Args:
        grad_ptr: (N, P, dirs, n) gradient of the output.
        gates_ptr: what `forward` left in a, or pre-activations, see `lowering.lower`.
        dh_ptr: (dirs, rows of the next wavefront, D·n) the gradients U_dᵀ da of the h_d that its positions
            saw, if the cell is recurrent.
        next_dc_ptr: (dirs, rows of the next wavefront, D·n) the gradients of the c_d that they saw.
        dc_ptr: (dirs, rows, D·n) the same for this wavefront, written.
        da_ptr: (dirs, P·N, G·n), written; may be gates.
        dpeephole, dnorm_weight, dnorm_bias: (dirs, blocks, rows, n) or None: each block of rows adds to its
            own part, wavefront after wavefront.
        blocks: the number of blocks of rows of the longest wavefront.
    """
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    visit, sample, local_row, global_row, place, exists = _rows(
        starts_ptr, order_ptr, direction, t, batch, positions, ROWS
    )
    mask = exists & (unit < UNITS)
    dtype: tl.constexpr = gates_ptr.dtype.element_ty

    valid = mask
    if valid_ptr is not None:
        valid = mask & (tl.load(valid_ptr + place, mask=exists, other=0) != 0)
    grad_row = grad_ptr + (place * dirs + direction) * UNITS + unit
    dh = tl.load(grad_row, mask=valid, other=0.0).to(dtype)
    gates, c_prev, dh_next, dc_next = (), (), (), ()
    for k in tl.static_range(GATES):
        column = k * UNITS + unit
        gates += (tl.load(gates_ptr + global_row * (GATES * UNITS) + column, mask=mask, other=0.0),)
    for d in tl.static_range(AXES):
        row, inside = _predecessor(
            predecessors_ptr + d * positions, direction, visit, sample, exists, batch, positions
        )
        c_prev += (tl.load(c_ptr + row * UNITS + unit, mask=mask & inside, other=0.0),)
        row, inside = _successor(
            successors_ptr + d * positions, starts_ptr, direction, t, visit, sample, exists, batch
        )
        column = row * (AXES * UNITS) + d * UNITS + unit
        if RECURRENT:
            dh_next += (tl.load(dh_ptr + column, mask=valid & inside, other=0.0),)
        else:
            dh_next += (tl.zeros([ROWS, BLOCK], dtype),)
        dc_next += (tl.load(next_dc_ptr + column, mask=valid & inside, other=0.0),)
    c_new = tl.load(c_ptr + global_row * UNITS + unit, mask=mask, other=0.0)
    da, dc_prev, peephole_rows, norm_weight_rows, norm_bias_rows = _cell(
        gates, c_prev, (c_new,), (dh,), dh_next, dc_next,
        _parameter_rows(peephole, direction, unit, dtype, 2 * AXES + 1, UNITS),
        _parameter_rows(norm_weight, direction, unit, dtype, GATES + 1, UNITS),
        _parameter_rows(norm_bias, direction, unit, dtype, GATES + 1, UNITS),
        unit, UNITS,
    )  # fmt: skip

    for k in tl.static_range(GATES):
        tl.store(da_ptr + global_row * (GATES * UNITS) + k * UNITS + unit, da[k], mask=mask)
    for d in tl.static_range(AXES):
        tl.store(dc_ptr + local_row * (AXES * UNITS) + d * UNITS + unit, dc_prev[d], mask=mask)
    part = direction * blocks + tl.program_id(0)
    _accumulate(dpeephole, peephole_rows, part, unit, 2 * AXES + 1, UNITS)
    _accumulate(dnorm_weight, norm_weight_rows, part, unit, GATES + 1, UNITS)
    _accumulate(dnorm_bias, norm_bias_rows, part, unit, GATES + 1, UNITS)
