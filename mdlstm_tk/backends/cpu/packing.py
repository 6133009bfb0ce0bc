"""The weights of a sweep, packed in panels of columns as `intrinsics.matmul` reads them.

The functions are templates: `mdlstm_tk.backends.cpu.compile` makes one of each for every dtype.
"""

from __future__ import annotations

from mdlstm_tk.backends.cpu.intrinsics import as_floats, moved


def pack(zero, packed, weight_hh, weight_ih, bias, dirs, ndim, units, channels, width, panel):  # type: ignore[no-untyped-def]
    """V in panels, (dirs, panels, K, panel): what `matmul` multiplies the operand by.

    weight_hh (dirs, D, G·n, n), weight_ih (dirs, G·n, C) and bias (dirs, G·n), or 0 for none.
    """
    target, of_h, of_x = as_floats(packed, zero), as_floats(weight_hh, zero), as_floats(weight_ih, zero)
    of_one = as_floats(bias, zero)
    depth = ndim * units + channels + 1
    for way in range(dirs):
        for first in range(0, width, panel):
            for j in range(panel):
                column = first + j
                if column >= width:
                    for k in range(depth):
                        target[k * panel + j] = 0
                    continue
                for d in range(ndim):
                    source = moved(of_h, ((way * ndim + d) * width + column) * units)
                    for k in range(units):
                        target[(d * units + k) * panel + j] = source[k]
                below = moved(target, ndim * units * panel + j)
                for k in range(channels):
                    below[k * panel] = of_x[(way * width + column) * channels + k]
                below[channels * panel] = of_one[way * width + column] if bias else zero
            target = moved(target, depth * panel)


def pack_transposed(zero, packed, weight_hh, weight_ih, dirs, ndim, units, channels, width, panel):  # type: ignore[no-untyped-def]
    """Vᵀ without b in panels, (dirs, panels, G·n, panel); without W too if `channels` is 0."""
    target, of_h, of_x = as_floats(packed, zero), as_floats(weight_hh, zero), as_floats(weight_ih, zero)
    for way in range(dirs):
        for first in range(0, ndim * units + channels, panel):
            for k in range(width):
                for j in range(panel):
                    column = first + j
                    d = column // units
                    if d < ndim:
                        target[j] = of_h[((way * ndim + d) * width + k) * units + column - d * units]
                    elif column < ndim * units + channels:
                        target[j] = of_x[(way * width + k) * channels + column - ndim * units]
                    else:
                        target[j] = 0
                target = moved(target, panel)
