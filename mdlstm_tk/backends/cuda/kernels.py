"""The part of a wavefront that is not a matrix product, in Triton: forward and backward.

Launch grid: (blocks of ROWS rows, blocks of BLOCK units, dirs). With layer norm BLOCK covers all n units,
because a mean needs them. Rows are (position, sample) in visiting order, so within a direction a wavefront
is contiguous in a, c and da.

No kernel uses atomics: a position reads its neighbours' values itself, or one neighbour alone writes them
    to
it, and every block of rows adds up parameter gradients in a part of its own. So results do not depend on
the order in which programs run.

`forward` and `backward` are templates: `mdlstm_tk.backends.cuda.codegen` makes one kernel of them for each
cell, with other values for the globals `_cell` and `RECURRENT`.

Notation
    N, P, D      batch, positions, axes (AXES); dirs: directions
    n, G         hidden units (UNITS), gates (GATES)
    W, U_d       weights of x, and of h one step back along axis d
    visit        index of a position in visiting order
    local row    row within (dirs, K·N) of one wavefront with K positions: direction · K·N + row
    global row   row within (dirs, P·N): (direction · P + visit) · N + sample
    …_ptr        a pointer; the parameters and their gradients are pointers, too, or None
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

RECURRENT = tl.constexpr(True)  # whether the gates see the predecessors' h; codegen sets it for each cell


def _cell(*blocks: Any) -> Any:
    """The cell, which codegen replaces; the slots are those of `mdlstm_tk.cells.lowering`.

    forward: (a, c_prev, peephole, norm_weight, norm_bias, unit, UNITS) → (h,), (c,), gates.
    backward: (gates, c_prev, (c,), (dh,), dh_next, dc_next, peephole, norm_weight, norm_bias, unit, UNITS)
        →
    da, dc_prev, dpeephole, dnorm_weight, dnorm_bias.
    Each is a tuple of blocks: (ROWS, BLOCK), those of parameters (1, BLOCK).
    """
    raise NotImplementedError


@triton.jit
def tanh(x):
    """tanh: a Padé approximant [7/6] for |x| < 0.5, where 1 − exp(−2|x|) loses digits; beyond that, exp."""
    size = tl.abs(x)
    small = tl.minimum(size, 1.0)  # keeps the powers finite in the branch that is not used
    square = small * small
    numerator = 135135.0 + square * (17325.0 + square * (378.0 + square))
    near = size * (numerator / (135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))))
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    result = tl.where(size < 0.5, near, far)
    return tl.where(x < 0.0, -result, result)


@triton.jit
def _rows(starts_ptr, order_ptr, direction, t, batch, positions, ROWS: tl.constexpr):
    """This program's rows of wavefront t, (ROWS, 1) each.

    Returns:
        visit, sample, local row, global row, place (the row in (N, P)), and whether the row exists: it does
        not past the end of the wavefront.
    """
    # `starts` has an empty wavefront in front, so wavefront t is from starts[t + 1] to starts[t + 2].
    first, end = tl.load(starts_ptr + t + 1), tl.load(starts_ptr + t + 2)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    exists = row < (end - first) * batch
    visit, sample = first + row // batch, row % batch
    position = tl.load(order_ptr + direction * positions + visit, mask=exists, other=0)
    local_row = direction * (end - first) * batch + row
    global_row = (direction * positions + first) * batch + row
    return visit, sample, local_row, global_row, sample * positions + position, exists


@triton.jit
def _predecessor(predecessors_ptr, direction, visit, sample, exists, batch, positions):
    """The global row one step back along the axis of `predecessors_ptr`, and whether it is in the grid."""
    previous = tl.load(predecessors_ptr + visit, mask=exists, other=-1)
    return (direction * positions + previous) * batch + sample, previous >= 0


@triton.jit
def _successor(successors_ptr, starts_ptr, direction, t, visit, sample, exists, batch):
    """The local row, in the next wavefront, one step forward along the axis of `successors_ptr`, and
    whether that lies in the grid."""
    first, end = tl.load(starts_ptr + t + 2), tl.load(starts_ptr + t + 3)
    following = tl.load(successors_ptr + visit, mask=exists, other=-1)
    return (direction * (end - first) + following - first) * batch + sample, following >= 0


@triton.jit
def _face_row(ends_ptr, axis, direction, row, rows, lines, exists):
    """The row, in states (dirs, lines, n) of all faces, of the line along `axis` that has its end at a
    global row, and whether there is one. `ends_ptr` is (D, dirs, rows), with rows = P·N."""
    dirs = tl.num_programs(2)
    line = tl.load(ends_ptr + axis * dirs * rows + row, mask=exists, other=-1).to(tl.int64)
    return direction * lines + line, line >= 0


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
    """Add the sum over this program's rows to part `index` of a gradient (parts, COUNT, n) in float64,
    which no other program of the launch touches."""
    if tensor is not None:
        for k in tl.static_range(COUNT):
            row_ptr = tensor + (index * COUNT + k) * UNITS + unit
            before = tl.load(row_ptr, mask=unit < UNITS, other=0.0)
            added = tl.sum(rows[k], axis=0, keep_dims=True).to(before.dtype)
            tl.store(row_ptr, before + added, mask=unit < UNITS)


def forward(
    a_ptr, recurrent_ptr, operand_ptr, next_operand_ptr, c_ptr, output_ptr,
    bias, peephole, norm_weight, norm_bias,
    starts_ptr, order_ptr, predecessors_ptr, successors_ptr, valid_ptr, c_first_ptr, entering_ptr,
    t, batch, positions, lines,
    AXES: tl.constexpr, GATES: tl.constexpr, UNITS: tl.constexpr,
    KEEP_C: tl.constexpr, KEEP_GATES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute h and c of all positions of wavefront t.

    Args:
        a_ptr: (dirs, P·N, G·n) W x. If KEEP_GATES, it is overwritten with the activated gates, or with
            layer norm with the pre-activations.
        recurrent_ptr: (dirs, K·N, G·n) Σ_d U_d h_d of this wavefront, if the cell is recurrent.
        operand_ptr: (dirs, K·N, D·n) the h_d that the product has read; cleared, so that the buffer can
            serve the wavefront after the next.
        next_operand_ptr: the same for the next wavefront: zeros, to which h is written for the successors.
        c_ptr: if KEEP_C, (dirs, P·N, n), written. Otherwise a, whose first n columns c overwrites to save
            memory. KEEP_GATES needs KEEP_C.
        output_ptr: (N, P, dirs, n), written.
        bias: (dirs, G, n) or None.
        peephole, norm_weight, norm_bias: (dirs, 2D + 1, n), (dirs, G + 1, n) twice, or None; see
            `CellParameters`.
        starts_ptr, order_ptr, predecessors_ptr, successors_ptr: see `SweepTables`.
        valid_ptr: (N, P) bool, or None if all positions are valid.
        c_first_ptr: (dirs, lines, n) the initial c of all faces, or None; that of h is in a.
        entering_ptr: (D, dirs, P·N) the lines that enter at a row, see `faces.face_rows`; or None.
        t, batch, positions, lines: the wavefront, N, P, F·N.
    """
    # Offsets may exceed 2³¹, and a product of two int32 is int32. So whatever offsets come from is int64.
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    t, batch, positions = t.to(tl.int64), batch.to(tl.int64), positions.to(tl.int64)
    rows, lines = positions * batch, lines.to(tl.int64)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    visit, sample, local_row, global_row, place, exists = _rows(
        starts_ptr, order_ptr, direction, t, batch, positions, ROWS
    )
    mask = exists & (unit < UNITS)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    c_width: tl.constexpr = UNITS if KEEP_C else GATES * UNITS

    bias_rows = _parameter_rows(bias, direction, unit, dtype, GATES, UNITS)
    a = ()
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
        c_d = tl.load(c_ptr + row * c_width + unit, mask=mask & inside, other=0.0)
        if c_first_ptr is not None:  # without a valid predecessor, c_d is 0
            row, enters = _face_row(entering_ptr, d, direction, global_row, rows, lines, exists)
            c_d += tl.load(c_first_ptr + row * UNITS + unit, mask=mask & enters, other=0.0)
        c_prev += (c_d,)
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
    grad_ptr, gates_ptr, c_ptr, next_dh_ptr, dc_prev_ptr, next_dc_ptr, peephole, norm_weight, norm_bias,
    da_ptr, dpeephole, dnorm_weight, dnorm_bias,
    starts_ptr, order_ptr, predecessors_ptr, successors_ptr, valid_ptr, c_first_ptr, entering_ptr,
    leaving_ptr, dh_last_ptr, dc_last_ptr, dc_first_ptr, t, batch, positions, lines, blocks,
    AXES: tl.constexpr, GATES: tl.constexpr, UNITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute da, and the gradients of the predecessors' c and of the parameters, for wavefront t.
    Wavefronts run from the last to the first. The parameters, tables, valid_ptr, c_first_ptr, entering_ptr,
    t, batch, positions and lines are those of `forward`.

    Args:
        grad_ptr: (N, P, dirs, n) gradient of the output.
        gates_ptr: (dirs, P·N, G·n) what `forward` left in a; in the pass "recompute", pre-activations.
        c_ptr: (dirs, P·N, n), read.
        next_dh_ptr: (dirs, rows of wavefront t + 1, D·n) U_dᵀ da, the gradient of the h that each position
            of wavefront t + 1 read along axis d, if the cell is recurrent.
        dc_prev_ptr: (dirs, rows of wavefront t, D·n), written: the gradient of the c that each position
            read along axis d.
        next_dc_ptr: what dc_prev_ptr was for wavefront t + 1.
        da_ptr: (dirs, P·N, G·n), written; may be the same memory as gates.
        dpeephole, dnorm_weight, dnorm_bias: (dirs, blocks, rows of the parameter, n) float64 or None, zeros
            before the first launch; the caller sums over the blocks.
        leaving_ptr: (D, dirs, P·N) the lines that leave at a row, or None.
        dh_last_ptr, dc_last_ptr: (dirs, lines, n) gradients of the final states, or None.
        dc_first_ptr: (dirs, lines, n) gradient of the initial c: zeros, and written where a line enters.
        blocks: the number of blocks of rows of the longest wavefront.
    """
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    t, batch, positions = t.to(tl.int64), batch.to(tl.int64), positions.to(tl.int64)
    rows, lines = positions * batch, lines.to(tl.int64)
    blocks = blocks.to(tl.int64)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    visit, sample, local_row, global_row, place, exists = _rows(
        starts_ptr, order_ptr, direction, t, batch, positions, ROWS
    )
    mask = exists & (unit < UNITS)
    dtype: tl.constexpr = gates_ptr.dtype.element_ty

    live = mask  # a position outside its sample's valid extents gets no gradient, so it passes none on
    if valid_ptr is not None:
        live = mask & (tl.load(valid_ptr + place, mask=exists, other=0) != 0)
    grad_offset = (place * dirs + direction) * UNITS + unit
    dh = tl.load(grad_ptr + grad_offset, mask=live, other=0.0).to(dtype)
    gates, c_prev, dh_next, dc_next = (), (), (), ()
    for k in tl.static_range(GATES):
        column = k * UNITS + unit
        gates += (tl.load(gates_ptr + global_row * (GATES * UNITS) + column, mask=mask, other=0.0),)
    for d in tl.static_range(AXES):
        row, inside = _predecessor(
            predecessors_ptr + d * positions, direction, visit, sample, exists, batch, positions
        )
        c_d = tl.load(c_ptr + row * UNITS + unit, mask=mask & inside, other=0.0)
        if c_first_ptr is not None:
            row, enters = _face_row(entering_ptr, d, direction, global_row, rows, lines, exists)
            c_d += tl.load(c_first_ptr + row * UNITS + unit, mask=mask & enters, other=0.0)
        c_prev += (c_d,)
        row, inside = _successor(
            successors_ptr + d * positions, starts_ptr, direction, t, visit, sample, exists, batch
        )
        offset = row * (AXES * UNITS) + d * UNITS + unit
        if RECURRENT:
            dh_d = tl.load(next_dh_ptr + offset, mask=live & inside, other=0.0)
        else:
            dh_d = tl.zeros([ROWS, BLOCK], dtype)
        dc_d = tl.load(next_dc_ptr + offset, mask=live & inside, other=0.0)
        if leaving_ptr is not None:  # without a valid successor, dh_d and dc_d are 0
            row, leaves = _face_row(leaving_ptr, d, direction, global_row, rows, lines, exists)
            offset = row * UNITS + unit
            dh_d += tl.load(dh_last_ptr + offset, mask=live & leaves, other=0.0).to(dtype)
            dc_d += tl.load(dc_last_ptr + offset, mask=live & leaves, other=0.0)
        dh_next += (dh_d,)
        dc_next += (dc_d,)
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
        tl.store(dc_prev_ptr + local_row * (AXES * UNITS) + d * UNITS + unit, dc_prev[d], mask=mask)
        if c_first_ptr is not None:
            row, enters = _face_row(entering_ptr, d, direction, global_row, rows, lines, exists)
            tl.store(dc_first_ptr + row * UNITS + unit, dc_prev[d], mask=live & enters)
    part = direction * blocks + tl.program_id(0)
    _accumulate(dpeephole, peephole_rows, part, unit, 2 * AXES + 1, UNITS)
    _accumulate(dnorm_weight, norm_weight_rows, part, unit, GATES + 1, UNITS)
    _accumulate(dnorm_bias, norm_bias_rows, part, unit, GATES + 1, UNITS)
