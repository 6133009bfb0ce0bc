"""The gradient of the fused sweep in Numba. See `mdlstm_tk.backends.cpu.kernels` for the idea and notation.

Backward reads what forward saved and does not change it. A wavefront is: gather the operands again, the
cell's gradient on each row, and two products: `da @ w_catᵀ`, the gradient of the operands, and
`operandᵀ @ da`, which is added to the gradient of w_cat.

The gradients of w_cat and of the cell's parameters are sums over all positions. A float32 sum of 65536
rows that adds one row after another is wrong by 1e-5 of itself, because each step rounds to the size of
the sum so far. So a sum has levels: the rows of a block, the blocks of a part, and the parts.
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu.face_rows import enter, keep_entering, leave
from mdlstm_tk.backends.cpu.intrinsics import (
    add,
    as_float_ptr,
    as_int32_ptr,
    as_int_ptr,
    barrier_wait,
    clear,
    ptr_add,
    ptr_to_int,
)
from mdlstm_tk.backends.cpu.jit import jit
from mdlstm_tk.backends.cpu.kernels import BLOCK, first_row, gather_row
from mdlstm_tk.backends.cpu.matmul import matmul

SPILLED = 0  # rows of scratch memory that the cell needs; each specialised kernel has its own value
RECURRENT = True  # whether the gates see h; each specialised kernel has its own value
STATES = False  # whether there are initial and final states; each specialised kernel has its own value
as_table_ptr = as_int32_ptr  # how tables of the grid are read; as_int_ptr for huge grids
RECOMPUTE = False  # whether to compute the pre-activations again instead of reading what forward saved


def _cell(units: int, scratch: Any, slots: Any) -> None:
    """The gradient of the cell on one row; each specialised kernel has its own in place of this one."""
    raise NotImplementedError


@jit
def _add_block(  # type: ignore[no-untyped-def]
    operands, all_da, rows, sums, block_sums, parameter_count, dims, depth, padded, panel
):
    """Add the gradients of a block of rows to `sums`: that of w_cat, which is `operandsᵀ @ all_da`, and
    those of the cell's parameters, which are in `block_sums` and are cleared there."""
    matmul(operands, 1, depth, all_da, panel, padded, rows, sums, padded, depth, dims[7], True)
    add(ptr_add(sums, depth * padded), block_sums, parameter_count)
    clear(block_sums, parameter_count)


def backward(  # type: ignore[no-untyped-def]
    dtype_tag, grad, x, w_t_packed, w_packed, peephole, norm_weight, norm_bias, h_first, c_first, lines,
    dh_last, dc_last, dh_first, dc_first, order, starts, predecessors, successors, output,
    gates, c, dx, d_operand, dc, counter, sums, part, scratch, batch, positions, fronts, dirs, ndim, units,
    channels, gate_dim, longest, columns, sums_size, part_blocks, panel, lanes, group, member, groups,
    members,
):  # fmt: skip
    """One thread's part of the gradient. The arguments are those of `kernels.forward`, and:

    Args:
        grad: (N, P, dirs, n) gradient of the output.
        w_t_packed: w_catᵀ as `packing.pack_transposed` lays it out.
        w_packed: w_cat, to recompute the pre-activations; then gates is 0. Otherwise 0.
        dh_last, dc_last: (N, F, dirs, n) gradients of the final states, if there are lines.
        dh_first, dc_first: the same of the initial states: zeros, and written where a line enters.
        successors: (D, P) the visit one step forward along each axis, or −1.
        dx: (N, P, C) zeros of the group, to which its part is added; 0 if it is not needed.
        d_operand: (2, longest, padded columns) of the group, the gradients of the operands of two
            wavefronts in turn.
        dc: (2, longest, D·n) of the group, the gradients of the predecessors' cell states, in the same way.
        sums: (dirs, sums_size) zeros of this thread, to which it adds the gradients of its rows: that of
            w_cat (K, padded gate_dim), then those of peephole, norm_weight and norm_bias if they are there.
        part: (sums_size,) zeros of this thread, the sums over one part; 0 if everything is one part.
        longest: the number of rows of the longest wavefront.
        columns: how many columns of the operand's gradient are needed: hidden_dim, or hidden_dim + C with
            dx.
        sums_size: numbers in the sums of a direction.
        part_blocks: the number of blocks in a part.
    """
    dims = batch, positions, fronts, dirs, ndim, units, channels, gate_dim
    hidden_dim = ndim * units if RECURRENT else 0
    depth, padded = hidden_dim + channels + 1, -(-gate_dim // lanes) * lanes
    d_stride = -(-columns // lanes) * lanes  # from one row of d_operand to the next
    peephole_size = (2 * ndim + 1) * units if peephole else 0
    norm_size = gate_dim + units if norm_weight else 0
    parameter_count = peephole_size + 2 * norm_size
    c_prev = as_int_ptr(scratch)
    # Addresses of the gradients that reach a row from its successors.
    dh_next = ptr_add(c_prev, BLOCK * ndim)
    dc_next = ptr_add(dh_next, ndim)
    zero_row = ptr_add(as_float_ptr(scratch, dtype_tag), 2 * (BLOCK + 2) * ndim)
    clear(zero_row, units)
    operands = ptr_add(zero_row, units)
    all_da = ptr_add(operands, 2 * BLOCK * depth)
    spill = ptr_add(all_da, 2 * BLOCK * padded)
    block_sums = ptr_add(spill, SPILLED * units)  # of the cell's parameters, over the rows of a block
    clear(block_sums, parameter_count)
    a = ptr_add(block_sums, parameter_count)
    parameter_gradients = (
        block_sums,
        ptr_add(block_sums, peephole_size),
        ptr_add(block_sums, peephole_size + norm_size),
    )
    part_ptr = as_float_ptr(part, dtype_tag)
    starts_ptr = as_int_ptr(starts)
    predecessors_ptr, successors_ptr = as_table_ptr(predecessors), as_table_ptr(successors)
    arrivals = 0
    for direction in range(group, dirs, groups):
        order_ptr = ptr_add(as_table_ptr(order), direction * positions)
        h_ptr = ptr_add(as_float_ptr(output, dtype_tag), direction * units)
        grad_ptr = ptr_add(as_float_ptr(grad, dtype_tag), direction * units)
        h_first_ptr = ptr_add(as_float_ptr(h_first, dtype_tag), direction * units)
        c_first_ptr = ptr_add(as_float_ptr(c_first, dtype_tag), direction * units)
        dh_last_ptr = ptr_add(as_float_ptr(dh_last, dtype_tag), direction * units)
        dc_last_ptr = ptr_add(as_float_ptr(dc_last, dtype_tag), direction * units)
        dh_first_ptr = ptr_add(as_float_ptr(dh_first, dtype_tag), direction * units)
        dc_first_ptr = ptr_add(as_float_ptr(dc_first, dtype_tag), direction * units)
        c_ptr = ptr_add(as_float_ptr(c, dtype_tag), direction * positions * batch * units)
        gates_ptr = ptr_add(as_float_ptr(gates, dtype_tag), direction * positions * batch * gate_dim)
        t_panels, panels = -(-columns // panel), -(-gate_dim // panel)
        w_t_ptr = ptr_add(as_float_ptr(w_t_packed, dtype_tag), direction * t_panels * gate_dim * panel)
        w_ptr = ptr_add(as_float_ptr(w_packed, dtype_tag), direction * panels * depth * panel)
        sums_ptr = ptr_add(as_float_ptr(sums, dtype_tag), direction * sums_size)
        part_sums = part_ptr if part else sums_ptr
        parameters = (
            ptr_add(as_float_ptr(peephole, dtype_tag), direction * peephole_size),
            ptr_add(as_float_ptr(norm_weight, dtype_tag), direction * norm_size),
            ptr_add(as_float_ptr(norm_bias, dtype_tag), direction * norm_size),
        )
        pending = 0  # rows not yet added to the sums: short wavefronts share a block
        blocks = 0  # blocks in this part so far
        for t in range(fronts - 1, -1, -1):
            # What this wavefront writes for its predecessors, and what its successors have written for it.
            d_now = ptr_add(as_float_ptr(d_operand, dtype_tag), t % 2 * longest * d_stride)
            dc_now = ptr_add(as_float_ptr(dc, dtype_tag), t % 2 * longest * ndim * units)
            d_next = ptr_add(as_float_ptr(d_operand, dtype_tag), (t + 1) % 2 * longest * d_stride)
            dc_after = ptr_add(as_float_ptr(dc, dtype_tag), (t + 1) % 2 * longest * ndim * units)
            count = (starts_ptr[t + 1] - starts_ptr[t]) * batch
            end = first_row(count, member + 1, members)
            for top in range(first_row(count, member, members), end, BLOCK):
                rows = min(BLOCK, end - top)
                first = starts_ptr[t] * batch + top
                operand, da = ptr_add(operands, pending * depth), ptr_add(all_da, pending * padded)
                for r in range(rows):
                    visit, sample = divmod(first + r, batch)
                    gather_row(
                        ptr_add(operand, r * depth), ptr_add(c_prev, r * ndim), h_ptr, c_ptr, zero_row,
                        as_float_ptr(x, dtype_tag), order_ptr, predecessors_ptr, visit, sample,
                        RECURRENT, dims,
                    )  # fmt: skip
                if STATES:
                    enter(
                        operand, c_prev, first, rows, depth, h_first_ptr, c_first_ptr, as_int_ptr(lines),
                        order_ptr, predecessors_ptr, RECURRENT, dims,
                    )  # fmt: skip
                if RECOMPUTE:
                    matmul(
                        operand, depth, 1, w_ptr, depth * panel, panel, depth, a, padded, rows, gate_dim,
                        False,
                    )  # fmt: skip
                for r in range(rows):
                    visit, sample = divmod(first + r, batch)
                    place = sample * positions + order_ptr[visit]
                    dc_prev = ptr_add(dc_now, (top + r) * ndim * units)
                    for d in range(ndim):
                        dh_next[d] = dc_next[d] = ptr_to_int(zero_row)
                        following = successors_ptr[d * positions + visit]
                        if following >= 0:
                            row = (following - starts_ptr[t + 1]) * batch + sample
                            if RECURRENT:
                                dh_next[d] = ptr_to_int(ptr_add(d_next, row * d_stride + d * units))
                            dc_next[d] = ptr_to_int(ptr_add(dc_after, (row * ndim + d) * units))
                    if STATES:
                        leave(
                            dh_next, dc_next, visit, sample, dh_last_ptr, dc_last_ptr, as_int_ptr(lines),
                            order_ptr, successors_ptr, dims,
                        )  # fmt: skip
                    slots = (
                        ptr_add(a, r * padded) if RECOMPUTE else ptr_add(gates_ptr, (first + r) * gate_dim),
                        ptr_add(c_prev, r * ndim), ptr_add(c_ptr, (first + r) * units),
                        ptr_add(grad_ptr, place * dirs * units), dh_next, dc_next, *parameters,
                        ptr_add(da, r * padded), dc_prev, *parameter_gradients,
                    )  # fmt: skip
                    _cell(units, spill, slots)
                d_rows = ptr_add(d_now, top * d_stride)
                if columns > 0:
                    matmul(
                        da, padded, 1, w_t_ptr, gate_dim * panel, panel, gate_dim, d_rows, d_stride, rows,
                        columns, False,
                    )  # fmt: skip
                if STATES:
                    keep_entering(
                        first, rows, d_rows, d_stride, ptr_add(dc_now, top * ndim * units), dh_first_ptr,
                        dc_first_ptr, as_int_ptr(lines), order_ptr, predecessors_ptr, RECURRENT, dims,
                    )  # fmt: skip
                pending += rows
                if pending >= BLOCK:
                    _add_block(
                        operands, all_da, pending, part_sums, block_sums, parameter_count, dims, depth,
                        padded, panel,
                    )  # fmt: skip
                    pending = 0
                    blocks += 1
                    if part and blocks == part_blocks:
                        add(sums_ptr, part_ptr, sums_size)
                        clear(part_ptr, sums_size)
                        blocks = 0
                if dx:
                    for r in range(rows):
                        visit, sample = divmod(first + r, batch)
                        place = sample * positions + order_ptr[visit]
                        target = ptr_add(as_float_ptr(dx, dtype_tag), place * channels)
                        add(target, ptr_add(d_rows, r * d_stride + hidden_dim), channels)
            if members > 1:
                arrivals += members
                barrier_wait(as_int_ptr(counter), arrivals)
        if pending > 0:
            _add_block(
                operands, all_da, pending, part_sums, block_sums, parameter_count, dims, depth, padded,
                panel,
            )  # fmt: skip
        if part:
            add(sums_ptr, part_ptr, sums_size)
            clear(part_ptr, sums_size)


def backward_scratch(
    ndim: int, units: int, gate_dim: int, depth: int, lanes: int, spilled: int, parameter_count: int
) -> int:
    """How many numbers of scratch memory `backward` needs, in whole cache lines: the tables of addresses,
    the row of zeros, operands and da of two blocks, the spilled rows, the `parameter_count` numbers of the
    cell's parameters' gradients, and the pre-activations of a block."""
    per_row = 2 * (ndim + depth + gate_dim + lanes) + gate_dim + lanes
    return -(-(4 * ndim + BLOCK * per_row + (1 + spilled) * units + parameter_count) // 16) * 16
