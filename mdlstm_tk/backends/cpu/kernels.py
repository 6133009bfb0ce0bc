"""The fused sweep in Numba: one call for the whole grid. This file holds forward, `backward_kernel` the
gradient.

The sweep is one linear layer, applied to what each position sees. With

    operand  (h_1 | … | h_D | x | 1)       (K,), K = D·n + C + 1
    w_cat    (U_1 | … | U_D | W | b)ᵀ      (K, G·n)

the pre-activations are `operand @ w_cat`. In backward, `da @ w_catᵀ` is the gradient of the operand and
`operandᵀ @ da` that of w_cat. So a wavefront is: gather the operands of a block of rows, one product, the
cell on each row; all of it on data that is still in cache, and only what backward needs is written to
memory.
If the cell is not recurrent, the operand has no h_d: K = C + 1.

Rows are (visit, sample) in visiting order, so a wavefront is contiguous in gates and c. A ragged batch is
one sample to the kernels, whose positions are the valid ones of all samples: see
`mdlstm_tk.backends.tables`.

Groups of threads take directions in turn and need nothing of each other. The members of a group share each
wavefront's rows and meet at a barrier after it.

`forward` is a template: `mdlstm_tk.backends.cpu.compile` makes one function of it for every dtype and cell,
with other values for the globals `_cell`, `SPILLED`, `RECURRENT` and `STATES`.

Notation
    N, P, T, D        batch, positions, wavefronts, axes
    n, C, G           hidden units, input features, gates
    gate_dim          G·n
    hidden_dim        D·n, or 0 if the cell is not recurrent
    K                 length of an operand, hidden_dim + C + 1
    NR, lanes         columns of a panel of w_packed, elements of a vector
    padded            gate_dim rounded up to whole vectors
    visit             index of a position in visiting order
    F                 lines of all faces, see `mdlstm_tk.backends.faces`
    …_ptr             a pointer; other array arguments are addresses
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.face_rows import enter, keep_leaving
from mdlstm_tk.backends.cpu.intrinsics import (
    as_float_ptr,
    as_int32_ptr,
    as_int_ptr,
    barrier_wait,
    clear,
    copy,
    ptr_add,
    ptr_to_int,
)
from mdlstm_tk.backends.cpu.jit import jit
from mdlstm_tk.backends.cpu.matmul import matmul
from mdlstm_tk.backends.cpu.padding import clear_padding

BLOCK = 64  # rows between gathering and the cell: few enough to stay in cache, enough for the product
SPILLED = 0  # rows of scratch memory that the cell needs; each specialised kernel has its own value
RECURRENT = True  # whether the gates see h; each specialised kernel has its own value
STATES = False  # whether there are initial and final states; each specialised kernel has its own value
as_table_ptr = as_int32_ptr  # how tables of the grid are read; as_int_ptr for huge grids


def _cell(units: int, scratch: Any, slots: Any) -> None:
    """The cell on one row; each specialised kernel has its own function in place of this one."""
    raise NotImplementedError


@jit
def first_row(count, member, members):  # type: ignore[no-untyped-def]
    """The first of `count` rows that are this member's: whole tiles, so that no tile is split."""
    tiles = -(-count // simd.TILE_ROWS)
    return min(count, tiles * member // members * simd.TILE_ROWS)


@jit
def gather_row(  # type: ignore[no-untyped-def]
    operand, c_prev, output, c, zero_row, x, order, predecessors, visit, sample, recurrent, dims
):
    """Fill one row of the operand, with zeros where there is no predecessor; and write the addresses of the
    predecessors' cell states to the table `c_prev`, that of `zero_row` where there is none."""
    batch, positions, _, dirs, ndim, units, channels, _ = dims
    for d in range(ndim):
        previous = predecessors[d * positions + visit]
        if previous < 0:
            if recurrent:
                clear(ptr_add(operand, d * units), units)
            c_prev[d] = ptr_to_int(zero_row)
        else:
            if recurrent:
                h_d = ptr_add(output, (sample * positions + order[previous]) * dirs * units)
                copy(ptr_add(operand, d * units), h_d, units)
            c_prev[d] = ptr_to_int(ptr_add(c, (previous * batch + sample) * units))
    rest = ptr_add(operand, ndim * units) if recurrent else operand
    copy(rest, ptr_add(x, (sample * positions + order[visit]) * channels), channels)
    rest[channels] = 1


def forward(  # type: ignore[no-untyped-def]
    dtype_tag, x, w_packed, peephole, norm_weight, norm_bias, h_first, c_first, h_last, c_last, lines,
    order, starts, predecessors, successors, output, sizes, extents, gates, c, counter, scratch, samples,
    batch, positions, fronts, dirs, ndim, units, channels, gate_dim, c_rows, panel, lanes, group, member,
    groups, members,
):  # fmt: skip
    """One thread's part of the sweep. Arrays are given by their addresses, 0 for None.

    Args:
        dtype_tag: 0 in the arrays' dtype.
        x: (N, P, C).
        w_packed: w_cat as `packing.pack` lays it out.
        peephole, norm_weight, norm_bias: (dirs, rows, n).
        h_first, c_first: (N, F, dirs, n) initial states; 0 without states.
        h_last, c_last: (N, F, dirs, n) final states, written where a line has positions; 0 without.
        lines: what `faces.line_table` returns, (3·D + 2,) int64; 0 without states.
        order: (dirs, P) positions in visiting order; like the next two int32, or int64 for huge grids.
        starts: (T + 1,) int64, the visit at which each wavefront starts.
        predecessors, successors: (D, P) the visit one step back or forward along each axis, or −1.
        output: (N, P, dirs, n), written.
        sizes, extents: (N, D) and (D,) int64 of a ragged batch, whose padding is cleared in output; or 0.
        gates: (dirs, P·N, G·n), written for backward, or 0.
        c: (dirs, P·N, n), written; or if `c_rows`, (dirs, 2, c_rows, n) for two wavefronts in turn.
        counter: an int64 zero, the barrier of the group.
        scratch: memory of this thread alone, see `forward_scratch`.
        samples: N, also where a ragged batch is one sample to the kernel.
        batch, …, gate_dim: N, P, T, dirs, D, n, C, G·n.
        c_rows: the number of rows of the longest wavefront if c is for two wavefronts, else 0.
        panel, lanes: NR and the number of elements of a vector.
        group, member, groups, members: this thread's group and its place in it. A group takes the
            directions group, group + groups, ….
    """
    dims = batch, positions, fronts, dirs, ndim, units, channels, gate_dim
    hidden_dim = ndim * units if RECURRENT else 0
    depth, padded = hidden_dim + channels + 1, -(-gate_dim // lanes) * lanes
    c_prev = as_int_ptr(scratch)  # addresses of the predecessors' cell states for the rows of a block
    zero_row = ptr_add(as_float_ptr(scratch, dtype_tag), 2 * BLOCK * ndim)
    clear(zero_row, units)
    operand = ptr_add(zero_row, units)
    a = ptr_add(operand, BLOCK * depth)
    spill = ptr_add(a, BLOCK * padded)
    gates_row = ptr_add(spill, SPILLED * units)  # takes the gates of a row if they are not saved
    starts_ptr, predecessors_ptr = as_int_ptr(starts), as_table_ptr(predecessors)
    if sizes:
        clear_padding(
            as_float_ptr(output, dtype_tag), as_int_ptr(sizes), as_int_ptr(extents), samples, ndim,
            dirs * units, group * members + member, groups * members,
        )  # fmt: skip
    arrivals = 0
    for direction in range(group, dirs, groups):
        order_ptr = ptr_add(as_table_ptr(order), direction * positions)
        h_ptr = ptr_add(as_float_ptr(output, dtype_tag), direction * units)
        h_first_ptr = ptr_add(as_float_ptr(h_first, dtype_tag), direction * units)
        c_first_ptr = ptr_add(as_float_ptr(c_first, dtype_tag), direction * units)
        h_last_ptr = ptr_add(as_float_ptr(h_last, dtype_tag), direction * units)
        c_last_ptr = ptr_add(as_float_ptr(c_last, dtype_tag), direction * units)
        c_size = 2 * c_rows if c_rows else positions * batch
        c_ptr = ptr_add(as_float_ptr(c, dtype_tag), direction * c_size * units)
        c_now = c_ptr  # offset so that rows count from the first wavefront on
        gates_ptr = ptr_add(as_float_ptr(gates, dtype_tag), direction * positions * batch * gate_dim)
        panels = -(-gate_dim // panel)
        w_ptr = ptr_add(as_float_ptr(w_packed, dtype_tag), direction * panels * depth * panel)
        parameters = (
            ptr_add(as_float_ptr(peephole, dtype_tag), direction * (2 * ndim + 1) * units),
            ptr_add(as_float_ptr(norm_weight, dtype_tag), direction * (gate_dim + units)),
            ptr_add(as_float_ptr(norm_bias, dtype_tag), direction * (gate_dim + units)),
        )
        for t in range(fronts):
            c_before = c_now
            if c_rows:
                c_now = ptr_add(c_ptr, (t % 2 * c_rows - starts_ptr[t] * batch) * units)
            count = (starts_ptr[t + 1] - starts_ptr[t]) * batch
            end = first_row(count, member + 1, members)
            for top in range(first_row(count, member, members), end, BLOCK):
                rows = min(BLOCK, end - top)
                first = starts_ptr[t] * batch + top
                for r in range(rows):
                    visit, sample = divmod(first + r, batch)
                    gather_row(
                        ptr_add(operand, r * depth), ptr_add(c_prev, r * ndim), h_ptr, c_before, zero_row,
                        as_float_ptr(x, dtype_tag), order_ptr, predecessors_ptr, visit, sample,
                        RECURRENT, dims,
                    )  # fmt: skip
                if STATES:
                    enter(
                        operand, c_prev, first, rows, depth, h_first_ptr, c_first_ptr, as_int_ptr(lines),
                        order_ptr, predecessors_ptr, RECURRENT, dims,
                    )  # fmt: skip
                matmul(
                    operand, depth, 1, w_ptr, depth * panel, panel, depth, a, padded, rows, gate_dim, False
                )
                for r in range(rows):
                    visit, sample = divmod(first + r, batch)
                    place = sample * positions + order_ptr[visit]
                    h, c_new = ptr_add(h_ptr, place * dirs * units), ptr_add(c_now, (first + r) * units)
                    if gates:
                        gates_row = ptr_add(gates_ptr, (first + r) * gate_dim)
                    slots = (
                        ptr_add(a, r * padded), ptr_add(c_prev, r * ndim), h, c_new, gates_row, *parameters
                    )  # fmt: skip
                    _cell(units, spill, slots)
                    if STATES:
                        keep_leaving(
                            h, c_new, visit, sample, h_last_ptr, c_last_ptr, as_int_ptr(lines), order_ptr,
                            as_table_ptr(successors), dims,
                        )  # fmt: skip
            if members > 1:
                arrivals += members
                barrier_wait(as_int_ptr(counter), arrivals)


def forward_scratch(ndim: int, units: int, gate_dim: int, depth: int, lanes: int, spilled: int) -> int:
    """How many numbers of scratch memory `forward` needs, in whole cache lines: the table of cell states,
    the row of zeros, the operands and products of a block, the spilled rows, and the gates of a row."""
    per_row = 2 * ndim + depth + gate_dim + lanes
    return -(-(BLOCK * per_row + (1 + spilled) * units + gate_dim) // 16) * 16
