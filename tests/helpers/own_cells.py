"""Cells of users: those of examples/own_cell.py, and some with what no cell of the package has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk import MDLSTM, Gate, register_cell
from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.cells.graph import OPERATIONS

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_cell.py"
OWN_CELLS = ("coupled", "input-gated", "gru", "fast-and-slow", "h-is-c", "all-operations")


def arguments(op: str, *values: Any) -> tuple[Any, ...]:
    """As many of the values as the operation takes."""
    return values[: OPERATIONS[op].arity]


def operation(op: str, *args: Any) -> Any:
    """An operation of the table: recorded, or of tensors by torch."""
    if not any(isinstance(arg, Tensor) for arg in args):
        return getattr(args[0], op)(*args[1:])
    tensors = [torch.as_tensor(arg, dtype=torch.float64) for arg in args]
    return torch.logaddexp(*tensors, torch.zeros(())) if op == "softplus" else getattr(torch, op)(*tensors)


def smooth(op: str, a: Any, b: Any) -> tuple[Any, ...]:
    """Arguments such that no derivative is infinite."""
    if op in ("log", "sqrt"):
        return (abs(a) + 0.5,)
    return arguments(op, a, abs(b) + 0.5 if op == "divide" else b)


def register_own_cells() -> None:
    import_file(EXAMPLE)

    def mean(values: Any) -> Any:
        return sum(values) * (1 / len(values))

    @register_cell("gru", gates=[Gate("update"), Gate("reset"), Gate("new", None)], states=())
    def gru(gates: Any, states: Any) -> Any:
        """No state but h, which the equations read."""
        update, reset, new = gates
        h = mean(states["h"])
        return h + update * ((new + reset * h).tanh() - h), {}

    @register_cell(
        "fast-and-slow",
        gates=[Gate("f", start=1.0), Gate("z", "tanh"), Gate("o"), Gate("u", None)],
        states=("fast", "slow"),
    )
    def fast_and_slow(gates: Any, states: Any, output_activation: Any) -> Any:
        """Two states, and gates of all activations."""
        f, z, o, u = gates
        fast = f * mean(states["fast"]) + z
        slow = 0.9 * mean(states["slow"]) + 0.1 * fast + 0.01 * operation("softplus", u)
        return o * output_activation(fast - slow), {"slow": slow, "fast": fast}

    @register_cell("h-is-c", gates=[Gate("f"), Gate("z", "tanh")])
    def h_is_c(gates: Any, states: Any) -> Any:
        """One value that is two results."""
        f, z = gates
        c = f * mean(states["c"]) + z
        return c, {"c": c}

    @register_cell(
        "all-operations",
        gates=[Gate("a", None), Gate("b", None)],
        states=(*OPERATIONS, "constant"),
        recurrent=False,
    )
    def all_operations(gates: Any, states: Any) -> Any:
        """Each operation, of numbers in the range of all of them, and one state that is a number."""
        a, b = gates[0].sigmoid() + 0.5, gates[1].tanh() + 1.5
        results = {op: operation(op, *arguments(op, a, b)) for op in OPERATIONS}
        for op in OPERATIONS:
            results[op] = 0.5 * (results[op] + operation(op, *arguments(op, a, 2.0)) + mean(states[op]))
        return a * b - mean(states["h"]), {**results, "constant": 1.5}

    def each_operation(choose: Any, gates: Any, states: Any) -> Any:
        return sum(gates), {op: operation(op, *choose(op, *gates)) for op in OPERATIONS}

    for name, choose in (("any-numbers", arguments), ("smooth-operations", smooth)):
        pair = [Gate("a", None), Gate("b", None)]
        define = register_cell(name, gates=pair, states=tuple(OPERATIONS), recurrent=False)
        define(partial(each_operation, choose))


def run_all_operations(cell: str, a: Tensor, b: Tensor, backend: str = "auto") -> dict[str, Tensor]:
    """The result of every operation: each number of a and b is a unit of its own."""
    layer = MDLSTM(
        1, len(a), ndim=1, cell=cell, bias=False, backend=backend, dtype=a.dtype, device=a.device
    )
    weights = {"weight_ih_l0": torch.cat([a, b])[None, :, None]}  # of an x that is 1
    options = {"return_state": True}
    _, (state,) = torch.func.functional_call(layer, weights, (a.new_ones(1, 1, 1),), options)
    return {op: getattr(state, op)[0].flatten() for op in OPERATIONS}
