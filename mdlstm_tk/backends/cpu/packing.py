"""The weights of a sweep, packed in panels of columns as `mdlstm_tk.backends.cpu.matmul` reads them.

The functions are templates: `mdlstm_tk.backends.cpu.compile` makes one of each for every dtype. Notation as
in `mdlstm_tk.backends.cpu.kernels`: w_cat is (U_1 | … | U_D | W | b)ᵀ, (K, G·n).
"""

from __future__ import annotations

from mdlstm_tk.backends.cpu.intrinsics import as_float_ptr, clear, copy, ptr_add


def pack(dtype_tag, packed, w_hh, w_ih, bias, dirs, ndim, units, channels, gate_dim, panel):  # type: ignore[no-untyped-def]
    """Write w_cat in panels, (dirs, panels, K, NR).

    Args:
        dtype_tag: 0 in the arrays' dtype.
        packed: address of the result.
        w_hh: address of (dirs, D, G·n, n), or 0 if the cell is not recurrent.
        w_ih: address of (dirs, G·n, C).
        bias: address of (dirs, G·n), or 0 for zeros.
        dirs, …, gate_dim: dirs, D, n, C, G·n.
        panel: NR.
    """
    target = as_float_ptr(packed, dtype_tag)
    w_hh_ptr, w_ih_ptr = as_float_ptr(w_hh, dtype_tag), as_float_ptr(w_ih, dtype_tag)
    bias_ptr = as_float_ptr(bias, dtype_tag)
    hidden_dim = ndim * units if w_hh else 0
    depth = hidden_dim + channels + 1
    for direction in range(dirs):
        for first in range(0, gate_dim, panel):
            for j in range(panel):
                column = first + j
                if column >= gate_dim:
                    for k in range(depth):
                        target[k * panel + j] = 0
                    continue
                if w_hh:
                    for d in range(ndim):
                        source = ptr_add(w_hh_ptr, ((direction * ndim + d) * gate_dim + column) * units)
                        for k in range(units):
                            target[(d * units + k) * panel + j] = source[k]
                rest = ptr_add(target, hidden_dim * panel + j)
                for k in range(channels):
                    rest[k * panel] = w_ih_ptr[(direction * gate_dim + column) * channels + k]
                rest[channels * panel] = bias_ptr[direction * gate_dim + column] if bias else dtype_tag
            target = ptr_add(target, depth * panel)


def pack_transposed(dtype_tag, packed, w_hh, w_ih, dirs, ndim, units, channels, gate_dim, panel):  # type: ignore[no-untyped-def]
    """Write w_catᵀ without b in panels, (dirs, panels, G·n, NR); without W as well if `channels` is 0."""
    target = as_float_ptr(packed, dtype_tag)
    w_hh_ptr, w_ih_ptr = as_float_ptr(w_hh, dtype_tag), as_float_ptr(w_ih, dtype_tag)
    hidden_dim = ndim * units if w_hh else 0
    for direction in range(dirs):
        for first in range(0, hidden_dim + channels, panel):
            for k in range(gate_dim):
                j = 0
                while j < panel:  # runs of columns that are contiguous in the weights, too
                    column, to = first + j, ptr_add(target, j)
                    count = panel - j
                    if column < hidden_dim:
                        d, unit = divmod(column, units)
                        count = min(count, units - unit)
                        row = (direction * ndim + d) * gate_dim + k
                        copy(to, ptr_add(w_hh_ptr, row * units + unit), count)
                    elif column < hidden_dim + channels:
                        channel = column - hidden_dim
                        count = min(count, channels - channel)
                        row = direction * gate_dim + k
                        copy(to, ptr_add(w_ih_ptr, row * channels + channel), count)
                    else:
                        clear(to, count)
                    j += count
                target = ptr_add(target, panel)
