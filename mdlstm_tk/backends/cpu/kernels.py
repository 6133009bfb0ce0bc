"""The fused sweep in Numba: forward and backward, each one call for the whole grid.

The sweep is one linear layer, applied to what each cell sees. With

    operand  (h_1 | … | h_D | x | 1)       (K,), K = D·n + C + 1
    V        (U_1 | … | U_D | W | b)ᵀ      (K, G·n)

the pre-activations are `operand V`; backward, `da Vᵀ` is the gradient of the operand and
`operandᵀ da` that of V. So a wavefront is: gather the operands of a block of rows, one product, the
cell on each row; all of it on data that is still in cache, and nothing but what backward needs is
ever written to memory. Backward reads what forward saved and leaves it as it is.

Rows are (position, sample) in visiting order, so a wavefront is contiguous in gates and c. Directions
are shared out among groups of threads, which need nothing of each other; those of a group share each
wavefront's rows and meet at a barrier behind it.

Arrays come as addresses and become pointers: Numba counts references to arrays, and threads that
count on the same array wait for each other more than they compute.

V comes in panels of columns, see `mdlstm_tk.backends.cpu.packing`. `forward` and `backward` are templates:
`mdlstm_tk.backends.cpu.compile` makes one function of each for every dtype and cell, with the cell's
equations in place of `_cell`.
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.intrinsics import (
    address,
    as_bytes,
    as_floats,
    as_integers,
    clear,
    copy,
    matmul,
    moved,
    wait_for,
)
from mdlstm_tk.backends.cpu.jit import jit

BLOCK = 64  # rows between gathering and the cell: few enough to stay in cache, enough for the product
SPILLED = 0  # rows of scratch the cell needs; like `_cell`, each compiled function has its own
RECOMPUTE = False  # does `backward` compute the pre-activations again, rather than read what was kept?


def _cell(units: int, scratch: Any, bases: Any) -> None:
    """The cell on one row; each compiled function has its own in place of this."""
    raise NotImplementedError


@jit
def _share(count, thread, threads):  # type: ignore[no-untyped-def]
    """The first of `count` rows that are this thread's; whole tiles, so that none is split."""
    tiles = -(-count // simd.TILE_ROWS)
    return min(count, tiles * thread // threads * simd.TILE_ROWS)


@jit
def _product(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate):  # type: ignore[no-untyped-def]
    """`matmul` as a function, so that it is compiled once."""
    matmul(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate)


@jit
def _add(target, source, count):  # type: ignore[no-untyped-def]
    for k in range(count):
        target[k] += source[k]


@jit
def _gather(operand, before, output, c, nothing, x, visit, back, rank, sample, within, sizes):  # type: ignore[no-untyped-def]
    """Fill a row of the operand, with zeros where there is no cell; note where the states c_d lie, at
    `nothing` where there is none."""
    batch, positions, _, dirs, ndim, units, channels, _ = sizes
    for d in range(ndim):
        behind = back[d * positions + rank]
        if behind < 0:
            clear(moved(operand, d * units), units)
            before[d] = address(nothing)
        else:
            h_d = moved(output, (sample * positions + visit[behind]) * dirs * units)
            copy(moved(operand, d * units), h_d, units)
            before[d] = address(moved(c, (behind * batch + sample) * units))
    rest = moved(operand, ndim * units)
    if within:
        copy(rest, moved(x, (sample * positions + visit[rank]) * channels), channels)
    else:
        clear(rest, channels)
    rest[channels] = 1


def forward(  # type: ignore[no-untyped-def]
    zero, x, packed, peephole, norm_weight, norm_bias, inside, visit, starts, back,
    output, gates, c, counter, scratch, batch, positions, fronts, dirs, ndim, units, channels, width,
    longest, panel, length, group, thread, groups, threads,
):  # fmt: skip
    """One thread's part of the sweep. Arrays are given by their addresses.

    Args:
        zero: 0 in the arrays' dtype.
        x: (N, P, C).
        packed: V, see `packing.pack`.
        peephole, norm_weight, norm_bias: (dirs, rows, n), or anything where the cell has none.
        inside: (N, P) bool, or 0: all are.
        visit: (dirs, P) positions in visiting order.
        starts: (T + 1,) where each wavefront starts.
        back: (D, P) the rank one step back along each axis, or −1.
        output: (N, P, dirs, n), to be filled.
        gates: (dirs, P·N, G·n), to be filled for backward, or 0.
        c: (dirs, P·N, n), to be filled; or if `longest`, (dirs, 2, longest, n) for two wavefronts in turn.
        counter: int64 zero, the group's barrier.
        scratch: this thread's, see `forward_scratch`.
        batch, …, width: N, P, T, dirs, D, n, C, G·n.
        longest: rows in the longest wavefront if c is for two of them, or 0.
        panel, length: columns in a panel of V, and in a vector.
        group, thread, groups, threads: which group of threads, of how many: its directions are group,
            group + groups, …; and which of its threads this is, of how many.
    """
    sizes = batch, positions, fronts, dirs, ndim, units, channels, width
    depth, padded = ndim * units + channels + 1, -(-width // length) * length
    before = as_integers(scratch)  # where the states c_d of the block's rows lie
    nothing = moved(as_floats(scratch, zero), 2 * BLOCK * ndim)  # a row of zeros
    clear(nothing, units)
    operand = moved(nothing, units)
    a = moved(operand, BLOCK * depth)
    spill = moved(a, BLOCK * padded)
    keep = moved(spill, SPILLED * units)  # where the gates of a row go if they are not kept
    first_of, back_of, mask = as_integers(starts), as_integers(back), as_bytes(inside)
    arrivals = 0
    for way in range(group, dirs, groups):
        visit_of = moved(as_integers(visit), way * positions)
        h_of = moved(as_floats(output, zero), way * units)
        c_of = moved(as_floats(c, zero), way * (2 * longest if longest else positions * batch) * units)
        c_here = c_of  # as if rows were counted from the first wavefront on
        gates_of = moved(as_floats(gates, zero), way * positions * batch * width)
        v = moved(as_floats(packed, zero), way * -(-width // panel) * depth * panel)
        extra = (
            moved(as_floats(peephole, zero), way * (2 * ndim + 1) * units),
            moved(as_floats(norm_weight, zero), way * (width + units)),
            moved(as_floats(norm_bias, zero), way * (width + units)),
        )
        for t in range(fronts):
            c_before = c_here
            if longest:
                c_here = moved(c_of, (t % 2 * longest - first_of[t] * batch) * units)
            count = (first_of[t + 1] - first_of[t]) * batch
            end = _share(count, thread + 1, threads)
            for top in range(_share(count, thread, threads), end, BLOCK):
                rows = min(BLOCK, end - top)
                first = first_of[t] * batch + top
                for r in range(rows):
                    rank, sample = divmod(first + r, batch)
                    within = inside == 0 or mask[sample * positions + visit_of[rank]] != 0
                    _gather(
                        moved(operand, r * depth), moved(before, r * ndim), h_of, c_before, nothing,
                        as_floats(x, zero), visit_of, back_of, rank, sample, within, sizes,
                    )  # fmt: skip
                _product(operand, depth, 1, v, depth * panel, panel, depth, a, padded, rows, width, False)
                for r in range(rows):
                    rank, sample = divmod(first + r, batch)
                    place = sample * positions + visit_of[rank]
                    h, new = moved(h_of, place * dirs * units), moved(c_here, (first + r) * units)
                    if inside and mask[place] == 0:
                        clear(h, units)
                        clear(new, units)
                        continue
                    if gates:
                        keep = moved(gates_of, (first + r) * width)
                    bases = (moved(a, r * padded), moved(before, r * ndim), h, new, keep, *extra)
                    _cell(units, spill, bases)
            if threads > 1:
                arrivals += threads
                wait_for(as_integers(counter), arrivals)


def forward_scratch(sizes: tuple[int, ...], length: int, spilled: int) -> int:
    """How many numbers `forward` wants as scratch, in whole cache lines: where c_d lie, the zeros, the
    block's operands and their products, the spilled rows and the gates of a row."""
    _, _, _, _, ndim, units, channels, width = sizes
    of_row = 2 * ndim + ndim * units + channels + 1 + width + length
    return -(-(BLOCK * of_row + (1 + spilled) * units + width) // 16) * 16


def backward(  # type: ignore[no-untyped-def]
    zero, grad, x, packed, packed_v, peephole, norm_weight, norm_bias, inside, visit, starts, back, ahead,
    output, gates, c, dx, behind, behind_c, counter, dv, dpeephole, dnorm_weight, dnorm_bias,
    scratch, batch, positions, fronts, dirs, ndim, units, channels, width, longest, columns,
    panel, length, group, thread, groups, threads,
):  # fmt: skip
    """One thread's part of the sweep's gradient. As `forward`, and:

    Args:
        grad: (N, P, dirs, n) the gradient of the output.
        packed: Vᵀ, see `packing.pack_transposed`.
        packed_v: V, to `RECOMPUTE` the pre-activations, for which gates is 0; else 0.
        ahead: (D, P) the rank one step ahead along each axis, or −1.
        dx: (N, P, C) zeros, to which the group's part is added, or 0 if it is not wanted.
        behind: (2, longest, padded columns) the group's, the gradient of the operands of two wavefronts in
            turn.
        behind_c: (2, longest, D·n) that of the states c_d.
        dv: (dirs, K, padded G·n) zeros, to which this thread's part of the gradient of V is added.
        dpeephole, dnorm_weight, dnorm_bias: (dirs, rows, n) zeros, likewise.
        longest: rows in the longest wavefront.
        columns: how much of the operand's gradient is wanted: D·n, or D·n + C with dx.
    """
    sizes = batch, positions, fronts, dirs, ndim, units, channels, width
    depth, padded = ndim * units + channels + 1, -(-width // length) * length
    stride = -(-columns // length) * length
    before = as_integers(scratch)
    ahead_h = moved(before, BLOCK * ndim)  # where lies what comes to a row from the cells ahead
    ahead_c = moved(ahead_h, ndim)
    nothing = moved(as_floats(scratch, zero), 2 * (BLOCK + 2) * ndim)
    clear(nothing, units)
    operands = moved(nothing, units)
    all_da = moved(operands, 2 * BLOCK * depth)
    spill = moved(all_da, 2 * BLOCK * padded)
    a = moved(spill, SPILLED * units)
    first_of, back_of, ahead_of = as_integers(starts), as_integers(back), as_integers(ahead)
    mask = as_bytes(inside)
    arrivals = 0
    for way in range(group, dirs, groups):
        visit_of = moved(as_integers(visit), way * positions)
        h_of = moved(as_floats(output, zero), way * units)
        grad_of = moved(as_floats(grad, zero), way * units)
        c_of = moved(as_floats(c, zero), way * positions * batch * units)
        gates_of = moved(as_floats(gates, zero), way * positions * batch * width)
        v_t = moved(as_floats(packed, zero), way * -(-columns // panel) * width * panel)
        v = moved(as_floats(packed_v, zero), way * -(-width // panel) * depth * panel)
        dv_of = moved(as_floats(dv, zero), way * depth * padded)
        seen, normed = way * (2 * ndim + 1) * units, way * (width + units)
        extra = (
            moved(as_floats(peephole, zero), seen),
            moved(as_floats(norm_weight, zero), normed),
            moved(as_floats(norm_bias, zero), normed),
        )
        gradients = (
            moved(as_floats(dpeephole, zero), seen),
            moved(as_floats(dnorm_weight, zero), normed),
            moved(as_floats(dnorm_bias, zero), normed),
        )
        held = 0  # rows whose part of dv is still to be added: a block's, from several short wavefronts
        for t in range(fronts - 1, -1, -1):
            here = moved(as_floats(behind, zero), t % 2 * longest * stride)
            here_c = moved(as_floats(behind_c, zero), t % 2 * longest * ndim * units)
            there = moved(as_floats(behind, zero), (t + 1) % 2 * longest * stride)
            there_c = moved(as_floats(behind_c, zero), (t + 1) % 2 * longest * ndim * units)
            count = (first_of[t + 1] - first_of[t]) * batch
            end = _share(count, thread + 1, threads)
            for top in range(_share(count, thread, threads), end, BLOCK):
                rows = min(BLOCK, end - top)
                first = first_of[t] * batch + top
                operand, da = moved(operands, held * depth), moved(all_da, held * padded)
                for r in range(rows):
                    rank, sample = divmod(first + r, batch)
                    within = inside == 0 or mask[sample * positions + visit_of[rank]] != 0
                    _gather(
                        moved(operand, r * depth), moved(before, r * ndim), h_of, c_of, nothing,
                        as_floats(x, zero), visit_of, back_of, rank, sample, within, sizes,
                    )  # fmt: skip
                if RECOMPUTE:
                    _product(
                        operand, depth, 1, v, depth * panel, panel, depth, a, padded, rows, width, False
                    )
                for r in range(rows):
                    rank, sample = divmod(first + r, batch)
                    place = sample * positions + visit_of[rank]
                    dbefore = moved(here_c, (top + r) * ndim * units)
                    if inside and mask[place] == 0:
                        clear(moved(da, r * padded), width)
                        clear(dbefore, ndim * units)
                        continue
                    for d in range(ndim):
                        ahead_h[d] = ahead_c[d] = address(nothing)
                        next_rank = ahead_of[d * positions + rank]
                        if next_rank >= 0:
                            row = (next_rank - first_of[t + 1]) * batch + sample
                            ahead_h[d] = address(moved(there, row * stride + d * units))
                            ahead_c[d] = address(moved(there_c, (row * ndim + d) * units))
                    bases = (
                        moved(a, r * padded) if RECOMPUTE else moved(gates_of, (first + r) * width),
                        moved(before, r * ndim), moved(c_of, (first + r) * units),
                        moved(grad_of, place * dirs * units), ahead_h, ahead_c, *extra,
                        moved(da, r * padded), dbefore, *gradients,
                    )  # fmt: skip
                    _cell(units, spill, bases)
                back_rows = moved(here, top * stride)
                _product(
                    da, padded, 1, v_t, width * panel, panel, width, back_rows, stride, rows, columns, False
                )
                held += rows
                if held >= BLOCK:
                    _product(
                        operands, 1, depth, all_da, panel, padded, held, dv_of, padded, depth, width, True
                    )
                    held = 0
                if dx:
                    for r in range(rows):
                        rank, sample = divmod(first + r, batch)
                        target = moved(
                            as_floats(dx, zero), (sample * positions + visit_of[rank]) * channels
                        )
                        _add(target, moved(back_rows, r * stride + ndim * units), channels)
            if threads > 1:
                arrivals += threads
                wait_for(as_integers(counter), arrivals)
        if held > 0:
            _product(operands, 1, depth, all_da, panel, padded, held, dv_of, padded, depth, width, True)


def backward_scratch(sizes: tuple[int, ...], length: int, spilled: int) -> int:
    """How many numbers `backward` wants as scratch, likewise: where c_d and what comes back lie, the zeros,
    operands and da of two blocks, the spilled rows and the block's pre-activations."""
    _, _, _, _, ndim, units, channels, width = sizes
    of_row = 2 * (ndim + ndim * units + channels + 1 + width + length) + width + length
    return -(-(4 * ndim + BLOCK * of_row + (1 + spilled) * units) // 16) * 16
