"""What the kernels do where states enter a sweep from a face, or leave it (`mdlstm_tk.backends.faces`).

Sweeps without states call nothing of this. A line enters where a row has no predecessor, and leaves where
it has no successor. Notation as in `mdlstm_tk.backends.cpu.kernels`.
"""

from __future__ import annotations

from mdlstm_tk.backends.cpu.intrinsics import copy, ptr_add, ptr_to_int
from mdlstm_tk.backends.cpu.jit import jit


@jit
def _face_offset(lines, d, place, dims):  # type: ignore[no-untyped-def]
    """Where the state of a line along axis d is, in a tensor (N, F, dirs, n) of all faces; `place` is a
    position of that line in (N, P)."""
    dirs, ndim, units = dims[3], dims[4], dims[5]
    block, stride, first = lines[3 * d], lines[3 * d + 1], lines[3 * d + 2]
    sample, position = divmod(place, lines[3 * ndim + 1])
    line = first + position // block * stride + position % stride
    return (sample * lines[3 * ndim] + line) * dirs * units


@jit
def enter(  # type: ignore[no-untyped-def]
    operand, c_prev, first, rows, depth, h_first, c_first, lines, order, predecessors, recurrent, dims,
):  # fmt: skip
    """Put h of the faces into the operands of a block of rows, and the addresses of c into the table."""
    batch, positions, _, _, ndim, units, _, _ = dims
    for r in range(rows):
        visit, sample = divmod(first + r, batch)
        for d in range(ndim):
            if predecessors[d * positions + visit] < 0:
                offset = _face_offset(lines, d, sample * positions + order[visit], dims)
                if recurrent:
                    copy(ptr_add(operand, r * depth + d * units), ptr_add(h_first, offset), units)
                c_prev[r * ndim + d] = ptr_to_int(ptr_add(c_first, offset))


@jit
def keep_leaving(  # type: ignore[no-untyped-def]
    h, c_new, visit, sample, h_last, c_last, lines, order, successors, dims
):
    """Copy the h and c of one row to the faces that they leave through."""
    positions, ndim, units = dims[1], dims[4], dims[5]
    for d in range(ndim):
        if successors[d * positions + visit] < 0:
            offset = _face_offset(lines, d, sample * positions + order[visit], dims)
            copy(ptr_add(h_last, offset), h, units)
            copy(ptr_add(c_last, offset), c_new, units)


@jit
def leave(  # type: ignore[no-untyped-def]
    dh_next, dc_next, visit, sample, dh_last, dc_last, lines, order, successors, dims
):
    """Put the addresses of the final states' gradients into the tables of one row."""
    positions, ndim = dims[1], dims[4]
    for d in range(ndim):
        if successors[d * positions + visit] < 0:
            offset = _face_offset(lines, d, sample * positions + order[visit], dims)
            dh_next[d] = ptr_to_int(ptr_add(dh_last, offset))
            dc_next[d] = ptr_to_int(ptr_add(dc_last, offset))


@jit
def keep_entering(  # type: ignore[no-untyped-def]
    first, rows, d_rows, d_stride, dc_rows, dh_first, dc_first, lines, order, predecessors, recurrent, dims,
):  # fmt: skip
    """Copy the gradients of the h and c that entered at a block of rows."""
    batch, positions, _, _, ndim, units, _, _ = dims
    for r in range(rows):
        visit, sample = divmod(first + r, batch)
        for d in range(ndim):
            if predecessors[d * positions + visit] < 0:
                offset = _face_offset(lines, d, sample * positions + order[visit], dims)
                if recurrent:
                    copy(ptr_add(dh_first, offset), ptr_add(d_rows, r * d_stride + d * units), units)
                copy(ptr_add(dc_first, offset), ptr_add(dc_rows, (r * ndim + d) * units), units)
