"""Where the time of a sweep on the CPU goes: the whole layer against kernels that lack one part.

    python benchmarks/parts.py                     # takes half a minute on an otherwise idle machine

The share of a part is the time that the layer saves without it. The rest is gathering operands, memory and
Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest import mock

from numba import cfunc, types
from numba.extending import intrinsic

from mdlstm_tk._util.caches import BoundedCache
from mdlstm_tk.backends.cpu import backward_kernel, kernels, launch, plan
from mdlstm_tk.backends.cpu import compile as cpu_compile
from mdlstm_tk.backends.cpu.jit import OPTIONS, jit
from mdlstm_tk.backends.tables import SweepRows
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
def _no_cell(_: Any, units: Any, scratch: Any, slots: Any) -> Any:
    return types.void(units, scratch, slots), lambda context, *_: context.get_dummy_value()


# The parts, and what replaces each where.
REPLACED: dict[str, list[tuple[Any, str, Any]]] = {
    "products": [(kernels, "matmul", _no_product), (backward_kernel, "matmul", _no_product)],
    "cell": [(cpu_compile, "cell_function", lambda *_: _no_cell)],
}


@contextmanager
def replaced(part: str) -> Iterator[None]:
    """Compile kernels that lack a part, and do not cache them on disk."""
    with ExitStack() as stack:
        for module, name, value in REPLACED[part]:
            stack.enter_context(mock.patch.object(module, name, value))
        uncached = lambda function, _: cfunc("void(int64)", **OPTIONS)(function)  # noqa: E731
        stack.enter_context(mock.patch.object(cpu_compile, "cfunc_cached", uncached))
        stack.enter_context(mock.patch.object(plan, "get_kernel", cpu_compile.get_kernel.__wrapped__))
        yield


def without(part: str, step: Step) -> Step:
    """The step with kernels that lack a part."""

    plans: BoundedCache[plan.PlanKey, plan.Plan] = BoundedCache(plan.plans.max_bytes)

    def make_plan(key: plan.PlanKey, rows: SweepRows) -> plan.Plan:
        with replaced(part):
            return plan.make_plan(key, rows)

    def lacking() -> None:
        whole = launch.plans, launch.make_plan
        launch.plans, launch.make_plan = plans, make_plan
        try:
            step()
        finally:
            launch.plans, launch.make_plan = whole

    return lacking


def measure(shape: Shape, training: bool, seconds: float = 2.0) -> list[str]:
    """Measure one row of the table, on one thread."""
    layer = contenders(shape, training)[0]["layer"]
    steps = {"layer": layer, **{part: without(part, layer) for part in REPLACED}}
    with torch_threads(1):
        times = {name: median(series) for name, series in interleave(steps, seconds).items()}
    shares = [1 - times[part] / times["layer"] for part in REPLACED]
    percent = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
    return [str(shape), "training" if training else "forward", f"{times['layer'] * 1e3:.2f}", *percent]


def table() -> list[list[str]]:
    return [measure(shape, training) for shape in SHAPES for training in (False, True)]


if __name__ == "__main__":
    for row in (COLUMNS, *table()):
        print("  ".join(text.rjust(10) if column else text.ljust(36) for column, text in enumerate(row)))
