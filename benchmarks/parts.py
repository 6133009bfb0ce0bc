"""Where the time of a sweep on the CPU goes: the whole layer against sweeps that lack one part.

    python benchmarks/parts.py                     # takes half a minute on an otherwise idle machine

The share of a part is the time that the layer saves without it. The rest is gathering operands, memory and
Python.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from contenders import Shape, Step, interleave, make_layer, make_step, torch_threads
from measuring import markdown
from numba import cfunc

from mdlstm_tk.backends.cpu.plan import plans

SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(16, (32, 32), 1, 64, (("directions", "all"),)),
    Shape(1, (128, 128), 1, 32),
)
COLUMNS = ("N, grid, C, n", "pass", "ms", "products", "cell", "rest")


@cfunc(f"void({', '.join(['int64'] * 12)})")
def _no_product(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate):  # type: ignore[no-untyped-def]
    return


@cfunc("void(int64, int64, int64, int64)")
def _no_cell(rows, units, spill, table):  # type: ignore[no-untyped-def]
    return


REPLACED: dict[str, dict[str, Any]] = {
    "products": {"matmul": _no_product.address},
    "cell": {"cell": _no_cell.address},
}


def without(part: str, step: Step) -> Step:
    """The step with kernels that call a function that does nothing in place of a part."""

    def run() -> None:
        whole = dict(plans)
        plans.update({key: plan._replace(**REPLACED[part]) for key, plan in whole.items()})
        try:
            step()
        finally:
            plans.update(whole)

    step()  # makes the plans
    return run


def measure(shape: Shape, training: bool, seconds: float = 2.0) -> list[str]:
    """One row of the table, measured on one thread."""
    layer = make_step(*make_layer(shape), training)
    steps = {"layer": layer, **{part: without(part, layer) for part in REPLACED}}
    with torch_threads(1):
        times = {name: median(series) for name, series in interleave(steps, seconds).items()}
    shares = [1 - times[part] / times["layer"] for part in REPLACED]
    percent = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
    return [str(shape), "training" if training else "forward", f"{times['layer'] * 1e3:.2f}", *percent]


def table() -> list[list[str]]:
    return [measure(shape, training) for shape in SHAPES for training in (False, True)]


if __name__ == "__main__":
    print(markdown(COLUMNS, table(), 1))
