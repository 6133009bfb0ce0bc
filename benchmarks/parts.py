"""Where a sweep's time goes on the CPU: the layer beside itself without products, and without cells.

    python benchmarks/parts.py                     # half a minute; leave the machine alone meanwhile

A part takes what the layer is faster by without it. The rest is gathering operands, memory and Python.
"""

from __future__ import annotations

from functools import cache, partial
from statistics import median
from typing import Any
from unittest import mock

from numba import cfunc, types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import compile as compiled
from mdlstm_tk.backends.cpu import kernels as numba_kernels
from mdlstm_tk.backends.cpu import launch as fused_cpu
from mdlstm_tk.backends.cpu.jit import OPTIONS, jit
from mdlstm_tk.benchmark.layer import Run, Shape, contenders, interleave, torch_threads

SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(16, (32, 32), 1, 64, (("directions", "all"),)),
    Shape(1, (128, 128), 1, 32),
)
COLUMNS = ("N, grid, C, n", "pass", "ms", "products", "cells", "rest")


@jit
def _no_product(*_):  # type: ignore[no-untyped-def]
    return


@intrinsic  # type: ignore[untyped-decorator]
def _no_cell(_: Any, units: Any, scratch: Any, bases: Any) -> Any:
    return types.void(units, scratch, bases), lambda context, *_: context.get_dummy_value()


LACKING = {
    "products": partial(mock.patch.object, numba_kernels, "_product", _no_product),
    "cells": partial(mock.patch.object, compiled, "row_kernel", lambda *_: _no_cell),
}


def without(part: str, run: Run) -> Run:
    """`run` with kernels that lack a part and are kept nowhere."""
    not_kept = mock.patch.object(compiled, "kept_entry", cfunc("void(int64)", **OPTIONS))

    @cache
    def kernel(*key: Any) -> Any:
        with LACKING[part](), not_kept:
            return compiled.compiled.__wrapped__(*key)

    def lacking() -> None:
        whole = fused_cpu.compiled
        fused_cpu.compiled = kernel
        try:
            run()
        finally:
            fused_cpu.compiled = whole

    return lacking


def measure(shape: Shape, training: bool, seconds: float = 2.0) -> list[str]:
    """A row of the table, on one thread."""
    layer = contenders(shape, training)[0]["layer"]
    runs = {"layer": layer, **{part: without(part, layer) for part in LACKING}}
    with torch_threads(1):
        times = {name: median(series) for name, series in interleave(runs, seconds).items()}
    shares = [1 - times[part] / times["layer"] for part in LACKING]
    percent = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
    return [str(shape), "training" if training else "forward", f"{times['layer'] * 1e3:.2f}", *percent]


def table() -> list[list[str]]:
    return [measure(shape, training) for shape in SHAPES for training in (False, True)]


if __name__ == "__main__":
    for row in (COLUMNS, *table()):
        print("  ".join(text.rjust(10) if place else text.ljust(36) for place, text in enumerate(row)))
