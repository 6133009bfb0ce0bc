"""The gradient of the fused sweep in Numba. See `mdlstm_tk.backends.cpu.kernels` for the idea and notation.

Backward reads what forward saved and does not change it. A wavefront is: gather the operands again, the
cell's gradient on each row, and two products: `da @ w_catᵀ`, the gradient of the operands, and
`operandᵀ @ da`, which is added to the gradient of w_cat. Gradients pass from tile to tile through a front,
too. It starts as the gradient of the final states and ends as that of the initial ones.

The gradients of w_cat and of the cell's parameters are sums over all positions. A float32 sum of 65536
rows that adds one row after another is wrong by 1e-5 of itself, because each step rounds to the size of
the sum so far. So a sum has levels: the rows of a block, the blocks of a part, and the parts.
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu.cell_code import BACKWARD_AXIS_SLOTS as AXIS
from mdlstm_tk.backends.cpu.cell_code import BACKWARD_SLOTS as SLOT
from mdlstm_tk.backends.cpu.compile import jit
from mdlstm_tk.backends.cpu.intrinsics import (
    add,
    address_of,
    call,
    clear,
    copy,
    float_ptr,
    int32_ptr,
    int64_ptr,
    prefetch,
    ptr_add,
)
from mdlstm_tk.backends.cpu.kernels import BLOCK, face_offset
from mdlstm_tk.backends.cpu.records import load_backward_arrays, load_job, load_sizes

ZERO: Any = None  # 0 in the dtype; each compiled version has its own value
SLOTS, AXIS_SLOTS = len(SLOT), len(AXIS)


@jit
def _add_block(matmul, sizes, operands, all_da, rows, sums, parameter_sums):  # type: ignore[no-untyped-def]
    """Add the gradients of a block of rows to `sums`: that of w_cat, which is `operandsᵀ @ all_da`, and
    those of the cell's parameters, which are in `parameter_sums` and are cleared there."""
    call(
        matmul,
        (
            address_of(operands), 1, sizes.depth, address_of(all_da), sizes.panel, sizes.padded, rows,
            address_of(sums), sizes.padded, sizes.depth, sizes.gate_dim, 1,
        ),
    )  # fmt: skip
    add(ptr_add(sums, sizes.depth * sizes.padded), parameter_sums, sizes.parameter_count)
    clear(parameter_sums, sizes.parameter_count)


def backward(arrays_address, sizes_address, job_address):  # type: ignore[no-untyped-def]
    """Run a job. The arguments are addresses of `BackwardArrays`, `Sizes` and `Job`."""
    arrays, job = load_backward_arrays(arrays_address), load_job(job_address)
    sizes = load_sizes(sizes_address)
    ndim, units, samples, depth, gate_dim = (
        sizes.ndim,
        sizes.units,
        job.samples,
        sizes.depth,
        sizes.gate_dim,
    )
    direction, visits, channels, padded = job.direction, job.visits, sizes.channels, sizes.padded
    h_stride, state_size, d_stride = sizes.dirs * units, sizes.states * units, sizes.d_stride
    scratch = ptr_add(float_ptr(arrays.scratch, ZERO), job.chain * sizes.scratch)
    zeros, operands = ptr_add(scratch, sizes.zeros_at), ptr_add(scratch, sizes.operands_at)
    products, all_da = ptr_add(scratch, sizes.products_at), ptr_add(scratch, sizes.da_at)
    d_operands, dh_reads = ptr_add(scratch, sizes.d_operands_at), ptr_add(scratch, sizes.dh_read_at)
    dstates = ptr_add(scratch, sizes.dstates_at)
    parameter_sums = ptr_add(scratch, sizes.parameter_sums_at)
    spill = address_of(ptr_add(scratch, sizes.spill_at))
    table_address = address_of(ptr_add(scratch, sizes.table_at))
    table, columns = int64_ptr(table_address), SLOTS + AXIS_SLOTS * ndim
    panels, t_panels = -(-gate_dim // sizes.panel), -(-sizes.columns // sizes.panel)
    weights = ptr_add(float_ptr(arrays.weights, ZERO), direction * panels * depth * sizes.panel)
    weights_t = ptr_add(float_ptr(arrays.weights_t, ZERO), direction * t_panels * gate_dim * sizes.panel)
    x = float_ptr(arrays.x, ZERO)
    dx = ptr_add(float_ptr(arrays.dx, ZERO), job.dx_buffer * sizes.places * channels)
    output = ptr_add(float_ptr(arrays.output, ZERO), direction * units)
    grad = ptr_add(float_ptr(arrays.grad, ZERO), direction * units)
    initial, dfront = float_ptr(arrays.initial, ZERO), float_ptr(arrays.dfront, ZERO)
    gates = ptr_add(float_ptr(arrays.gates, ZERO), direction * sizes.places * gate_dim)
    states = ptr_add(float_ptr(arrays.states, ZERO), direction * sizes.places * state_size)
    parameters = ptr_add(float_ptr(arrays.parameters, ZERO), direction * sizes.parameter_count)
    sums_index = job.sums_slot * sizes.dirs + direction
    sums = ptr_add(float_ptr(arrays.sums, ZERO), sums_index * sizes.sums_size)
    part = ptr_add(scratch, sizes.part_at) if sizes.part_blocks else sums
    starts, offsets, steps = int64_ptr(job.starts), int32_ptr(job.offsets), int64_ptr(job.steps)
    predecessors, successors = int32_ptr(job.predecessors), int32_ptr(job.successors)
    clear(zeros, units + state_size)
    clear(parameter_sums, sizes.parameter_count)
    if sizes.part_blocks:
        clear(part, sizes.sums_size)
    pending = 0  # rows not yet added to the sums: short wavefronts share a block
    blocks = 0  # blocks in this part so far
    for t in range(job.end - 1, job.begin - 1, -1):
        # What this wavefront writes for its predecessors, and what its successors have written for it.
        now, after = t % 2 * sizes.longest, (t + 1) % 2 * sizes.longest
        count = (starts[t + 1] - starts[t]) * samples
        visit, sample = starts[t], job.first_sample
        for top in range(0, count, BLOCK):
            rows = min(BLOCK, count - top)
            first_visit, first_sample = visit, sample
            block_operands, block_da = ptr_add(operands, pending * depth), ptr_add(all_da, pending * padded)
            for r in range(rows):
                position = job.corner + offsets[visit]
                place = sample * sizes.positions + position
                slots, operand = ptr_add(table, r * columns), ptr_add(block_operands, r * depth)
                for d in range(ndim):
                    of_axis = ptr_add(slots, SLOTS + AXIS_SLOTS * d)
                    if predecessors[d * visits + visit] >= 0 or (d == 0 and job.continues):
                        h = ptr_add(output, (place - steps[d]) * h_stride)
                        state = ptr_add(states, (place - steps[d]) * state_size)
                    elif arrays.initial:
                        h = ptr_add(initial, face_offset(sizes, direction, sample, position, d))
                        state = ptr_add(h, units)
                    else:
                        h = state = zeros
                    of_axis[AXIS.h_prev], of_axis[AXIS.state_prev] = address_of(h), address_of(state)
                    if sizes.recurrent:
                        copy(ptr_add(operand, d * units), h, units)
                    dh = dh_read = dstate = zeros
                    following = successors[d * visits + visit]
                    if following >= 0:
                        row = after + (following - starts[t + 1]) * samples + sample - job.first_sample
                        if sizes.recurrent:
                            dh = ptr_add(d_operands, row * d_stride + d * units)
                        dh_read = ptr_add(dh_reads, (row * ndim + d) * units)
                        dstate = ptr_add(dstates, (row * ndim + d) * state_size)
                    elif arrays.dfront:
                        dh = ptr_add(dfront, face_offset(sizes, direction, sample, position, d))
                        dstate = ptr_add(dh, units)
                    of_axis[AXIS.dh_next], of_axis[AXIS.dh_read_next] = address_of(dh), address_of(dh_read)
                    of_axis[AXIS.dstate_next] = address_of(dstate)
                    row = (now + top + r) * ndim + d
                    of_axis[AXIS.dh_read_prev] = address_of(ptr_add(dh_reads, row * units))
                    of_axis[AXIS.dstate_prev] = address_of(ptr_add(dstates, row * state_size))
                rest = ptr_add(operand, sizes.hidden_dim)
                copy(rest, ptr_add(x, place * channels), channels)
                rest[channels] = 1
                if arrays.gates:
                    slots[SLOT.gates] = address_of(ptr_add(gates, place * gate_dim))
                    prefetch(ptr_add(gates, place * gate_dim), gate_dim)
                else:
                    slots[SLOT.gates] = address_of(ptr_add(products, r * padded))
                prefetch(ptr_add(states, place * state_size), state_size)
                prefetch(ptr_add(grad, place * h_stride), units)
                slots[SLOT.parameter] = address_of(parameters)
                slots[SLOT.state] = address_of(ptr_add(states, place * state_size))
                slots[SLOT.dh] = address_of(ptr_add(grad, place * h_stride))
                slots[SLOT.da] = address_of(ptr_add(block_da, r * padded))
                slots[SLOT.dparameter] = address_of(parameter_sums)
                sample += 1
                if sample == job.first_sample + samples:
                    visit, sample = visit + 1, job.first_sample
            if not arrays.gates:
                call(
                    arrays.matmul,
                    (
                        address_of(block_operands), depth, 1, address_of(weights), depth * sizes.panel,
                        sizes.panel, depth, address_of(products), padded, rows, gate_dim, 0,
                    ),
                )  # fmt: skip
            call(arrays.cell, (rows, units, spill, table_address))
            d_rows = ptr_add(d_operands, (now + top) * d_stride)
            if sizes.columns > 0:
                call(
                    arrays.matmul,
                    (
                        address_of(block_da), padded, 1, address_of(weights_t), gate_dim * sizes.panel,
                        sizes.panel, gate_dim, address_of(d_rows), d_stride, rows, sizes.columns, 0,
                    ),
                )  # fmt: skip
            if arrays.dx or arrays.dfront:
                visit, sample = first_visit, first_sample
                for r in range(rows):
                    position = job.corner + offsets[visit]
                    d_row = ptr_add(d_rows, r * d_stride)
                    if arrays.dx:
                        target = ptr_add(dx, (sample * sizes.positions + position) * channels)
                        add(target, ptr_add(d_row, sizes.hidden_dim), channels)
                    if arrays.dfront:
                        for d in range(ndim):
                            if predecessors[d * visits + visit] < 0:
                                offset = face_offset(sizes, direction, sample, position, d)
                                dh, row = ptr_add(dfront, offset), (now + top + r) * ndim + d
                                clear(dh, units)
                                if sizes.recurrent:
                                    add(dh, ptr_add(d_row, d * units), units)
                                if sizes.reads_h:
                                    add(dh, ptr_add(dh_reads, row * units), units)
                                dstate = ptr_add(dstates, row * state_size)
                                copy(ptr_add(dh, units), dstate, state_size)
                    sample += 1
                    if sample == job.first_sample + samples:
                        visit, sample = visit + 1, job.first_sample
            pending += rows
            if pending >= BLOCK:
                _add_block(arrays.matmul, sizes, operands, all_da, pending, part, parameter_sums)
                pending = 0
                blocks += 1
                if blocks == sizes.part_blocks:
                    add(sums, part, sizes.sums_size)
                    clear(part, sizes.sums_size)
                    blocks = 0
    if pending > 0:
        _add_block(arrays.matmul, sizes, operands, all_da, pending, part, parameter_sums)
    if sizes.part_blocks:
        add(sums, part, sizes.sums_size)
