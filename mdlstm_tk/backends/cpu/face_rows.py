"""What the kernels do where states enter a sweep from a face, or leave it (`mdlstm_tk.backends.faces`).

Sweeps without states call nothing of this. A line enters where a valid position's predecessor is outside
the sample's valid extents, and leaves where its successor is. Notation as in
`mdlstm_tk.backends.cpu.kernels`.
"""

from __future__ import annotations

from mdlstm_tk.backends.cpu.intrinsics import as_byte_ptr, copy, ptr_add, ptr_to_int
from mdlstm_tk.backends.cpu.jit import jit


@jit
def _is_outside(visit, sample, order, valid_mask, positions):  # type: ignore[no-untyped-def]
    """Whether a visit, −1 where there is no position, is outside the sample's valid extents."""
    if visit < 0:
        return True
    return valid_mask != 0 and as_byte_ptr(valid_mask)[sample * positions + order[visit]] == 0


@jit
def _face_offset(lines, d, position, sample, dims):  # type: ignore[no-untyped-def]
    """Where the state of a position's line along axis d is, in a tensor (N, F, dirs, n) of all faces."""
    dirs, ndim, units = dims[3], dims[4], dims[5]
    block, stride, first = lines[3 * d], lines[3 * d + 1], lines[3 * d + 2]
    line = first + position // block * stride + position % stride
    return (sample * lines[3 * ndim] + line) * dirs * units


@jit
def enter(  # type: ignore[no-untyped-def]
    operand, c_prev, first, rows, depth, h_first, c_first, lines, order, predecessors, valid_mask,
    recurrent, dims,
):  # fmt: skip
    """Put h of the faces into the operands of a block of rows, and the addresses of c into the table."""
    batch, positions, _, _, ndim, units, _, _ = dims
    for r in range(rows):
        visit, sample = divmod(first + r, batch)
        if _is_outside(visit, sample, order, valid_mask, positions):
            continue
        for d in range(ndim):
            if _is_outside(predecessors[d * positions + visit], sample, order, valid_mask, positions):
                offset = _face_offset(lines, d, order[visit], sample, dims)
                if recurrent:
                    copy(ptr_add(operand, r * depth + d * units), ptr_add(h_first, offset), units)
                c_prev[r * ndim + d] = ptr_to_int(ptr_add(c_first, offset))


@jit
def keep_leaving(  # type: ignore[no-untyped-def]
    h, c_new, visit, sample, h_last, c_last, lines, order, successors, valid_mask, dims
):
    """Copy the h and c of one row to the faces that they leave through."""
    positions, ndim, units = dims[1], dims[4], dims[5]
    for d in range(ndim):
        if _is_outside(successors[d * positions + visit], sample, order, valid_mask, positions):
            offset = _face_offset(lines, d, order[visit], sample, dims)
            copy(ptr_add(h_last, offset), h, units)
            copy(ptr_add(c_last, offset), c_new, units)


@jit
def leave(  # type: ignore[no-untyped-def]
    dh_next, dc_next, visit, sample, dh_last, dc_last, lines, order, successors, valid_mask, dims
):
    """Put the addresses of the final states' gradients into the tables of one row."""
    positions, ndim = dims[1], dims[4]
    for d in range(ndim):
        if _is_outside(successors[d * positions + visit], sample, order, valid_mask, positions):
            offset = _face_offset(lines, d, order[visit], sample, dims)
            dh_next[d] = ptr_to_int(ptr_add(dh_last, offset))
            dc_next[d] = ptr_to_int(ptr_add(dc_last, offset))


@jit
def keep_entering(  # type: ignore[no-untyped-def]
    first, rows, d_rows, d_stride, dc_rows, dh_first, dc_first, lines, order, predecessors, valid_mask,
    recurrent, dims,
):  # fmt: skip
    """Copy the gradients of the h and c that entered at a block of rows."""
    batch, positions, _, _, ndim, units, _, _ = dims
    for r in range(rows):
        visit, sample = divmod(first + r, batch)
        if _is_outside(visit, sample, order, valid_mask, positions):
            continue
        for d in range(ndim):
            if _is_outside(predecessors[d * positions + visit], sample, order, valid_mask, positions):
                offset = _face_offset(lines, d, order[visit], sample, dims)
                if recurrent:
                    copy(ptr_add(dh_first, offset), ptr_add(d_rows, r * d_stride + d * units), units)
                copy(ptr_add(dc_first, offset), ptr_add(dc_rows, (r * ndim + d) * units), units)
