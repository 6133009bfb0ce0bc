"""The fused sweep in Numba. This file holds forward, `backward_kernel` the gradient.

The sweep is one linear layer, applied to what each position sees. With

    operand  (h_1 | … | h_D | x | 1)       (K,), K = D·n + C + 1
    w_cat    (U_1 | … | U_D | W | b)ᵀ      (K, G·n)

the pre-activations are `operand @ w_cat`. In backward, `da @ w_catᵀ` is the gradient of the operand and
`operandᵀ @ da` that of w_cat. So a wavefront is: gather the operands of a block of rows, one product, the
cell on each row; all of it on data that is still in cache, and only what backward needs is written to
memory. If the cell is not recurrent, the operand has no h_d: K = C + 1.

A kernel runs one job (`records.Job`): wavefronts of one tile of the grid, with rows (visit, sample).
States pass from tile to tile through the *front*, a tensor of all faces of the grid
(`mdlstm_tk.backends.boundary`) that holds for each line the states that left the last tile along it. It
starts as the initial states and ends as the final ones. A grid that is one tile and has neither needs no
front.

The kernels are the same for all cells. What is specific to a cell is a C function, which they call for a
block of rows through a table of addresses: see `cell_code`.
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu.cell_code import FORWARD_AXIS_SLOTS as AXIS
from mdlstm_tk.backends.cpu.cell_code import FORWARD_SLOTS as SLOT
from mdlstm_tk.backends.cpu.compile import jit
from mdlstm_tk.backends.cpu.intrinsics import (
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
from mdlstm_tk.backends.cpu.records import load_forward_arrays, load_job, load_sizes

BLOCK = 64  # rows between gathering and the cell: few enough to stay in cache, enough for the product
ZERO: Any = None  # 0 in the dtype; each compiled version has its own value
SLOTS, AXIS_SLOTS = len(SLOT), len(AXIS)


@jit
def face_offset(sizes, direction, sample, position, d):  # type: ignore[no-untyped-def]
    """Where in a tensor (N, F, dirs, 1 + S, n) the states of a line are: the one along axis d on which a
    position lies. A ragged batch counts the positions of all its samples from that of `sample` on."""
    sample, position = sample + position // sizes.positions, position % sizes.positions
    table = ptr_add(int64_ptr(sizes.line_table), 3 * d)
    line = table[2] + position // table[0] * table[1] + position % table[1]
    return ((sample * sizes.lines + line) * sizes.dirs + direction) * (1 + sizes.states) * sizes.units


def forward(arrays_address, sizes_address, job_address):  # type: ignore[no-untyped-def]
    """Run a job. The arguments are addresses of `ForwardArrays`, `Sizes` and `Job`."""
    arrays, job = load_forward_arrays(arrays_address), load_job(job_address)
    sizes = load_sizes(sizes_address)
    ndim, units, samples, depth, gate_dim = (
        sizes.ndim,
        sizes.units,
        job.samples,
        sizes.depth,
        sizes.gate_dim,
    )
    direction, visits, channels = job.direction, job.visits, sizes.channels
    h_stride, state_size = sizes.dirs * units, sizes.states * units
    scratch = ptr_add(float_ptr(arrays.scratch, ZERO), job.chain * sizes.scratch)
    zeros, operands = ptr_add(scratch, sizes.zeros_at), ptr_add(scratch, sizes.operands_at)
    products, buffer = ptr_add(scratch, sizes.products_at), ptr_add(scratch, sizes.states_at)
    gates_row = address_of(ptr_add(scratch, sizes.gates_row_at))
    spill, table_address = (
        address_of(ptr_add(scratch, sizes.spill_at)),
        address_of(ptr_add(scratch, sizes.table_at)),
    )
    table, columns = int64_ptr(table_address), SLOTS + AXIS_SLOTS * ndim
    panels = -(-gate_dim // sizes.panel)
    weights = ptr_add(float_ptr(arrays.weights, ZERO), direction * panels * depth * sizes.panel)
    x = float_ptr(arrays.x, ZERO)
    output = ptr_add(float_ptr(arrays.output, ZERO), direction * units)
    front = float_ptr(arrays.front, ZERO)
    gates = ptr_add(float_ptr(arrays.gates, ZERO), direction * sizes.places * gate_dim)
    states = ptr_add(float_ptr(arrays.states, ZERO), direction * sizes.places * state_size)
    parameters = ptr_add(float_ptr(arrays.parameters, ZERO), direction * sizes.parameter_count)
    starts, offsets, steps = int64_ptr(job.starts), int32_ptr(job.offsets), int64_ptr(job.steps)
    predecessors, successors = int32_ptr(job.predecessors), int32_ptr(job.successors)
    clear(zeros, units + state_size)
    for r in range(BLOCK):
        slots = ptr_add(table, r * columns)
        slots[SLOT.a] = address_of(ptr_add(products, r * sizes.padded))
        slots[SLOT.parameter] = address_of(parameters)
        slots[SLOT.gates] = gates_row
    for t in range(job.begin, job.end):
        now = ptr_add(buffer, t % 2 * sizes.longest * state_size)
        before = ptr_add(buffer, (t + 1) % 2 * sizes.longest * state_size)
        count = (starts[t + 1] - starts[t]) * samples
        visit, sample = starts[t], job.first_sample
        for top in range(0, count, BLOCK):
            rows = min(BLOCK, count - top)
            first_visit, first_sample = visit, sample
            for r in range(rows):
                position = job.corner + offsets[visit]
                place = sample * sizes.positions + position
                slots, operand = ptr_add(table, r * columns), ptr_add(operands, r * depth)
                for d in range(ndim):
                    previous = predecessors[d * visits + visit]
                    if previous >= 0:
                        h = ptr_add(output, (place - steps[d]) * h_stride)
                        if arrays.states:
                            state = ptr_add(states, (place - steps[d]) * state_size)
                        else:
                            row = (previous - starts[t - 1]) * samples + sample - job.first_sample
                            state = ptr_add(before, row * state_size)
                    elif arrays.front:
                        h = ptr_add(front, face_offset(sizes, direction, sample, position, d))
                        state = ptr_add(h, units)
                    else:
                        h = state = zeros
                    of_axis = ptr_add(slots, SLOTS + AXIS_SLOTS * d)
                    of_axis[AXIS.h_prev], of_axis[AXIS.state_prev] = address_of(h), address_of(state)
                    if sizes.recurrent:
                        copy(ptr_add(operand, d * units), h, units)
                rest = ptr_add(operand, sizes.hidden_dim)
                copy(rest, ptr_add(x, place * channels), channels)
                rest[channels] = 1
                slots[SLOT.h] = address_of(ptr_add(output, place * h_stride))
                if arrays.states:
                    slots[SLOT.state] = address_of(ptr_add(states, place * state_size))
                else:
                    slots[SLOT.state] = address_of(ptr_add(now, (top + r) * state_size))
                if arrays.gates:
                    slots[SLOT.gates] = address_of(ptr_add(gates, place * gate_dim))
                    prefetch(ptr_add(gates, place * gate_dim), gate_dim)
                sample += 1
                if sample == job.first_sample + samples:
                    visit, sample = visit + 1, job.first_sample
            call(
                arrays.matmul,
                (
                    address_of(operands), depth, 1, address_of(weights), depth * sizes.panel, sizes.panel,
                    depth, address_of(products), sizes.padded, rows, gate_dim, 0,
                ),
            )  # fmt: skip
            call(arrays.cell, (rows, units, spill, table_address))
            if arrays.front:
                visit, sample = first_visit, first_sample
                for r in range(rows):
                    for d in range(ndim):
                        if successors[d * visits + visit] < 0:
                            position = job.corner + offsets[visit]
                            h = ptr_add(front, face_offset(sizes, direction, sample, position, d))
                            slots = ptr_add(table, r * columns)
                            copy(h, float_ptr(slots[SLOT.h], ZERO), units)
                            copy(ptr_add(h, units), float_ptr(slots[SLOT.state], ZERO), state_size)
                    sample += 1
                    if sample == job.first_sample + samples:
                        visit, sample = visit + 1, job.first_sample
