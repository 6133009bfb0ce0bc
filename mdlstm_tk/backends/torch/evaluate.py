"""A recorded graph (`mdlstm_tk.cells.graph`), evaluated on torch tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mdlstm_tk.cells.graph import OPERATIONS, Kernel, Value

Slots = Mapping[str, Sequence[Tensor]]
# Operators that accept a Python number beside a tensor; the rest are tensor methods. Two numbers become
# tensors, since Python has no 1 / 0.
ARITHMETIC = ("add", "subtract", "multiply", "divide")


def evaluate(kernel: Kernel, slots: Slots, like: Tensor) -> list[Tensor]:
    """Compute the values of all stores, in their order; each result has the shape of `like`.

    Args:
        kernel: the graph.
        slots: the rows (…, n) of each array that is loaded.
        like: a tensor with the dtype, device and shape of the results.
    """
    results: dict[Value, Any] = {}
    for value in kernel.values:
        args = [results[arg] for arg in value.args]
        if value.op == "load":
            result: Any = slots[value.slot][value.row]
        elif value.op == "constant":
            result = value.number
        elif value.op == "mean":
            result = _tensor(args[0], like).mean(dim=-1, keepdim=True)
        elif value.op in ARITHMETIC and any(isinstance(arg, Tensor) for arg in args):
            result = OPERATIONS[value.op].compute(*args)
        else:
            result = OPERATIONS[value.op].compute(*(_tensor(arg, like) for arg in args))
        results[value] = result
    return [_tensor(results[store.value], like).expand_as(like) for store in kernel.stores]


def _tensor(value: Any, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else like.new_full((), value)
