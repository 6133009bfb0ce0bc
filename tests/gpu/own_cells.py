"""Cells with what no cell of the package has."""

from __future__ import annotations

from typing import Any

from mdlstm_tk import Gate, register_cell
from mdlstm_tk.cells.ir import record
from mdlstm_tk.cells.operations import OPERATIONS

NAMES = ("two-states", "gated", "not-recurrent", "equations-read-h", "all-operations")


def register() -> None:
    """Define the cells."""

    def mean(values: Any) -> Any:
        return sum(values) * (1 / len(values))

    @register_cell(
        "two-states", gates=[Gate("f"), Gate("a", None), Gate("z", "tanh"), Gate("o")], states=("c", "k")
    )
    def two_states(gates: Any, states: Any, output_activation: Any) -> Any:
        f, a, z, o = gates
        c = f * mean(states["c"]) + (1.0 - f) * z
        k = 0.5 * mean(states["k"]) + a.softplus() / (1.0 + f.exp())
        return o * output_activation(c + k.maximum(z)), {"c": c, "k": k}

    @register_cell("gated", gates=[Gate("z"), Gate("r"), Gate("n", None)], states=())
    def gated(gates: Any, states: Any) -> Any:
        """A kind of GRU (Cho et al. 2014): its state is h alone."""
        z, r, n = gates
        h = mean(states["h"])
        return z * h + (1.0 - z) * (n + r * h).tanh(), {}

    @register_cell("not-recurrent", gates=[Gate("f"), Gate("g", "tanh"), Gate("o")], recurrent=False)
    def not_recurrent(gates: Any, states: Any, output_activation: Any) -> Any:
        f, g, o = gates
        c = f * mean(states["c"]) + (1.0 - f) * g
        return o * output_activation(c), {"c": c}

    @register_cell(
        "equations-read-h", gates=[Gate("f"), Gate("g", "tanh")], states=("u", "v", "w"), recurrent=False
    )
    def equations_read_h(gates: Any, states: Any) -> Any:
        """More states than gates, and functions of numbers, one of which is a state."""
        f, g = gates
        h, u, one = mean(states["h"]), mean(states["u"]), g * 0.0 + 1.0
        g = g.minimum(float("inf"))
        return f * h + (1.0 - f) * g + u, {"u": 0.5 * g, "v": one.exp(), "w": states["v"][0] * h}

    @register_cell(
        "all-operations",
        gates=[Gate("a", None), Gate("b", None)],
        states=tuple(OPERATIONS),
        recurrent=False,
    )
    def all_operations(gates: Any, states: Any) -> Any:
        a, b = gates
        positive = abs(b) + 0.5
        arguments: dict[str, Any] = dict.fromkeys(OPERATIONS, (a,))
        arguments |= dict.fromkeys(("add", "subtract", "multiply", "maximum", "minimum"), (a, b))
        arguments |= {"divide": (a, positive), "log": (positive,), "sqrt": (positive,)}
        return a * b, {op: record(op, *arguments[op]) for op in OPERATIONS}
