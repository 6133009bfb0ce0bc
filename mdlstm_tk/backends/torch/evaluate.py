"""A recorded graph (`mdlstm_tk.cells.ir`), evaluated on torch tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mdlstm_tk.cells.ir import Value, topological_order
from mdlstm_tk.cells.operations import OPERATIONS

Slots = Mapping[str, Sequence[Tensor]]
# Operators that accept Python numbers; the rest are tensor methods.
ARITHMETIC = ("add", "subtract", "multiply", "divide")


def evaluate(roots: Sequence[Value], slots: Slots, like: Tensor) -> list[Tensor]:
    """Compute `roots`; each result has the shape of `like`.

    Args:
        roots: the values to compute.
        slots: the rows (…, n) of each array that is loaded.
        like: a tensor with the dtype, device and shape of the results.
    """
    results: dict[int, Any] = {}
    for value in topological_order(roots):
        args = [results[id(arg)] for arg in value.args]
        if value.op == "load":
            result: Any = slots[value.slot][value.row]
        elif value.op == "constant":
            result = value.number
        elif value.op == "mean":
            result = _tensor(args[0], like).mean(dim=-1, keepdim=True)
        elif value.op in ARITHMETIC:
            result = OPERATIONS[value.op].compute(*args)
        else:
            result = OPERATIONS[value.op].compute(*(_tensor(arg, like) for arg in args))
        results[id(value)] = result
    return [_tensor(results[id(root)], like).expand_as(like) for root in roots]


def _tensor(value: Any, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else like.new_full((), value)
