"""The fused sweep and its gradient in Numba.

The sweep is one linear layer, applied to what each position sees. With

    operand  (h_1 | … | h_D | x | 1)       (K,), K = D·n + C + 1
    w_cat    (U_1 | … | U_D | W | b)ᵀ      (K, G·n)

the pre-activations are `operand @ w_cat`. In backward, `da @ w_catᵀ` is the gradient of the operand and
`operandᵀ @ da` that of w_cat. So a wavefront is: gather the operands of a block of rows, one product, the
cell on each row; all of it on data that is still in cache, and only what backward needs is written to
memory. If the cell is not recurrent, the operand has no h_d: K = C + 1.

A kernel runs one job (`records.Job`): wavefronts of one band of the grid.
States pass from band to band through the *front*, a tensor of all faces of the grid
(`mdlstm_tk.states`) that holds for each line the states that left the last band along it. It
starts as the initial states and ends as the final ones. A grid that is one band and has neither needs no
front.

Backward reads what forward saved and does not change it. A wavefront is: gather the operands again, the
cell's gradient on each row, and both products. Gradients pass from band to band through a front, too. It
starts as the gradient of the final states and ends as that of the initial ones.

The gradients of w_cat and of the cell's parameters are sums over all positions. A float32 sum of 65536
rows that adds one row after another is wrong by 1e-5 of itself, because each step rounds to the size of
the sum so far. So a sum has levels: the rows of a block, the blocks of a part, and the parts.

The kernels are the same for all cells. What is specific to a cell is a C function, which they call for a
block of rows through a table of addresses: see `cell_code`.
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu.cell_code import AXIS, SLOT
from mdlstm_tk.backends.cpu.intrinsics import (
    INT32,
    INT64,
    add,
    address_of,
    call,
    clear,
    copy,
    jit,
    pointer_to,
    prefetch,
    ptr_add,
)
from mdlstm_tk.backends.cpu.records import load_arrays, load_job, load_layout

BLOCK = 64  # rows between gathering and the cell: few enough to stay in cache, enough for the product
ZERO: Any = None  # 0 in the dtype; each compiled version has its own value
SLOTS, AXIS_SLOTS = len(SLOT), len(AXIS)


@jit
def face_offset(layout, direction, place, d):  # type: ignore[no-untyped-def]
    """The offset, in a tensor (N, F, dirs, 1 + S, n), of the states of the line along axis d on which a
    place in (N, P) lies."""
    sample, position = place // layout.positions, place % layout.positions
    table = ptr_add(pointer_to(INT64, layout.line_table), 3 * d)
    line = table[2] + position // table[0] * table[1] + position % table[1]
    return ((sample * layout.lines + line) * layout.dirs + direction) * (1 + layout.states) * layout.units


def forward(arrays_address, layout_address, job_address):  # type: ignore[no-untyped-def]
    """Run a job. The arguments are addresses of `Arrays`, `Layout` and `Job`."""
    arrays, job = load_arrays(arrays_address), load_job(job_address)
    layout = load_layout(layout_address)
    ndim, units, depth, gate_dim = layout.ndim, layout.units, layout.depth, layout.gate_dim
    direction, all_rows, channels = job.direction, job.rows, layout.channels
    h_stride, state_size = layout.dirs * units, layout.states * units
    scratch = ptr_add(pointer_to(ZERO, arrays.scratch), job.lane * layout.scratch)
    zeros, operands = ptr_add(scratch, layout.zeros_at), ptr_add(scratch, layout.operands_at)
    products, buffer = ptr_add(scratch, layout.products_at), ptr_add(scratch, layout.states_at)
    gates_row = address_of(ptr_add(scratch, layout.gates_row_at))
    spill = address_of(ptr_add(scratch, layout.spill_at))
    table_address = address_of(ptr_add(scratch, layout.table_at))
    table, columns = pointer_to(INT64, table_address), SLOTS + AXIS_SLOTS * ndim
    weights = ptr_add(pointer_to(ZERO, arrays.weights), direction * depth * layout.padded)
    x = pointer_to(ZERO, arrays.x)
    output = ptr_add(pointer_to(ZERO, arrays.output), direction * units)
    front = pointer_to(ZERO, arrays.front)
    gates = ptr_add(pointer_to(ZERO, arrays.gates), direction * layout.places * gate_dim)
    states = ptr_add(pointer_to(ZERO, arrays.states), direction * layout.places * state_size)
    parameters = ptr_add(pointer_to(ZERO, arrays.parameters), direction * layout.parameter_count)
    starts, offsets = pointer_to(INT64, job.starts), pointer_to(INT32, job.offsets)
    steps = ptr_add(pointer_to(INT64, layout.steps), direction * ndim)
    predecessors, successors = pointer_to(INT32, job.predecessors), pointer_to(INT32, job.successors)
    clear(zeros, units + state_size)
    for r in range(BLOCK):
        slots = ptr_add(table, r * columns)
        slots[SLOT.a] = address_of(ptr_add(products, r * layout.padded))
        slots[SLOT.parameter] = address_of(parameters)
        slots[SLOT.gates] = gates_row
    for t in range(job.begin, job.end):
        now = ptr_add(buffer, t % 2 * layout.longest * state_size)
        before = ptr_add(buffer, (t + 1) % 2 * layout.longest * state_size)
        for first in range(starts[t], starts[t + 1], BLOCK):
            rows, top = min(BLOCK, starts[t + 1] - first), first - starts[t]
            for r in range(rows):
                place = job.corner + offsets[first + r]
                slots, operand = ptr_add(table, r * columns), ptr_add(operands, r * depth)
                for d in range(ndim):
                    previous = predecessors[d * all_rows + first + r]
                    if previous >= 0:
                        h = ptr_add(output, (place - steps[d]) * h_stride)
                        if arrays.states:
                            state = ptr_add(states, (place - steps[d]) * state_size)
                        else:
                            state = ptr_add(before, (previous - starts[t - 1]) * state_size)
                    elif arrays.front:
                        h = ptr_add(front, face_offset(layout, direction, place, d))
                        state = ptr_add(h, units)
                    else:
                        h = state = zeros
                    of_axis = ptr_add(slots, SLOTS + AXIS_SLOTS * d)
                    of_axis[AXIS.h_prev], of_axis[AXIS.state_prev] = address_of(h), address_of(state)
                    if layout.recurrent:
                        copy(ptr_add(operand, d * units), h, units)
                features = ptr_add(operand, layout.hidden_dim)
                copy(features, ptr_add(x, place * channels), channels)
                features[channels] = 1
                slots[SLOT.h] = address_of(ptr_add(output, place * h_stride))
                if arrays.states:
                    slots[SLOT.state] = address_of(ptr_add(states, place * state_size))
                else:
                    slots[SLOT.state] = address_of(ptr_add(now, (top + r) * state_size))
                if arrays.gates:
                    slots[SLOT.gates] = address_of(ptr_add(gates, place * gate_dim))
                    prefetch(ptr_add(gates, place * gate_dim), gate_dim)
            call(
                arrays.matmul,
                (
                    address_of(operands), depth, 1, address_of(weights), layout.padded,
                    depth, address_of(products), layout.padded, rows, gate_dim, 0,
                ),
            )  # fmt: skip
            call(arrays.cell, (rows, units, spill, table_address))
            if arrays.front:
                for r in range(rows):
                    for d in range(ndim):
                        if successors[d * all_rows + first + r] < 0:
                            place = job.corner + offsets[first + r]
                            h = ptr_add(front, face_offset(layout, direction, place, d))
                            slots = ptr_add(table, r * columns)
                            copy(h, pointer_to(ZERO, slots[SLOT.h]), units)
                            copy(ptr_add(h, units), pointer_to(ZERO, slots[SLOT.state]), state_size)


@jit
def _add_block(matmul, layout, operands, all_da, rows, sums, parameter_sums):  # type: ignore[no-untyped-def]
    """Add the gradients of a block of rows to `sums`: that of w_cat, which is `operandsᵀ @ all_da`, and
    those of the cell's parameters, which are in `parameter_sums` and are cleared there."""
    call(
        matmul,
        (
            address_of(operands), 1, layout.depth, address_of(all_da), layout.padded, rows,
            address_of(sums), layout.padded, layout.depth, layout.gate_dim, 1,
        ),
    )  # fmt: skip
    add(ptr_add(sums, layout.depth * layout.padded), parameter_sums, layout.parameter_count)
    clear(parameter_sums, layout.parameter_count)


def backward(arrays_address, layout_address, job_address):  # type: ignore[no-untyped-def]
    """Run a job. The arguments are addresses of `Arrays`, `Layout` and `Job`."""
    arrays, job = load_arrays(arrays_address), load_job(job_address)
    layout = load_layout(layout_address)
    ndim, units, depth, gate_dim = layout.ndim, layout.units, layout.depth, layout.gate_dim
    direction, all_rows = job.direction, job.rows
    channels, padded = layout.channels, layout.padded
    h_stride, state_size, d_stride = layout.dirs * units, layout.states * units, layout.d_stride
    scratch = ptr_add(pointer_to(ZERO, arrays.scratch), job.lane * layout.scratch)
    zeros, operands = ptr_add(scratch, layout.zeros_at), ptr_add(scratch, layout.operands_at)
    products, all_da = ptr_add(scratch, layout.products_at), ptr_add(scratch, layout.da_at)
    d_operands, dh_reads = ptr_add(scratch, layout.d_operands_at), ptr_add(scratch, layout.dh_read_at)
    dstates = ptr_add(scratch, layout.dstates_at)
    parameter_sums = ptr_add(scratch, layout.parameter_sums_at)
    spill = address_of(ptr_add(scratch, layout.spill_at))
    table_address = address_of(ptr_add(scratch, layout.table_at))
    table, columns = pointer_to(INT64, table_address), SLOTS + AXIS_SLOTS * ndim
    weights = ptr_add(pointer_to(ZERO, arrays.weights), direction * depth * padded)
    weights_t = ptr_add(pointer_to(ZERO, arrays.weights_t), direction * gate_dim * layout.t_padded)
    x = pointer_to(ZERO, arrays.x)
    dx = ptr_add(pointer_to(ZERO, arrays.dx), job.dx * layout.places * channels)
    output = ptr_add(pointer_to(ZERO, arrays.output), direction * units)
    grad = ptr_add(pointer_to(ZERO, arrays.grad), direction * units)
    initial, dfront = pointer_to(ZERO, arrays.initial), pointer_to(ZERO, arrays.front)
    gates = ptr_add(pointer_to(ZERO, arrays.gates), direction * layout.places * gate_dim)
    states = ptr_add(pointer_to(ZERO, arrays.states), direction * layout.places * state_size)
    parameters = ptr_add(pointer_to(ZERO, arrays.parameters), direction * layout.parameter_count)
    sums_index = job.sums * layout.dirs + direction
    sums = ptr_add(pointer_to(ZERO, arrays.sums), sums_index * layout.sums_size)
    part = ptr_add(scratch, layout.part_at) if layout.part_blocks else sums
    starts, offsets = pointer_to(INT64, job.starts), pointer_to(INT32, job.offsets)
    steps = ptr_add(pointer_to(INT64, layout.steps), direction * ndim)
    predecessors, successors = pointer_to(INT32, job.predecessors), pointer_to(INT32, job.successors)
    clear(zeros, units + state_size)
    clear(parameter_sums, layout.parameter_count)
    if layout.part_blocks:
        clear(part, layout.sums_size)
    pending = 0  # rows not yet added to the sums: short wavefronts share a block
    blocks = 0  # blocks in this part so far
    for t in range(job.end - 1, job.begin - 1, -1):
        # What this wavefront writes for its predecessors, and what its successors have written for it.
        now, after = t % 2 * layout.longest, (t + 1) % 2 * layout.longest
        for first in range(starts[t], starts[t + 1], BLOCK):
            rows, top = min(BLOCK, starts[t + 1] - first), first - starts[t]
            block_operands, block_da = ptr_add(operands, pending * depth), ptr_add(all_da, pending * padded)
            for r in range(rows):
                place = job.corner + offsets[first + r]
                slots, operand = ptr_add(table, r * columns), ptr_add(block_operands, r * depth)
                for d in range(ndim):
                    of_axis = ptr_add(slots, SLOTS + AXIS_SLOTS * d)
                    if predecessors[d * all_rows + first + r] >= 0 or (d == 0 and job.continues):
                        h = ptr_add(output, (place - steps[d]) * h_stride)
                        state = ptr_add(states, (place - steps[d]) * state_size)
                    elif arrays.initial:
                        h = ptr_add(initial, face_offset(layout, direction, place, d))
                        state = ptr_add(h, units)
                    else:
                        h = state = zeros
                    of_axis[AXIS.h_prev], of_axis[AXIS.state_prev] = address_of(h), address_of(state)
                    if layout.recurrent:
                        copy(ptr_add(operand, d * units), h, units)
                    dh = dh_read = dstate = zeros
                    following = successors[d * all_rows + first + r]
                    if following >= 0:
                        row = after + following - starts[t + 1]
                        if layout.recurrent:
                            dh = ptr_add(d_operands, row * d_stride + d * units)
                        dh_read = ptr_add(dh_reads, (row * ndim + d) * units)
                        dstate = ptr_add(dstates, (row * ndim + d) * state_size)
                    elif arrays.front:
                        dh = ptr_add(dfront, face_offset(layout, direction, place, d))
                        dstate = ptr_add(dh, units)
                    of_axis[AXIS.dh_next], of_axis[AXIS.dh_read_next] = address_of(dh), address_of(dh_read)
                    of_axis[AXIS.dstate_next] = address_of(dstate)
                    row = (now + top + r) * ndim + d
                    of_axis[AXIS.dh_read_prev] = address_of(ptr_add(dh_reads, row * units))
                    of_axis[AXIS.dstate_prev] = address_of(ptr_add(dstates, row * state_size))
                features = ptr_add(operand, layout.hidden_dim)
                copy(features, ptr_add(x, place * channels), channels)
                features[channels] = 1
                if arrays.gates:
                    slots[SLOT.gates] = address_of(ptr_add(gates, place * gate_dim))
                    prefetch(ptr_add(gates, place * gate_dim), gate_dim)
                else:
                    slots[SLOT.gates] = address_of(ptr_add(products, r * padded))
                prefetch(ptr_add(grad, place * h_stride), units)
                slots[SLOT.parameter] = address_of(parameters)
                slots[SLOT.dh] = address_of(ptr_add(grad, place * h_stride))
                slots[SLOT.da] = address_of(ptr_add(block_da, r * padded))
                slots[SLOT.dparameter] = address_of(parameter_sums)
            if not arrays.gates:
                call(
                    arrays.matmul,
                    (
                        address_of(block_operands), depth, 1, address_of(weights), padded,
                        depth, address_of(products), padded, rows, gate_dim, 0,
                    ),
                )  # fmt: skip
            call(arrays.cell, (rows, units, spill, table_address))
            d_rows = ptr_add(d_operands, (now + top) * d_stride)
            if layout.columns > 0:
                call(
                    arrays.matmul,
                    (
                        address_of(block_da), padded, 1, address_of(weights_t), layout.t_padded,
                        gate_dim, address_of(d_rows), d_stride, rows, layout.columns, 0,
                    ),
                )  # fmt: skip
            if arrays.dx or arrays.front:
                for r in range(rows):
                    place = job.corner + offsets[first + r]
                    d_row = ptr_add(d_rows, r * d_stride)
                    if arrays.dx:
                        target = ptr_add(dx, place * channels)
                        add(target, ptr_add(d_row, layout.hidden_dim), channels)
                    if arrays.front:
                        for d in range(ndim):
                            if predecessors[d * all_rows + first + r] < 0:
                                offset = face_offset(layout, direction, place, d)
                                dh, row = ptr_add(dfront, offset), (now + top + r) * ndim + d
                                clear(dh, units)
                                if layout.recurrent:
                                    add(dh, ptr_add(d_row, d * units), units)
                                if layout.reads_h:
                                    add(dh, ptr_add(dh_reads, row * units), units)
                                dstate = ptr_add(dstates, row * state_size)
                                copy(ptr_add(dh, units), dstate, state_size)
            pending += rows
            if pending >= BLOCK:
                if arrays.sums:
                    _add_block(arrays.matmul, layout, operands, all_da, pending, part, parameter_sums)
                pending = 0
                blocks += 1
                if blocks == layout.part_blocks:
                    if arrays.sums:
                        add(sums, part, layout.sums_size)
                        clear(part, layout.sums_size)
                    blocks = 0
    if arrays.sums:
        if pending > 0:
            _add_block(arrays.matmul, layout, operands, all_da, pending, part, parameter_sums)
        if layout.part_blocks:
            add(sums, part, layout.sums_size)
