"""Where the time of a sweep on the CPU goes: the whole layer against kernels that lack one part.

    python benchmarks/parts.py                     # takes half a minute on an otherwise idle machine

The share of a part is the time that the layer saves without it. The rest is gathering operands, memory and
Python.
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
from mdlstm_tk.benchmark import Shape, contenders, interleave, torch_threads
from mdlstm_tk.benchmark.contenders import Step

SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(16, (32, 32), 1, 64, (("directions", "all"),)),
    Shape(1, (128, 128), 1, 32),
)
COLUMNS = ("N, grid, C, n", "pass", "ms", "products", "cell", "rest")


@jit
def _no_product(*_):  # type: ignore[no-untyped-def]
    return


@intrinsic  # type: ignore[untyped-decorator]
def _no_cell(_: Any, units: Any, scratch: Any, bases: Any) -> Any:
    return types.void(units, scratch, bases), lambda context, *_: context.get_dummy_value()


LACKING = {
    "products": partial(mock.patch.object, numba_kernels, "_product", _no_product),
    "cell": partial(mock.patch.object, compiled, "row_kernel", lambda *_: _no_cell),
}


def without(part: str, step: Step) -> Step:
    """The step with kernels that lack a part and are not cached on disk."""
    not_kept = mock.patch.object(compiled, "kept_entry", cfunc("void(int64)", **OPTIONS))

    @cache
    def kernel(*key: Any) -> Any:
        with LACKING[part](), not_kept:
            return compiled.compiled.__wrapped__(*key)

    def lacking() -> None:
        whole = fused_cpu.compiled
        fused_cpu.compiled = kernel
        try:
            step()
        finally:
            fused_cpu.compiled = whole

    return lacking


def measure(shape: Shape, training: bool, seconds: float = 2.0) -> list[str]:
    """Measure one row of the table, on one thread."""
    layer = contenders(shape, training)[0]["layer"]
    steps = {"layer": layer, **{part: without(part, layer) for part in LACKING}}
    with torch_threads(1):
        times = {name: median(series) for name, series in interleave(steps, seconds).items()}
    shares = [1 - times[part] / times["layer"] for part in LACKING]
    percent = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
    return [str(shape), "training" if training else "forward", f"{times['layer'] * 1e3:.2f}", *percent]


def table() -> list[list[str]]:
    return [measure(shape, training) for shape in SHAPES for training in (False, True)]


if __name__ == "__main__":
    for row in (COLUMNS, *table()):
        print("  ".join(text.rjust(10) if column else text.ljust(36) for column, text in enumerate(row)))
