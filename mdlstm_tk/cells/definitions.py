"""The cells that come with the package: their gates, start values and forward equations.

An equation takes *activated* gates and uses only `+`, `-`, `*` and the functions that it is given, so the
same lines compute with torch tensors, build ONNX nodes, and are recorded and differentiated for the
compiled kernels (`mdlstm_tk.cells.lowering`).

Notation
    D           number of grid axes
    i, f, g, …  activated gates, (…, n); g is tanh, all others are sigmoid
    c[d]        cell state one step back along axis d, 0 outside the grid, (…, n)
    c̄           the mix of the c[d]
"""

from __future__ import annotations

from math import log

from mdlstm_tk.cells.cell import Activation, OutputGate, Value, Values, register_cell, total


def _forget_gates(ndim: int) -> tuple[str, ...]:
    return ("i", *(f"f{d + 1}" for d in range(ndim)), "g", "o")


def _mixing_gates(ndim: int) -> tuple[str, ...]:
    return tuple(f"l{d + 1}" for d in range(ndim - 1))


def _mix(weights: Values, c: Values) -> Value:
    """Stick-breaking convex mix: λ₁c₁ + (1 − λ₁)(λ₂c₂ + (1 − λ₂)(… c_D))."""
    mixed = c[-1]
    for weight, state in zip(reversed(weights), reversed(c[:-1]), strict=True):
        mixed = mixed + weight * (state - mixed)
    return mixed


def _bounded_sum_start(gate: str, ndim: int) -> float:
    """Start value of a bias: forget gates at logit(1/D) − 1, so that Σ_d f_d is about 1/2.

    Where the sum exceeds 1, c grows with the number of paths through the grid, so the gates are left room
    to open. (Graves 2007 start at about logit(1/2), which gave c of 1e13 at 64×64 here.) With one axis
    there is no such limit, and the gate starts at 1 (Gers et al. 2000; Jozefowicz et al. 2015).
    """
    if not gate.startswith("f"):
        return 0.0
    return 1.0 if ndim == 1 else -log(ndim - 1) - 1


def _open_start(gate: str, ndim: int) -> float:
    """Start value of a bias: forget gates at 1 (Gers et al. 2000; Jozefowicz et al. 2015), mixing gates λ_d
    at logit(1/(D − d + 1)), so that every axis starts with equal weight."""
    if gate.startswith("l"):
        return -log(ndim - int(gate[1:]))
    return 1.0 if gate.startswith("f") else 0.0


def _leaky_start(gate: str, ndim: int) -> float:
    """Start value of a bias: the leak φ at −1, whose sigmoid keeps 73 % of the state, as an open forget
    gate does; mixing gates as for `stable`."""
    return -1.0 if gate == "leak" else _open_start(gate, ndim)


@register_cell("graves", gates=_forget_gates, start=_bounded_sum_start, peephole=True)
def graves(
    gates: Values, c: Values, output_activation: Activation, apply_output_gate: OutputGate
) -> tuple[Value, Value]:
    """c = i⊙g + Σ_d f_d⊙c_d ; h = o⊙tanh(c). Graves, Fernández, Schmidhuber 2007."""
    i, *f, g, o = gates
    c_new = i * g + total([f_d * c_d for f_d, c_d in zip(f, c, strict=True)])
    return apply_output_gate(o, c_new) * output_activation(c_new), c_new


@register_cell("mean", gates=_forget_gates, start=_open_start)
def mean(gates: Values, c: Values, output_activation: Activation) -> tuple[Value, Value]:
    """c = i⊙g + (1/D) Σ_d f_d⊙c_d ; h = o⊙tanh(c). rnn2d; multi-hare's "halved" cell."""
    i, *f, g, o = gates
    c_new = i * g + total([f_d * c_d for f_d, c_d in zip(f, c, strict=True)]) * (1 / len(c))
    return o * output_activation(c_new), c_new


@register_cell("stable", gates=lambda ndim: ("i", "f", *_mixing_gates(ndim), "g", "o"), start=_open_start)
def stable(gates: Values, c: Values, output_activation: Activation) -> tuple[Value, Value]:
    """c = i⊙g + f⊙c̄, c̄ the mix of c_d by λ ; h = o⊙tanh(c). Leifert et al. 2016, LSTM-stable."""
    i, f, *mixing, g, o = gates
    c_new = i * g + f * _mix(mixing, c)
    return o * output_activation(c_new), c_new


@register_cell(
    "leaky", gates=lambda ndim: ("leak", *_mixing_gates(ndim), "g", "w0", "w1"), start=_leaky_start
)
def leaky(gates: Values, c: Values, output_activation: Activation) -> tuple[Value, Value]:
    """c = φ⊙g + (1 − φ)⊙c̄ ; h = tanh(ω₀⊙c̄ + ω₁⊙c). Leifert et al. 2016, LeakyLP; |c| ≤ 1."""
    leak, *mixing, g, w0, w1 = gates
    c_mixed = _mix(mixing, c)
    c_new = c_mixed + leak * (g - c_mixed)
    return output_activation(w0 * c_mixed + w1 * c_new), c_new
