"""One step of a cell: activate the gates, apply the equations; and its gradient.

Nothing here knows what it computes with. The functions take lists of values that have `+ - *`,
`tanh`, `sigmoid`, `square`, `rsqrt` and `mean` over the last axis: torch tensors in `reference` and
`unrolled`, recorded values in the fused kernels (`mdlstm_tk.cells.ir`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mdlstm_tk.cells.equations import LAYER_NORM_EPS, Cell, Value, Values

Pull = Callable[[Value], Value]


@dataclass
class CellParameters:
    """What a cell needs beside its pre-activations: tensors, or sequences of their rows (..., n).

    Attributes:
        peephole: (..., 2D + 1, n) weights from c_d to i (D rows), from c_d to f_d (D rows), from
            the new c to o; or None.
        norm_weight: (..., G + 1, n) layer-norm scale of each gate, then of c; or None.
        norm_bias: (..., G + 1, n) the shifts.
    """

    peephole: Any = None
    norm_weight: Any = None
    norm_bias: Any = None

    def map(self, function: Callable[[Any], Any]) -> CellParameters:
        """With `function` applied to each that is there."""
        rows = (self.peephole, self.norm_weight, self.norm_bias)
        return CellParameters(*(None if row is None else function(row) for row in rows))

    def add(self, other: CellParameters) -> None:
        """Add to each tensor the one of `other`, in place."""
        for name, value in vars(other).items():
            if value is not None:
                getattr(self, name).add_(value)


def _normalise(value: Value, row: int, parameters: CellParameters) -> tuple[Value, Value, Value]:
    """Layer norm of (..., n): the result, the unscaled result and 1/σ (..., 1)."""
    centred = value - value.mean(dim=-1, keepdim=True)
    rstd = (centred.square().mean(dim=-1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
    unit = centred * rstd
    return unit * parameters.norm_weight[row] + parameters.norm_bias[row], unit, rstd


def _activate(value: Value, row: int, name: str, parameters: CellParameters) -> Value:
    if parameters.norm_weight is not None:
        value, _, _ = _normalise(value, row, parameters)
    return value.tanh() if name in ("g", "squash") else value.sigmoid()


def _see_states(pre: list[Value], c: Values, peephole: Values) -> None:
    """Add to the pre-activations of i and f_d what they see of c_d."""
    for d, state in enumerate(c):
        pre[0] = pre[0] + peephole[d] * state
        pre[1 + d] = pre[1 + d] + peephole[len(c) + d] * state


def cell_step(
    cell: Cell, a: Values, c: Values, parameters: CellParameters
) -> tuple[Value, Value, list[Value]]:
    """New h and c of a set of cells.

    Args:
        cell: the equations.
        a: G pre-activations W x + Σ_d U_d h_d + b, (..., n) each.
        c: D states (..., n), one step back along each axis.
        parameters: peepholes and layer norm; their rows broadcast against a.

    Returns:
        h (..., n), c (..., n) and the G activated gates (..., n).
    """
    names = cell.gates(len(c))
    last = len(names) - 1
    pre = list(a)
    peephole = parameters.peephole
    if peephole is not None:
        _see_states(pre, c, peephole)

    def squash(value: Value) -> Value:
        return _activate(value, len(names), "squash", parameters)

    def late_gate(gate: Value, new: Value) -> Value:
        if peephole is not None:
            gates[last] = _activate(gate + peephole[2 * len(c)] * new, last, names[last], parameters)
        return gates[last]

    gates = [
        value if peephole is not None and row == last else _activate(value, row, name, parameters)
        for row, (name, value) in enumerate(zip(names, pre, strict=True))
    ]
    h, new = cell.step(list(gates), c, squash, late_gate)
    return h, new, gates


def cell_step_backward(
    cell: Cell,
    a: Values,
    c: Values,
    new: Value,
    dh: Value,
    dc: Value,
    parameters: CellParameters,
    activated: bool = False,
) -> tuple[list[Value], list[Value], CellParameters]:
    """The gradient of `cell_step`.

    Args:
        cell: the equations.
        a: G pre-activations (..., n) as for `cell_step`; or, if `activated`, the gates it returned,
            which is enough where there is no layer norm.
        c: D states (..., n).
        new: (..., n) the c that `cell_step` returned.
        dh: (..., n) gradient of h.
        dc: (..., n) gradient of the new c.
        parameters: as for `cell_step`.
        activated: what a holds.

    Returns:
        The gradients of a (G), of c (D), and of the rows of the parameters, (..., n) each: the latter
        not yet summed over the cells.
    """
    assert not (activated and parameters.norm_weight is not None)
    names = cell.gates(len(c))
    last = len(names) - 1
    pre = list(a)
    peephole = parameters.peephole
    if peephole is not None and not activated:
        _see_states(pre, c, peephole)
        pre[last] = pre[last] + peephole[2 * len(c)] * new
    norm_weights, norm_biases = ([None] * (len(names) + 1) for _ in range(2))

    def forward(value: Value, row: int, name: str) -> tuple[Value, Pull]:
        """The activated value, and the function that pulls a gradient back to `value`."""
        unit = rstd = active = value
        if parameters.norm_weight is not None:
            value, unit, rstd = _normalise(value, row, parameters)
        if name == "squash" or not activated:
            active = value.tanh() if name in ("g", "squash") else value.sigmoid()

        def pull(gradient: Value) -> Value:
            slope = 1 - active * active if name in ("g", "squash") else active * (1 - active)
            gradient = gradient * slope
            if parameters.norm_weight is None:
                return gradient
            norm_weights[row], norm_biases[row] = gradient * unit, gradient
            gradient = gradient * parameters.norm_weight[row]
            along = (gradient * unit).mean(dim=-1, keepdim=True)
            return (gradient - gradient.mean(dim=-1, keepdim=True) - unit * along) * rstd

        return active, pull

    gates, pulls = zip(
        *(forward(value, row, name) for row, (name, value) in enumerate(zip(names, pre, strict=True))),
        strict=True,
    )
    late: list[Value] = []

    def late_gate(gradient: Value, dnew: Value) -> Value:
        if peephole is None:
            return dnew
        late.append(pulls[last](gradient))
        return dnew + peephole[2 * len(c)] * late[0]

    def squash(value: Value) -> tuple[Value, Pull]:
        return forward(value, len(names), "squash")

    dgates, states = cell.back(gates, c, new, dh, dc, squash, late_gate)
    early = len(names) - len(late)
    da = [pull(gradient) for pull, gradient in zip(pulls[:early], dgates, strict=False)] + late
    gradients = CellParameters()
    if parameters.norm_weight is not None:
        gradients.norm_weight, gradients.norm_bias = norm_weights, norm_biases
    if peephole is not None:
        seen = [*([da[0]] * len(c)), *da[1 : 1 + len(c)]]  # whose pre-activation each row adds to
        gradients.peephole = [g * state for g, state in zip(seen, [*c, *c], strict=True)]
        gradients.peephole.append(da[last] * new)
        states = [
            state + peephole[d] * da[0] + peephole[len(c) + d] * da[1 + d] for d, state in enumerate(states)
        ]
    return da, states, gradients
