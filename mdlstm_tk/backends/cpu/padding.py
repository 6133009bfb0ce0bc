"""The padded positions of a ragged batch: no row is computed for them, so their h must be cleared."""

from __future__ import annotations

from mdlstm_tk.backends.cpu.intrinsics import clear, ptr_add
from mdlstm_tk.backends.cpu.jit import jit


@jit
def clear_padding(output, sizes, extents, samples, ndim, width, thread, threads):  # type: ignore[no-untyped-def]
    """Set this thread's share of the padding to 0.

    Args:
        output: pointer to (N, *grid, width).
        sizes: pointer to (N, D) int64, the valid extents of each sample.
        extents: pointer to (D,) int64, those of the grid.
        samples, ndim: N, D.
        width: numbers at each position.
        thread, threads: this thread, and how many share the work.
    """
    length, lines = extents[ndim - 1], 1  # lines along the last axis, of a sample
    for d in range(ndim - 1):
        lines *= extents[d]
    for line in range(thread, samples * lines, threads):
        sample, rest = divmod(line, lines)
        limits = ptr_add(sizes, sample * ndim)
        valid = min(max(limits[ndim - 1], 0), length)
        for d in range(ndim - 2, -1, -1):
            rest, place = divmod(rest, extents[d])
            if place >= limits[d]:
                valid = 0
        clear(ptr_add(output, (line * length + valid) * width), (length - valid) * width)
