"""From a cell to kernels: the graph of one step, and that of its gradient.

The slots of a kernel are the arrays it reads and writes at one position, rows of n numbers each:

    a            pre-activations, G rows
    c_prev       cell states one step back along each axis, D rows
    gates        what forward keeps for backward: the activated gates, with layer norm the pre-activations
    h, c         new states
    peephole, norm_weight, norm_bias   see `CellParameters`
    dh           gradient of h from the layer's output
    dh_next, dc_next   gradients of h and c from the successor along each axis, D rows
    da, dc_prev, dpeephole, …          gradients of a, c_prev, …
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mdlstm_tk.cells.autodiff import SimplifiedGraph, differentiate
from mdlstm_tk.cells.cell import Cell, total
from mdlstm_tk.cells.ir import Kernel, Store, Value, loads
from mdlstm_tk.cells.step import PARAMETER_NAMES, CellParameters, Step, cell_step, parameter_rows

Pass = Literal["forward", "backward", "recompute"]

FORWARD_READS = ("a", "c_prev", *PARAMETER_NAMES)
FORWARD_WRITES = ("h", "c", "gates")
BACKWARD_READS = ("gates", "c_prev", "c", "dh", "dh_next", "dc_next", *PARAMETER_NAMES)
BACKWARD_WRITES = ("da", "dc_prev", *(f"d{name}" for name in PARAMETER_NAMES))


def lower(pass_kind: Pass, cell: Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """The kernel of one position.

    Args:
        pass_kind: "forward"; "backward" from what forward keeps; or "recompute", which is "backward" where
            the slot `gates` holds pre-activations.
        cell: the cell.
        ndim: D.
        peephole, layer_norm: whether the cell has them.
    """
    rows = parameter_rows(ndim, len(cell.gates(ndim)))
    enabled = {"peephole": peephole, "norm_weight": layer_norm, "norm_bias": layer_norm}
    parameters = CellParameters(
        **{name: loads(name, rows[name]) for name in PARAMETER_NAMES if enabled[name]}
    )
    c_prev = loads("c_prev", ndim)
    a = loads("a" if pass_kind == "forward" else "gates", len(cell.gates(ndim)))
    step = cell_step(cell, a, c_prev, parameters)
    if pass_kind == "forward":
        return _forward(step, a if layer_norm else step.gates)
    activated = pass_kind == "backward" and not layer_norm
    return _backward(step, a, c_prev, parameters, activated)


def _forward(step: Step, kept: Sequence[Value]) -> Kernel:
    simplify = SimplifiedGraph().simplify
    stores = [Store("h", 0, simplify(step.h)), Store("c", 0, simplify(step.c))]
    return Kernel([*stores, *_stores("gates", [simplify(value) for value in kept])])


def _backward(
    step: Step, a: Sequence[Value], c_prev: Sequence[Value], parameters: CellParameters, activated: bool
) -> Kernel:
    ndim = len(c_prev)
    known = [(step.c, Value.load("c", 0))]
    if activated:
        known += zip(step.gates, loads("gates", len(a)), strict=True)
    dh = total([Value.load("dh", 0), *loads("dh_next", ndim)])
    dc = total(loads("dc_next", ndim))
    names = [name for name in PARAMETER_NAMES if getattr(parameters, name) is not None]
    inputs = [*a, *c_prev, *(row for name in names for row in getattr(parameters, name))]
    gradients = iter(differentiate([(step.h, dh), (step.c, dc)], inputs, known))
    stores = _stores("da", [next(gradients) for _ in a])
    stores += _stores("dc_prev", [next(gradients) for _ in c_prev])
    for name in names:
        stores += _stores(f"d{name}", [next(gradients) for _ in getattr(parameters, name)], add=True)
    return Kernel(stores)


def _stores(slot: str, values: Sequence[Value | None], add: bool = False) -> list[Store]:
    zero = Value.wrap(0.0)
    return [Store(slot, row, zero if value is None else value, add) for row, value in enumerate(values)]
