"""The weights of a sweep, packed in panels of columns as `mdlstm_tk.backends.cpu.matmul` reads them.

Notation as in `mdlstm_tk.backends.cpu.kernels`: w_cat is (U_1 | … | U_D | W | b)ᵀ, (K, G·n).
"""

from __future__ import annotations

from typing import Any

from mdlstm_tk.backends.cpu.intrinsics import clear, copy, float_ptr, ptr_add
from mdlstm_tk.backends.cpu.records import load_sizes

ZERO: Any = None  # 0 in the dtype; each compiled version has its own value
RUN = 16  # numbers that are read one after another: a cache line of float32


def pack(packed, weight_hh, weight_ih, bias, sizes_address):  # type: ignore[no-untyped-def]
    """Write w_cat in panels, (dirs, panels, K, NR). The arguments are addresses; `bias` may be 0."""
    sizes = load_sizes(sizes_address)
    panel, gate_dim, channels = sizes.panel, sizes.gate_dim, sizes.channels
    units = sizes.units
    target, b = float_ptr(packed, ZERO), float_ptr(bias, ZERO)
    # The weights of h along each axis, then those of x, are rows for the columns of w_cat.
    parts = sizes.ndim + 1 if sizes.recurrent else 1
    for direction in range(sizes.dirs):
        for first in range(0, gate_dim, panel):
            count = min(panel, gate_dim - first)
            if count < panel:
                clear(target, sizes.depth * panel)
            for part in range(parts):
                if part < parts - 1:
                    length, row = units, (direction * sizes.ndim + part) * gate_dim + first
                    source = ptr_add(float_ptr(weight_hh, ZERO), row * length)
                else:
                    length, row = channels, direction * gate_dim + first
                    source = ptr_add(float_ptr(weight_ih, ZERO), row * length)
                for begin in range(0, length, RUN):
                    for j in range(count):
                        for k in range(begin, min(begin + RUN, length)):
                            target[k * panel + j] = source[j * length + k]
                target = ptr_add(target, length * panel)
            for j in range(count):
                target[j] = b[direction * gate_dim + first + j] if bias else ZERO
            target = ptr_add(target, panel)


def pack_transposed(packed, weight_hh, weight_ih, bias, sizes_address):  # type: ignore[no-untyped-def]
    """Write the first `Sizes.columns` columns of w_catᵀ, which leave out b, (dirs, panels, G·n, NR)."""
    sizes = load_sizes(sizes_address)
    panel, gate_dim, channels = sizes.panel, sizes.gate_dim, sizes.channels
    hidden_dim, units = sizes.hidden_dim, sizes.units
    target, w_hh, w_ih = float_ptr(packed, ZERO), float_ptr(weight_hh, ZERO), float_ptr(weight_ih, ZERO)
    for direction in range(sizes.dirs):
        for first in range(0, sizes.columns, panel):
            for k in range(gate_dim):
                j = 0
                while j < panel:  # runs of columns that are contiguous in the weights, too
                    column, to = first + j, ptr_add(target, j)
                    count = panel - j
                    if column < hidden_dim:
                        d, unit = divmod(column, units)
                        count = min(count, units - unit)
                        row = (direction * sizes.ndim + d) * gate_dim + k
                        copy(to, ptr_add(w_hh, row * units + unit), count)
                    elif column < sizes.columns:
                        count = min(count, sizes.columns - column)
                        row = direction * gate_dim + k
                        copy(to, ptr_add(w_ih, row * channels + column - hidden_dim), count)
                    else:
                        clear(to, count)
                    j += count
                target = ptr_add(target, panel)
