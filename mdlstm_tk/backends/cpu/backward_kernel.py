"""The gradient of the fused sweep in Numba. See `mdlstm_tk.backends.cpu.kernels` for the idea and notation.

Backward reads what forward saved and does not change it. A wavefront is: gather the operands again, the
cell's
gradient on each row, and two products: `da @ w_catᵀ`, the gradient of the operands, and `operandᵀ @ da`,
    which
is added to the gradient of w_cat.
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu.intrinsics import (
    as_byte_ptr,
    as_float_ptr,
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
RECOMPUTE = False  # whether to compute the pre-activations again instead of reading what forward saved


def _cell(units: int, scratch: Any, slots: Any) -> None:
    """The gradient of the cell on one row; each specialised kernel has its own in place of this one."""
    raise NotImplementedError


@jit
def _add(target, source, count):  # type: ignore[no-untyped-def]
    for k in range(count):
        target[k] += source[k]


def backward(  # type: ignore[no-untyped-def]
    dtype_tag, grad, x, w_t_packed, w_packed, peephole, norm_weight, norm_bias, valid_mask, order, starts,
    predecessors, successors, output, gates, c, dx, d_operand, dc, counter, dw_cat, dpeephole, dnorm_weight,
    dnorm_bias, scratch, batch, positions, fronts, dirs, ndim, units, channels, gate_dim, longest, columns,
    panel, lanes, group, member, groups, members,
):  # fmt: skip
    """One thread's part of the gradient. The arguments are those of `kernels.forward`, and:

    Args:
        grad: (N, P, dirs, n) gradient of the output.
        w_t_packed: w_catᵀ as `packing.pack_transposed` lays it out.
        w_packed: w_cat, to recompute the pre-activations; then gates is 0. Otherwise 0.
        successors: (D, P) the visit one step forward along each axis, or −1.
        dx: (N, P, C) zeros of the group, to which its part is added; 0 if it is not needed.
        d_operand: (2, longest, padded columns) of the group, the gradients of the operands of two
            wavefronts in turn.
        dc: (2, longest, D·n) of the group, the gradients of the predecessors' cell states, in the same way.
        dw_cat: (dirs, K, padded gate_dim) zeros of this thread, to which its part is added.
        dpeephole, dnorm_weight, dnorm_bias: (dirs, rows, n) zeros of this thread, in the same way.
        longest: the number of rows of the longest wavefront.
        columns: how many columns of the operand's gradient are needed: hidden_dim, or hidden_dim + C with
            dx.
    """
    dims = batch, positions, fronts, dirs, ndim, units, channels, gate_dim
    hidden_dim = ndim * units if RECURRENT else 0
    depth, padded = hidden_dim + channels + 1, -(-gate_dim // lanes) * lanes
    d_stride = -(-columns // lanes) * lanes  # from one row of d_operand to the next
    c_prev = as_int_ptr(scratch)
    dh_next = ptr_add(
        c_prev, BLOCK * ndim
    )  # addresses of the gradients that reach a row from its successors
    dc_next = ptr_add(dh_next, ndim)
    zero_row = ptr_add(as_float_ptr(scratch, dtype_tag), 2 * (BLOCK + 2) * ndim)
    clear(zero_row, units)
    operands = ptr_add(zero_row, units)
    all_da = ptr_add(operands, 2 * BLOCK * depth)
    spill = ptr_add(all_da, 2 * BLOCK * padded)
    a = ptr_add(spill, SPILLED * units)
    starts_ptr, valid_ptr = as_int_ptr(starts), as_byte_ptr(valid_mask)
    predecessors_ptr, successors_ptr = as_int_ptr(predecessors), as_int_ptr(successors)
    arrivals = 0
    for direction in range(group, dirs, groups):
        order_ptr = ptr_add(as_int_ptr(order), direction * positions)
        h_ptr = ptr_add(as_float_ptr(output, dtype_tag), direction * units)
        grad_ptr = ptr_add(as_float_ptr(grad, dtype_tag), direction * units)
        c_ptr = ptr_add(as_float_ptr(c, dtype_tag), direction * positions * batch * units)
        gates_ptr = ptr_add(as_float_ptr(gates, dtype_tag), direction * positions * batch * gate_dim)
        t_panels, panels = -(-columns // panel), -(-gate_dim // panel)
        w_t_ptr = ptr_add(as_float_ptr(w_t_packed, dtype_tag), direction * t_panels * gate_dim * panel)
        w_ptr = ptr_add(as_float_ptr(w_packed, dtype_tag), direction * panels * depth * panel)
        dw_ptr = ptr_add(as_float_ptr(dw_cat, dtype_tag), direction * depth * padded)
        peephole_offset = direction * (2 * ndim + 1) * units
        norm_offset = direction * (gate_dim + units)
        parameters = (
            ptr_add(as_float_ptr(peephole, dtype_tag), peephole_offset),
            ptr_add(as_float_ptr(norm_weight, dtype_tag), norm_offset),
            ptr_add(as_float_ptr(norm_bias, dtype_tag), norm_offset),
        )
        gradients = (
            ptr_add(as_float_ptr(dpeephole, dtype_tag), peephole_offset),
            ptr_add(as_float_ptr(dnorm_weight, dtype_tag), norm_offset),
            ptr_add(as_float_ptr(dnorm_bias, dtype_tag), norm_offset),
        )
        pending = 0  # rows not yet added to dw_cat: short wavefronts share a block
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
                    valid = valid_mask == 0 or valid_ptr[sample * positions + order_ptr[visit]] != 0
                    gather_row(
                        ptr_add(operand, r * depth), ptr_add(c_prev, r * ndim), h_ptr, c_ptr, zero_row,
                        as_float_ptr(x, dtype_tag), order_ptr, predecessors_ptr, visit, sample, valid,
                        RECURRENT, dims,
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
                    if valid_mask and valid_ptr[place] == 0:
                        clear(ptr_add(da, r * padded), gate_dim)
                        clear(dc_prev, ndim * units)
                        continue
                    for d in range(ndim):
                        dh_next[d] = dc_next[d] = ptr_to_int(zero_row)
                        following = successors_ptr[d * positions + visit]
                        if following >= 0:
                            row = (following - starts_ptr[t + 1]) * batch + sample
                            if RECURRENT:
                                dh_next[d] = ptr_to_int(ptr_add(d_next, row * d_stride + d * units))
                            dc_next[d] = ptr_to_int(ptr_add(dc_after, (row * ndim + d) * units))
                    slots = (
                        ptr_add(a, r * padded) if RECOMPUTE else ptr_add(gates_ptr, (first + r) * gate_dim),
                        ptr_add(c_prev, r * ndim), ptr_add(c_ptr, (first + r) * units),
                        ptr_add(grad_ptr, place * dirs * units), dh_next, dc_next, *parameters,
                        ptr_add(da, r * padded), dc_prev, *gradients,
                    )  # fmt: skip
                    _cell(units, spill, slots)
                d_rows = ptr_add(d_now, top * d_stride)
                if columns > 0:
                    matmul(
                        da, padded, 1, w_t_ptr, gate_dim * panel, panel, gate_dim, d_rows, d_stride, rows,
                        columns, False,
                    )  # fmt: skip
                pending += rows
                if pending >= BLOCK:
                    matmul(
                        operands, 1, depth, all_da, panel, padded, pending, dw_ptr, padded, depth, gate_dim,
                        True,
                    )  # fmt: skip
                    pending = 0
                if dx:
                    for r in range(rows):
                        visit, sample = divmod(first + r, batch)
                        place = sample * positions + order_ptr[visit]
                        target = ptr_add(as_float_ptr(dx, dtype_tag), place * channels)
                        _add(target, ptr_add(d_rows, r * d_stride + hidden_dim), channels)
            if members > 1:
                arrivals += members
                barrier_wait(as_int_ptr(counter), arrivals)
        if pending > 0:
            matmul(
                operands, 1, depth, all_da, panel, padded, pending, dw_ptr, padded, depth, gate_dim, True
            )


def backward_scratch(ndim: int, units: int, gate_dim: int, depth: int, lanes: int, spilled: int) -> int:
    """How many numbers of scratch memory `backward` needs, in whole cache lines: the tables of addresses,
    the row of zeros, operands and da of two blocks, the spilled rows, and the pre-activations of a
    block."""
    per_row = 2 * (ndim + depth + gate_dim + lanes) + gate_dim + lanes
    return -(-(4 * ndim + BLOCK * per_row + (1 + spilled) * units) // 16) * 16
