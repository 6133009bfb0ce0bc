"""One step of a cell: peepholes, layer norm and activations around its equations.

Nothing here knows what it computes with. The functions take values that have `+ - *`, `tanh`, `sigmoid`,
`square`, `rsqrt` and `mean` over the last axis: torch tensors in the reference and torch backends, recorded
values in the compiled ones (`mdlstm_tk.cells.ir`).

Notation
    D, G, n   axes, gates, hidden units
    a         pre-activations W x + Σ_d U_d h_d + b, G values (…, n)
    c         cell states one step back along each axis, D values (…, n)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mdlstm_tk.cells.cell import LAYER_NORM_EPS, TANH_GATE, Cell, Value, Values


@dataclass
class CellParameters:
    """The parameters of a cell beside its weights and bias: tensors, or sequences of their rows (…, n).

    Attributes:
        peephole: (…, 2D + 1, n) weights from c_d to i (D rows), from c_d to f_d (D rows), and from c_new to
            o; or None.
        norm_weight: (…, G + 1, n) layer-norm scale of each gate, then of c_new; or None.
        norm_bias: (…, G + 1, n) layer-norm shift; or None.
    """

    peephole: Any = None
    norm_weight: Any = None
    norm_bias: Any = None

    def __iter__(self) -> Any:
        return iter((self.peephole, self.norm_weight, self.norm_bias))

    def map(self, function: Callable[[Any], Any]) -> CellParameters:
        """The same with `function` applied to each that is not None."""
        return CellParameters(*(None if value is None else function(value) for value in self))


PARAMETER_NAMES = ("peephole", "norm_weight", "norm_bias")


def parameter_rows(ndim: int, gates: int) -> dict[str, int]:
    """The number of rows of each of `CellParameters`."""
    return {"peephole": 2 * ndim + 1, "norm_weight": gates + 1, "norm_bias": gates + 1}


@dataclass(frozen=True)
class Step:
    """The results of `cell_step`, (…, n) each.

    Attributes:
        h, c: the new hidden state and cell state.
        gates: the G activated gates.
    """

    h: Value
    c: Value
    gates: Sequence[Value]


def cell_step(cell: Cell, a: Values, c: Values, parameters: CellParameters) -> Step:
    """Compute h and c from the pre-activations and the predecessors' cell states.

    Args:
        cell: the cell.
        a: G pre-activations (…, n).
        c: D cell states (…, n), one step back along each axis.
        parameters: peepholes and layer norm; their rows broadcast against a.
    """
    names, peephole = cell.gates(len(c)), parameters.peephole
    last = len(names) - 1
    a = list(a)
    if peephole is not None:
        for d, state in enumerate(c):
            a[0] = a[0] + peephole[d] * state
            a[1 + d] = a[1 + d] + peephole[len(c) + d] * state

    def activate(row: int) -> Value:
        normalized = _normalize(a[row], row, parameters)
        return normalized.tanh() if names[row] == TANH_GATE else normalized.sigmoid()

    def output_activation(value: Value) -> Value:
        return _normalize(value, len(names), parameters).tanh()

    def apply_output_gate(gate: Value, c_new: Value) -> Value:
        """With peepholes the output gate sees c_new, so it is activated only now."""
        if peephole is None:
            return gate
        a[last] = a[last] + peephole[2 * len(c)] * c_new
        gates[last] = activate(last)
        return gates[last]

    gates = [a[row] if peephole is not None and row == last else activate(row) for row in range(len(names))]
    h, c_new = cell.step(list(gates), c, output_activation, apply_output_gate)
    return Step(h, c_new, gates)


def _normalize(value: Value, row: int, parameters: CellParameters) -> Value:
    """Layer norm of (…, n), where it is on."""
    if parameters.norm_weight is None:
        return value
    centered = value - value.mean(dim=-1, keepdim=True)
    rstd = (centered.square().mean(dim=-1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
    return centered * rstd * parameters.norm_weight[row] + parameters.norm_bias[row]
