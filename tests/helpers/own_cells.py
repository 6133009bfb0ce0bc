"""Cells of users: those of examples/own_cell.py, and some with what no cell of the package has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mdlstm_tk import Gate, register_cell
from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.cells.ir import record
from mdlstm_tk.cells.operations import OPERATIONS

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_cell.py"
OWN_CELLS = ("coupled", "input-gated", "gru", "fast-and-slow", "h-is-c", "all-operations")


def arguments(op: str, *values: Any) -> tuple[Any, ...]:
    """As many of the values as the operation takes."""
    return values[: OPERATIONS[op].gradient.__code__.co_argcount - 2]


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
        slow = 0.9 * mean(states["slow"]) + 0.1 * fast + 0.01 * u.softplus()
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
        results = {op: record(op, *arguments(op, a, b)) for op in OPERATIONS}
        for op in OPERATIONS:
            results[op] = 0.5 * (results[op] + record(op, *arguments(op, 0.5, 2.0)) + mean(states[op]))
        return a * b - mean(states["h"]), {**results, "constant": record("exp", 0.5)}
