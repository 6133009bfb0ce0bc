"""The gradient of a cell in torch: its derived graph (`mdlstm_tk.cells.lowering`), evaluated on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import add, mul, sub
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlstm_tk.cells.cell import Cell
from mdlstm_tk.cells.ir import Kernel, Value
from mdlstm_tk.cells.lowering import lower
from mdlstm_tk.cells.step import PARAMETER_NAMES, CellParameters

OPERATIONS: dict[str, Any] = {
    "add": add,
    "subtract": sub,
    "multiply": mul,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "rsqrt": lambda x: x.rsqrt() if isinstance(x, Tensor) else x**-0.5,
    "mean": lambda x: x.mean(dim=-1, keepdim=True),
}


class CellGradient(NamedTuple):
    """The gradients of one step, rows (dirs, K·N, n).

    Attributes:
        a: of the G pre-activations.
        c_prev: of the D cell states one step back along each axis.
        parameters: of the rows of the parameters, not yet summed over positions and samples.
    """

    a: Sequence[Tensor]
    c_prev: Sequence[Tensor]
    parameters: CellParameters


def cell_gradient(
    cell: Cell,
    a: Sequence[Tensor],
    c_prev: Sequence[Tensor],
    c: Tensor,
    dh: Tensor,
    dc: Tensor,
    parameters: CellParameters,
) -> CellGradient:
    """The gradient of `cell_step`.

    Args:
        cell: the cell.
        a: G pre-activations (dirs, K·N, n).
        c_prev: D cell states (dirs, K·N, n).
        c: the new cell state.
        dh, dc: the gradients of the new h and c.
        parameters: their rows (dirs, 1, n).
    """
    ndim = len(c_prev)
    zero = torch.zeros((), dtype=dh.dtype, device=dh.device)
    slots: dict[str, Sequence[Tensor]] = {
        "gates": a, "c_prev": c_prev, "c": [c], "dh": [dh],
        "dh_next": [zero] * ndim, "dc_next": [dc, *[zero] * (ndim - 1)],
    }  # fmt: skip
    slots |= {
        name: rows for name, rows in zip(PARAMETER_NAMES, parameters, strict=True) if rows is not None
    }
    kernel = _kernel(cell, ndim, parameters.peephole is not None, parameters.norm_weight is not None)
    results: dict[str, list[Tensor]] = {}
    for store, value in zip(kernel.stores, _evaluate(kernel, slots), strict=True):
        results.setdefault(store.slot, []).append(value.expand_as(dh))
    of_parameters = CellParameters(*(results.get(f"d{name}") for name in PARAMETER_NAMES))
    return CellGradient(results["da"], results["dc_prev"], of_parameters)


@cache
def _kernel(cell: Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    return lower("recompute", cell, ndim, peephole, layer_norm)


def _evaluate(kernel: Kernel, slots: dict[str, Sequence[Tensor]]) -> list[Tensor]:
    """The value of each of the kernel's stores."""
    results: dict[int, Any] = {}

    def compute(value: Value) -> Any:
        if value.op == "load":
            return slots[value.slot][value.row]
        if value.op == "constant":
            return value.number
        return OPERATIONS[value.op](*(results[id(arg)] for arg in value.args))

    for value in kernel.values:
        results[id(value)] = compute(value)
    like = slots["dh"][0]
    tensors = (results[id(store.value)] for store in kernel.stores)
    return [value if isinstance(value, Tensor) else like.new_tensor(value) for value in tensors]
