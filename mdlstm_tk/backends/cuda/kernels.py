"""The part of a sweep's wavefront that is not a matrix product, in Triton: forward and backward.

Rows are (position, sample) in visiting order, so a wavefront is contiguous in a, c and da. A program
takes ROWS rows of one direction, and BLOCK units of each; with layer norm all units. What reaches a
cell from its neighbours it fetches, or was written where only that neighbour writes: nothing is added
up atomically, so results do not depend on which program comes first.

`forward` and `backward` are templates: `mdlstm_tk.backends.cuda.codegen` makes one kernel of them for
each cell, with the cell's equations in place of `_cell`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def _cell(*blocks: Any) -> Any:
    """The cell's equations on blocks (ROWS, BLOCK); each kernel has its own in place of this."""
    raise NotImplementedError


@triton.jit
def tanh(x):
    """By a Padé approximant [7/6] near 0, where the other formula would lose digits."""
    size = tl.abs(x)
    s = tl.minimum(size, 1.0) * tl.minimum(size, 1.0)
    top = 135135.0 + s * (17325.0 + s * (378.0 + s))
    near = size * (top / (135135.0 + s * (62370.0 + s * (3150.0 + s * 28.0))))
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    result = tl.where(size < 0.5, near, far)
    return tl.where(x < 0.0, -result, result)


@triton.jit
def _rows(starts, visit, direction, t, batch, positions, ROWS: tl.constexpr):
    """This program's rows of wavefront t, (ROWS, 1) each.

    Returns:
        rank and sample; the row in (dirs, rows of the wavefront), in (dirs, P·N), and in (N, P); and
        whether the wavefront has such a row.
    """
    first, after = tl.load(starts + t + 1), tl.load(starts + t + 2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    there = row < (after - first) * batch
    rank, sample = first + row // batch, row % batch
    position = tl.load(visit + direction * positions + rank, mask=there, other=0)
    local = direction * (after - first) * batch + row
    at = (direction * positions + first) * batch + row
    return rank, sample, local, at, sample * positions + position, there


@triton.jit
def _behind(back, direction, rank, sample, there, batch, positions):
    """The row in (dirs, P·N) of the cell one step back along an axis, and whether there is one."""
    behind = tl.load(back + rank, mask=there, other=-1)
    return (direction * positions + behind) * batch + sample, behind >= 0


@triton.jit
def _ahead(ahead, starts, direction, t, rank, sample, there, batch):
    """The row in (dirs, rows of the next wavefront) of the cell one step ahead; whether there is one."""
    after, end = tl.load(starts + t + 2), tl.load(starts + t + 3)
    forth = tl.load(ahead + rank, mask=there, other=-1)
    return (direction * (end - after) + forth - after) * batch + sample, forth >= 0


@triton.jit
def _parameter(tensor, direction, unit, dtype: tl.constexpr, COUNT: tl.constexpr, UNITS: tl.constexpr):
    """A direction's rows of a parameter (dirs, COUNT, n), none if there is none."""
    rows = ()
    if tensor is not None:
        for k in tl.static_range(COUNT):
            place = tensor + (direction * COUNT + k) * UNITS + unit
            rows += (tl.load(place, mask=unit < UNITS, other=0.0).to(dtype),)
    return rows


@triton.jit
def _accumulate(tensor, rows, place, unit, COUNT: tl.constexpr, UNITS: tl.constexpr):
    """Add to this program's own rows of a gradient (…, COUNT, n) what its cells contribute."""
    if tensor is not None:
        for k in tl.static_range(COUNT):
            own = tensor + (place * COUNT + k) * UNITS + unit
            so_far = tl.load(own, mask=unit < UNITS, other=0.0)
            tl.store(own, so_far + tl.sum(rows[k], axis=0, keep_dims=True), mask=unit < UNITS)


def forward(
    a, recurrent, operand, next_operand, c, output, bias, peephole, norm_weight, norm_bias,
    starts, visit, back, ahead, inside, t, batch, positions,
    AXES: tl.constexpr, GATES: tl.constexpr, UNITS: tl.constexpr,
    KEEP_C: tl.constexpr, KEEP_GATES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The cells of wavefront t.

    Args:
        a: (dirs, P·N, G·n) W x. If KEEP_GATES, what backward wants of the gates takes its place.
        recurrent: (dirs, rows, G·n) Σ_d U_d h_d of this wavefront.
        operand: (dirs, rows, D·n) the h_d it came from, which is left as zeros.
        next_operand: (dirs, rows of the next, D·n) zeros, to be filled where a cell is ahead.
        c: (dirs, P·N, n), to be filled; or unless KEEP_C a, the first n columns of which it takes.
        output: (N, P, dirs, n), to be filled.
        bias, peephole, norm_weight, norm_bias: (dirs, rows of each, n) or None.
        starts, visit, back, ahead: see `Tables`.
        inside: (N, P) bool or None: all are.
    """
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    rank, sample, local, at, place, there = _rows(starts, visit, direction, t, batch, positions, ROWS)
    mask = there & (unit < UNITS)
    dtype: tl.constexpr = a.dtype.element_ty
    c_width: tl.constexpr = UNITS if KEEP_C else GATES * UNITS

    pre, shift = (), _parameter(bias, direction, unit, dtype, GATES, UNITS)
    for k in tl.static_range(GATES):
        column = k * UNITS + unit
        value = tl.load(a + at * (GATES * UNITS) + column, mask=mask, other=0.0)
        value += tl.load(recurrent + local * (GATES * UNITS) + column, mask=mask, other=0.0)
        if bias is not None:
            value += shift[k]
        pre += (value,)
    before = ()
    for d in tl.static_range(AXES):
        row, known = _behind(back + d * positions, direction, rank, sample, there, batch, positions)
        before += (tl.load(c + row * c_width + unit, mask=mask & known, other=0.0),)
    hs, cs, gates = _cell(
        pre, before,
        _parameter(peephole, direction, unit, dtype, 2 * AXES + 1, UNITS),
        _parameter(norm_weight, direction, unit, dtype, GATES + 1, UNITS),
        _parameter(norm_bias, direction, unit, dtype, GATES + 1, UNITS),
        unit, UNITS,
    )  # fmt: skip
    h, new = hs[0], cs[0]
    if inside is not None:
        within = tl.load(inside + place, mask=there, other=0) != 0
        h, new = tl.where(within, h, 0.0), tl.where(within, new, 0.0)

    tl.store(output + (place * dirs + direction) * UNITS + unit, h, mask=mask)
    tl.store(c + at * c_width + unit, new, mask=mask)
    if KEEP_GATES:
        for k in tl.static_range(GATES):
            tl.store(a + at * (GATES * UNITS) + k * UNITS + unit, gates[k], mask=mask)
    for d in tl.static_range(AXES):
        column = d * UNITS + unit
        tl.store(operand + local * (AXES * UNITS) + column, 0.0, mask=mask)
        row, known = _ahead(ahead + d * positions, starts, direction, t, rank, sample, there, batch)
        tl.store(next_operand + row * (AXES * UNITS) + column, h, mask=mask & known)


def backward(
    grad, gates, c, behind_h, behind_c, next_behind_c, peephole, norm_weight, norm_bias,
    da, dpeephole, dnorm_weight, dnorm_bias, starts, visit, back, ahead, inside, t, batch, positions,
    blocks,
    AXES: tl.constexpr, GATES: tl.constexpr, UNITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the cells of wavefront t. As `forward`, and:

    Args:
        grad: (N, P, dirs, n) gradient of the output.
        gates: what `forward` left in a, or pre-activations, see `triton_cells.kernel`.
        behind_h: (dirs, rows of the wavefront ahead, D·n) Σ_k U_d da of its cells, for their h_d.
        next_behind_c: (dirs, rows of the wavefront ahead, D·n) the gradient of their states c_d.
        behind_c: (dirs, rows, D·n) the same of this wavefront's cells, to be filled.
        da: (dirs, P·N, G·n), to be filled; may be gates.
        dpeephole, dnorm_weight, dnorm_bias: (dirs, blocks, rows, n) or None: each block of rows adds
            to its own, wavefront after wavefront.
    """
    direction, dirs = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    rank, sample, local, at, place, there = _rows(starts, visit, direction, t, batch, positions, ROWS)
    mask = there & (unit < UNITS)
    dtype: tl.constexpr = gates.dtype.element_ty

    within = mask
    if inside is not None:
        within = mask & (tl.load(inside + place, mask=there, other=0) != 0)
    dh = tl.load(grad + (place * dirs + direction) * UNITS + unit, mask=within, other=0.0).to(dtype)
    saved, before, ahead_h, ahead_c = (), (), (), ()
    for k in tl.static_range(GATES):
        saved += (tl.load(gates + at * (GATES * UNITS) + k * UNITS + unit, mask=mask, other=0.0),)
    for d in tl.static_range(AXES):
        row, known = _behind(back + d * positions, direction, rank, sample, there, batch, positions)
        before += (tl.load(c + row * UNITS + unit, mask=mask & known, other=0.0),)
        row, known = _ahead(ahead + d * positions, starts, direction, t, rank, sample, there, batch)
        column = row * (AXES * UNITS) + d * UNITS + unit
        ahead_h += (tl.load(behind_h + column, mask=within & known, other=0.0),)
        ahead_c += (tl.load(next_behind_c + column, mask=within & known, other=0.0),)
    new = tl.load(c + at * UNITS + unit, mask=mask, other=0.0)
    das, dbefore, of_peephole, of_norm_weight, of_norm_bias = _cell(
        saved, before, (new,), (dh,), ahead_h, ahead_c,
        _parameter(peephole, direction, unit, dtype, 2 * AXES + 1, UNITS),
        _parameter(norm_weight, direction, unit, dtype, GATES + 1, UNITS),
        _parameter(norm_bias, direction, unit, dtype, GATES + 1, UNITS),
        unit, UNITS,
    )  # fmt: skip

    for k in tl.static_range(GATES):
        tl.store(da + at * (GATES * UNITS) + k * UNITS + unit, das[k], mask=mask)
    for d in tl.static_range(AXES):
        tl.store(behind_c + local * (AXES * UNITS) + d * UNITS + unit, dbefore[d], mask=mask)
    own = direction * blocks + tl.program_id(0)
    _accumulate(dpeephole, of_peephole, own, unit, 2 * AXES + 1, UNITS)
    _accumulate(dnorm_weight, of_norm_weight, own, unit, GATES + 1, UNITS)
    _accumulate(dnorm_bias, of_norm_bias, own, unit, GATES + 1, UNITS)
