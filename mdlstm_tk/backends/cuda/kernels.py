"""The part of a wavefront that is not a matrix product, in Triton: forward and backward.

Launch grid: (blocks of ROWS rows, blocks of BLOCK units, dirs). With layer norm BLOCK covers all n units,
because a mean needs them. Rows are in visiting order, so within a direction a wavefront is contiguous in a,
states and da.

No kernel uses atomics: a position reads its neighbours' values itself, or one neighbour alone writes them
to it, and every block of rows adds up parameter gradients in a part of its own. So results do not depend on
the order in which programs run.

`forward` and `backward` are templates: `mdlstm_tk.backends.cuda.codegen` makes one kernel of them for each
cell, with another function for the global `_cell`.

Notation
    N·P, D, S    places, axes (AXES), states beside h (STATES); dirs: directions
    n, G, M      hidden units (UNITS), gates (GATES), rows of the cell's parameters (PARAMETERS)
    R, L         rows and lines of a sweep, see `SweepRows`; K: rows of one wavefront
    W, U_d       weights of x, and of h one step back along axis d
    local row    row within (dirs, K) of one wavefront: direction · K + row − its first row
    global row   row within (dirs, R): direction · R + row
    …_ptr        a pointer, or None where that is said
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def _cell(*arguments: Any) -> Any:
    """The cell, which codegen replaces; the slots are those of `mdlstm_tk.cells.step`.

    forward: (a, h_prev, state_prev, parameter, unit, UNITS) → (h,), state, gates.
    backward: (gates, h_prev, state_prev, (dh,), dh_next, dh_read_next, dstate_next, parameter, unit,
        UNITS) → da, dh_read_prev, dstate_prev, dparameter.
    Each slot is a tuple of blocks: (ROWS, BLOCK), those of parameters (1, BLOCK).
    """
    raise NotImplementedError


@triton.jit
def exp(x):
    """e^x. For float32 Triton multiplies x by log₂ e first, which loses digits of large x. So here it is
    2^2k e^r with |r| ≤ ln 2; 2k may be beyond the exponents of normal numbers."""
    if x.dtype == tl.float32:
        inner = tl.where(x > 89.0, 89.0, tl.where(x < -104.0, -104.0, x))  # infinite and 0, NaN stays NaN
        k = tl.floor(inner * 0.7213475204444817 + 0.5)
        r = (inner - k * 1.38671875) + k * 4.2438889e-4  # k·2·ln 2 as two products, the first of them exact
        power = tl.exp2(k)
        result = tl.exp(r) * power * power
    else:
        result = tl.exp(x)
    return result


@triton.jit
def sigmoid(x):
    """1 / (1 + e^−x), and e^x / (1 + e^x) for x < 0, as e^−x may overflow."""
    decay = exp(-tl.abs(x))
    return tl.where(x < 0.0, decay, 1.0) / (1.0 + decay)


@triton.jit
def tanh(x):
    """tanh: a Padé approximant [7/6] for |x| < 0.5, where 1 − exp(−2|x|) loses digits; beyond that, exp."""
    size = tl.abs(x)
    small = tl.minimum(size, 1.0)  # keeps the powers finite in the branch that is not used
    square = small * small
    numerator = 135135.0 + square * (17325.0 + square * (378.0 + square))
    near = size * (numerator / (135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))))
    decay = exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    result = tl.where(size < 0.5, near, far)
    return tl.where(x < 0.0, -result, result)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log(1 + t) with t = exp(−|x|).

    log(1 + t) is 2 artanh(z) with z = t / (2 + t) ≤ 1/3, the sum of 2 z^(2k + 1) / (2k + 1). It keeps all
    digits where t is small. 17 terms are enough for float64.
    """
    decay = exp(-tl.abs(x))
    z = decay / (2.0 + decay)
    square = z * z
    series = square * (1 / 33) + (1 / 31)
    for k in tl.static_range(15):
        series = series * square + 1 / (29 - 2 * k)
    return tl.maximum(x, 0.0) + 2.0 * z * series


@triton.jit
def sqrt(x):
    """The square root, rounded to the nearest number; Triton has one function for each dtype."""
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def _rows(starts_ptr, order_ptr, direction, t, rows, ROWS: tl.constexpr):
    """This program's rows of wavefront t, (ROWS, 1) each.

    Returns:
        row, local row, global row, place, and whether the row exists: it does not past the end of the
        wavefront.
    """
    # `starts` has an empty wavefront in front, so wavefront t is from starts[t + 1] to starts[t + 2].
    first, end = tl.load(starts_ptr + t + 1), tl.load(starts_ptr + t + 2)
    row = first + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = tl.load(order_ptr + direction * rows + row, mask=row < end, other=0).to(tl.int64)
    return row, direction * (end - first) + row - first, direction * rows + row, place, row < end


@triton.jit
def _rows_of(pointer, first, unit, mask, dtype: tl.constexpr, COUNT: tl.constexpr, UNITS: tl.constexpr):
    """COUNT blocks from row `first` on, each of n numbers; none if there is no pointer."""
    loaded = ()
    if pointer is not None:
        for k in tl.static_range(COUNT):
            loaded += (tl.load(pointer + (first + k) * UNITS + unit, mask=mask, other=0.0).to(dtype),)
    return loaded


@triton.jit
def _previous_states(
    state_ptr, predecessors_ptr, direction, row, unit, exists, rows, lines,
    AXES: tl.constexpr, STATES: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The states beside h one step back along each axis: D·S blocks, those of axis 0 first."""
    dtype: tl.constexpr = state_ptr.dtype.element_ty
    mask = exists & (unit < UNITS)
    states = ()
    for d in tl.static_range(AXES):
        previous = tl.load(predecessors_ptr + d * rows + row, mask=exists, other=0)
        first = (direction * (rows + lines) + previous) * STATES
        states += _rows_of(state_ptr, first, unit, mask, dtype, STATES, UNITS)
    return states


def forward(
    a_ptr, product_ptr, hidden_ptr, state_ptr, output_ptr, bias_ptr, parameter_ptr,
    starts_ptr, order_ptr, predecessors_ptr, successors_ptr, t, rows, lines,
    AXES: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr, PARAMETERS: tl.constexpr,
    UNITS: tl.constexpr, RECURRENT: tl.constexpr, READS_H: tl.constexpr,
    KEEP_GATES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute h and the other states of all positions of wavefront t.

    Args:
        a_ptr: (dirs, R, G·n) W x. If KEEP_GATES, it is overwritten with the activated gates, or with layer
            norm with the pre-activations.
        product_ptr: (dirs, K, G·n) Σ_d U_d h_d of this wavefront, if RECURRENT.
        hidden_ptr: (dirs, R, D·n) the h_d of the predecessors, if RECURRENT or READS_H; h is written there
            for the successors.
        state_ptr: (dirs, R + L, S·n), those of rows are written.
        output_ptr: (N·P, dirs, n), written.
        bias_ptr: (dirs, G, n) or None.
        parameter_ptr: (dirs, M, n) or None.
        starts_ptr, order_ptr, predecessors_ptr, successors_ptr: see `SweepRows`.
        t, rows, lines: the wavefront, R, L.
        RECURRENT: whether the gates see h of the predecessors.
        READS_H: whether the equations do.
    """
    # Offsets may exceed 2³¹, and a product of two int32 is int32. So whatever offsets come from is int64.
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    t, rows, lines = t.to(tl.int64), rows.to(tl.int64), lines.to(tl.int64)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    row, local_row, global_row, place, exists = _rows(starts_ptr, order_ptr, direction, t, rows, ROWS)
    mask = exists & (unit < UNITS)
    dtype: tl.constexpr = a_ptr.dtype.element_ty

    bias = _rows_of(bias_ptr, direction * GATES, unit, unit < UNITS, dtype, GATES, UNITS)
    a = ()
    for k in tl.static_range(GATES):
        column = k * UNITS + unit
        value = tl.load(a_ptr + global_row * (GATES * UNITS) + column, mask=mask, other=0.0)
        if RECURRENT:
            value += tl.load(product_ptr + local_row * (GATES * UNITS) + column, mask=mask, other=0.0)
        if bias_ptr is not None:
            value += bias[k]
        a += (value,)
    h_prev = ()
    if READS_H:
        h_prev = _rows_of(hidden_ptr, global_row * AXES, unit, mask, dtype, AXES, UNITS)
    state_prev = _previous_states(
        state_ptr, predecessors_ptr, direction, row, unit, exists, rows, lines, AXES, STATES, UNITS
    )
    parameter = _rows_of(
        parameter_ptr, direction * PARAMETERS, unit, unit < UNITS, dtype, PARAMETERS, UNITS
    )
    h_rows, state, gates = _cell(a, h_prev, state_prev, parameter, unit, UNITS)

    h = h_rows[0]
    tl.debug_barrier()  # the threads that write to a may not be those that have read there
    tl.store(output_ptr + (place * dirs + direction) * UNITS + unit, h, mask=mask)
    for s in tl.static_range(STATES):
        state_row = (direction * (rows + lines) + row) * STATES + s
        tl.store(state_ptr + state_row * UNITS + unit, state[s], mask=mask)
    if KEEP_GATES:
        for k in tl.static_range(GATES):
            tl.store(a_ptr + (global_row * GATES + k) * UNITS + unit, gates[k], mask=mask)
    if RECURRENT or READS_H:
        for d in tl.static_range(AXES):
            following = tl.load(successors_ptr + d * rows + row, mask=exists, other=0)
            slot = (direction * rows + following) * AXES + d
            tl.store(hidden_ptr + slot * UNITS + unit, h, mask=mask & (following < rows))


def backward(
    grad_ptr, gates_ptr, state_ptr, hidden_ptr, next_dh_ptr, d_prev_ptr, next_d_prev_ptr, last_ptr,
    da_ptr, d_first_ptr, d_parameter_ptr, parameter_ptr,
    starts_ptr, order_ptr, predecessors_ptr, successors_ptr, t, rows, lines, blocks,
    AXES: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr, PARAMETERS: tl.constexpr,
    UNITS: tl.constexpr, RECURRENT: tl.constexpr, READS_H: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute da, and the gradients of the predecessors' states and of the parameters, for wavefront t.
    Wavefronts run from the last to the first. What is not described here is as in `forward`.

    Args:
        grad_ptr: (N·P, dirs, n) gradient of the output.
        gates_ptr: (dirs, R, G·n) what `forward` left in a; in the pass "recompute", pre-activations.
        state_ptr: (dirs, R + L, S·n), those of predecessors are read.
        hidden_ptr: (dirs, R, D·n) the h_d of the predecessors, if READS_H.
        next_dh_ptr: (dirs, rows of wavefront t + 1, D·n) U_dᵀ da, the gradient of the h that the gates of
            each position of wavefront t + 1 read along axis d, if RECURRENT.
        d_prev_ptr: (dirs, rows of wavefront t, D, S·n), written: the gradient of the states that each
            position read along axis d. If READS_H, (S + 1)·n instead of S·n: that of h follows.
        next_d_prev_ptr: what d_prev_ptr was for wavefront t + 1.
        last_ptr: (dirs, L, (1 + S)·n) gradients of the final states, h first.
        da_ptr: (dirs, R, G·n), written; may be the same memory as gates.
        d_first_ptr: (dirs, L, (1 + S)·n) gradients of the initial states, written; that of h only if
            READS_H.
        d_parameter_ptr: (dirs, blocks, M, n) float64 or None, zeros before the first launch; the caller
            sums over the blocks.
        blocks: the number of blocks of rows of the longest wavefront.
    """
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    t, rows, lines, blocks = t.to(tl.int64), rows.to(tl.int64), lines.to(tl.int64), blocks.to(tl.int64)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    row, local_row, global_row, place, exists = _rows(starts_ptr, order_ptr, direction, t, rows, ROWS)
    mask = exists & (unit < UNITS)
    dtype: tl.constexpr = gates_ptr.dtype.element_ty
    width: tl.constexpr = STATES + 1 if READS_H else STATES

    grad_offset = (place * dirs + direction) * UNITS + unit
    dh = tl.load(grad_ptr + grad_offset, mask=mask, other=0.0).to(dtype)
    dh_next, dh_read_next, dstate_next = (), (), ()
    first, end = tl.load(starts_ptr + t + 2), tl.load(starts_ptr + t + 3)  # of the next wavefront
    for d in tl.static_range(AXES):
        following = tl.load(successors_ptr + d * rows + row, mask=exists, other=0)
        inside, leaves = mask & (following < rows), mask & (following >= rows)
        slot = (direction * (end - first) + following - first) * AXES + d
        line = (direction * lines + following - rows) * (1 + STATES)
        # One of both is 0.
        passed = _rows_of(next_d_prev_ptr, slot * width, unit, inside, dtype, width, UNITS)
        last = _rows_of(last_ptr, line, unit, leaves, dtype, 1 + STATES, UNITS)
        dh_d = last[0]
        if RECURRENT:
            dh_d += tl.load(next_dh_ptr + slot * UNITS + unit, mask=inside, other=0.0)
        dh_next += (dh_d,)
        if READS_H:
            dh_read_next += (passed[STATES],)
        for s in tl.static_range(STATES):
            dstate_next += (passed[s] + last[1 + s],)
    gates = _rows_of(gates_ptr, global_row * GATES, unit, mask, dtype, GATES, UNITS)
    h_prev = ()
    if READS_H:
        h_prev = _rows_of(hidden_ptr, global_row * AXES, unit, mask, dtype, AXES, UNITS)
    state_prev = _previous_states(
        state_ptr, predecessors_ptr, direction, row, unit, exists, rows, lines, AXES, STATES, UNITS
    )
    parameter = _rows_of(
        parameter_ptr, direction * PARAMETERS, unit, unit < UNITS, dtype, PARAMETERS, UNITS
    )
    da, dh_read_prev, dstate_prev, d_parameter = _cell(
        gates, h_prev, state_prev, (dh,), dh_next, dh_read_next, dstate_next, parameter, unit, UNITS
    )

    tl.debug_barrier()  # the threads that write to da may not be those that have read the gates there
    for k in tl.static_range(GATES):
        tl.store(da_ptr + (global_row * GATES + k) * UNITS + unit, da[k], mask=mask)
    for d in tl.static_range(AXES):
        row_ptr = d_prev_ptr + (local_row * AXES + d) * (width * UNITS) + unit
        previous = tl.load(predecessors_ptr + d * rows + row, mask=exists, other=0)
        enters, line = mask & (previous >= rows), direction * lines + previous - rows
        first_row_ptr = d_first_ptr + line * ((1 + STATES) * UNITS) + unit
        for s in tl.static_range(STATES):
            tl.store(row_ptr + s * UNITS, dstate_prev[d * STATES + s], mask=mask)
            tl.store(first_row_ptr + (1 + s) * UNITS, dstate_prev[d * STATES + s], mask=enters)
        if READS_H:
            tl.store(row_ptr + STATES * UNITS, dh_read_prev[d], mask=mask)
            tl.store(first_row_ptr, dh_read_prev[d], mask=enters)
    if d_parameter_ptr is not None:  # no other program of the launch touches this part of the gradient
        part = direction * blocks + tl.program_id(0)
        for k in tl.static_range(PARAMETERS):
            row_ptr = d_parameter_ptr + (part * PARAMETERS + k) * UNITS + unit
            before = tl.load(row_ptr, mask=unit < UNITS, other=0.0)
            added = tl.sum(tl.where(mask, d_parameter[k], 0.0), axis=0, keep_dims=True)
            tl.store(row_ptr, before + added.to(before.dtype), mask=unit < UNITS)
