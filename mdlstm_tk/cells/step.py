"""One step of a cell as a recorded graph: peepholes, layer norm and activations around its equations.

Every backend and the ONNX export evaluate this graph, or the kernels that `passes` derives from it.

Notation
    D, G, S, n   axes, gates, states beside h, hidden units
    a            pre-activations W x + Σ_d U_d h_d + b, G rows of n numbers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from mdlstm_tk.cells.cell import Cell
from mdlstm_tk.cells.ir import Value, loads, unit_mean

LAYER_NORM_EPS = 1e-5

CELL_PARAMETERS: dict[str, Callable[[Cell, int], int]] = {
    "peephole": lambda cell, ndim: 2 * ndim + 1,
    "norm_weight": lambda cell, ndim: cell.norm_rows(ndim),
    "norm_bias": lambda cell, ndim: cell.norm_rows(ndim),
}
"""The parameters of a cell beside its weights and bias, and the number of rows of each, (rows, n).

peephole      weights from c_d to the input gate (D rows), from c_d to forget gate d (D rows), and from the
              new c to the output gate
norm_weight   scale of each gate, then of the value before the output activation
norm_bias     shift, in the same order
"""

Normalize = Callable[[Value, Value, Value], Value]  # of a value, its scale and its shift


@dataclass(frozen=True)
class Step:
    """A recorded step.

    Attributes:
        h: the new hidden state.
        states: the new states, in the cell's order.
        gates: the G activated gates.
        a: the G pre-activations, loads of the slot "a".
        previous: by name, "h" among them, the D states one step back along each axis: loads of the slots
            "h_prev", row d, and "state_prev", row d·S + s.
        parameters: the rows of each parameter that is there, loads of slot "parameter".
    """

    h: Value
    states: tuple[Value, ...]
    gates: tuple[Value, ...]
    a: tuple[Value, ...]
    previous: Mapping[str, Sequence[Value]]
    parameters: Mapping[str, Sequence[Value]]


def layer_norm(value: Value, weight: Value, bias: Value) -> Value:
    """Layer norm over the units, with the biased variance."""
    centered = value - unit_mean(value)
    variance = unit_mean(centered * centered)
    rstd = 1.0 / (variance + LAYER_NORM_EPS).sqrt()
    return centered * rstd * weight + bias


@cache
def recorded_step(cell: Cell, ndim: int, present: tuple[str, ...]) -> Step:
    """The step of a cell as all backends and all passes compute it. It is recorded once, since what
    equations read from outside may change between a forward and a backward pass."""
    return record_step(cell, ndim, present)


def record_step(cell: Cell, ndim: int, present: Sequence[str], normalize: Normalize = layer_norm) -> Step:
    """Record the step of a cell.

    Args:
        cell: the cell.
        ndim: D.
        present: the names in `CELL_PARAMETERS` of the parameters that are there.
        normalize: how layer norm is recorded.
    """
    definitions = cell.gates(ndim)
    a = tuple(loads("a", len(definitions)))
    previous = {"h": loads("h_prev", ndim)}
    for s, name in enumerate(cell.states):
        previous[name] = [Value.load("state_prev", d * len(cell.states) + s) for d in range(ndim)]
    parameters: dict[str, list[Value]] = {}
    first = 0
    for name, count_rows in CELL_PARAMETERS.items():
        if name in present:
            end = first + count_rows(cell, ndim)
            parameters[name] = [Value.load("parameter", row) for row in range(first, end)]
            first = end

    def normalized(value: Value, row: int) -> Value:
        if "norm_weight" not in parameters:
            return value
        return normalize(value, parameters["norm_weight"][row], parameters["norm_bias"][row])

    def activate(value: Value, k: int) -> Value:
        value = normalized(value, k)
        activation = definitions[k].activation
        return value if activation is None else getattr(value, activation)()

    peephole = parameters.get("peephole")
    pre_activations = list(a)
    output = None  # the output gate, if it sees the new c: the equations activate it
    if peephole is not None:
        ((i,), forget, (output,)) = (cell.gate_index(role, ndim) for role in ("input", "forget", "output"))
        for d, c_d in enumerate(previous["c"]):
            pre_activations[i] = pre_activations[i] + peephole[d] * c_d
            pre_activations[forget[d]] = pre_activations[forget[d]] + peephole[ndim + d] * c_d
    gates = [value if k == output else activate(value, k) for k, value in enumerate(pre_activations)]

    def output_activation(value: Value) -> Value:
        return normalized(value, len(definitions)).tanh()

    def output_gate(gate: Value, c: Value) -> Value:
        if peephole is None or output is None:
            return gate
        gates[output] = activate(gate + peephole[2 * ndim] * c, output)
        return gates[output]

    copies = {name: list(rows) for name, rows in previous.items()}  # which equations may change
    h, states = cell.equations(list(gates), copies, *(output_activation, output_gate)[: cell.functions])
    return Step(h, tuple(states[name] for name in cell.states), tuple(gates), a, previous, parameters)
