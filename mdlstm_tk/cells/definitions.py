"""The cells that come with the package: their gates, start values and forward equations.

Notation
    D             number of grid axes
    i, f, g, …    gates, (…, n), activated as they are declared
    c_d           state c one step back along axis d, 0 outside the grid, (…, n)
    λ_1 … λ_D−1   mixing gates. The axes have the weights w_1 = λ_1, w_2 = (1 − λ_1) λ_2, …, and
                  w_D = (1 − λ_1) … (1 − λ_D−1), whose sum is 1
    c̄             Σ_d w_d c_d
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from math import log

from mdlstm_tk.cells.cell import Gate, GateActivation, register_cell, total
from mdlstm_tk.cells.graph import Value

Values = Sequence[Value]
States = Mapping[str, Values]
Activation = Callable[[Value], Value]
Results = tuple[Value, dict[str, Value]]


def _gates_with_forget_gates(ndim: int, start: float) -> list[Gate]:
    forget = [Gate(f"f{d + 1}", start=start, role="forget") for d in range(ndim)]
    return [Gate("i"), *forget, Gate("g", "tanh"), Gate("o")]


def _graves_gates(ndim: int) -> list[Gate]:
    """The biases of forget gates start at logit(1/D) − 1, so that Σ_d f_d is about 1/2.

    Where the sum exceeds 1, c grows with the number of paths through the grid, so the gates are left room
    to open. (Graves 2007 start at about logit(1/2), which gave c of 1e13 at 64×64 here.) With one axis
    there is no such limit, and the bias starts at 1 (Gers et al. 2000; Jozefowicz et al. 2015).
    """
    return _gates_with_forget_gates(ndim, 1.0 if ndim == 1 else -log(ndim - 1) - 1)


def _mixing_gates(ndim: int, activation: GateActivation | None = "sigmoid") -> list[Gate]:
    """The bias of λ_d starts at logit(1/(D − d + 1)), so that every axis starts with equal weight."""
    return [Gate(f"l{d}", activation, -log(ndim - d)) for d in range(1, ndim)]


def _mix(weights: Values, c: Values) -> Value:
    """c̄ = λ₁c₁ + (1 − λ₁)(λ₂c₂ + (1 − λ₂)(… c_D))."""
    mixed = c[-1]
    for weight, state in zip(reversed(weights), reversed(c[:-1]), strict=True):
        mixed = mixed + weight * (state - mixed)
    return mixed


def _log_weights(mixing: Values) -> list[Value | float]:
    """log w_d from the pre-activations a_d of λ_d, in logs because w_d may underflow:
    log(1 − λ) = −softplus(a), log λ = a − softplus(a)."""
    weights: list[Value | float] = []
    log_remaining: Value | float = 0.0
    for a in mixing:
        log_remaining = log_remaining - a.softplus()
        weights.append(log_remaining + a)
    return [*weights, log_remaining]


@register_cell("graves", gates=_graves_gates)
def graves(
    gates: Values, states: States, output_activation: Activation, output_gate: Callable[..., Value]
) -> Results:
    """c = i⊙g + Σ_d f_d⊙c_d ; h = o⊙tanh(c). Graves, Fernández, Schmidhuber 2007. `output_gate` adds the
    peephole from the new c to o, and activates it."""
    i, *f, g, o = gates
    c = i * g + total([f_d * c_d for f_d, c_d in zip(f, states["c"], strict=True)])
    return output_gate(o, c) * output_activation(c), {"c": c}


@register_cell("mean", gates=lambda ndim: _gates_with_forget_gates(ndim, 1.0))
def mean(gates: Values, states: States, output_activation: Activation) -> Results:
    """c = i⊙g + (1/D) Σ_d f_d⊙c_d ; h = o⊙tanh(c). rnn2d; multi-hare's "halved" cell."""
    i, *f, g, o = gates
    c = i * g + total([f_d * c_d for f_d, c_d in zip(f, states["c"], strict=True)]) * (1 / len(f))
    return o * output_activation(c), {"c": c}


@register_cell(
    "stable",
    gates=lambda ndim: [
        Gate("i"),
        Gate("f", start=1.0, role="forget"),
        *_mixing_gates(ndim),
        Gate("g", "tanh"),
        Gate("o"),
    ],
)
def stable(gates: Values, states: States, output_activation: Activation) -> Results:
    """c = i⊙g + f⊙c̄ ; h = o⊙tanh(c). Leifert et al. 2016, LSTM-stable. The bias of f starts at 1."""
    i, f, *mixing, g, o = gates
    c = i * g + f * _mix(mixing, states["c"])
    return o * output_activation(c), {"c": c}


@register_cell(
    "leaky",
    gates=lambda ndim: [
        # 1 − sigmoid(−1) = 73 % of the state is kept, as by an open forget gate
        Gate("leak", start=-1.0, role="leak"),
        *_mixing_gates(ndim),
        Gate("g", "tanh"),
        Gate("w0"),
        Gate("w1"),
    ],
)
def leaky(gates: Values, states: States, output_activation: Activation) -> Results:
    """c = φ⊙g + (1 − φ)⊙c̄ ; h = tanh(ω₀⊙c̄ + ω₁⊙c). Leifert et al. 2016, LeakyLP; |c| ≤ 1."""
    leak, *mixing, g, w0, w1 = gates
    mixed = _mix(mixing, states["c"])
    c = mixed + leak * (g - mixed)
    return output_activation(w0 * mixed + w1 * c), {"c": c}


@register_cell(
    "slstm",
    gates=lambda ndim: [
        Gate("i", None),
        Gate("f", None, role="forget"),
        *_mixing_gates(ndim, activation=None),
        Gate("z", "tanh"),
        Gate("o"),
    ],
    states=("c", "n"),
)
def slstm(gates: Values, states: States) -> Results:
    """C = e^i⊙z + e^f⊙Σ_d w_d⊙C_d ; N = e^i + e^f⊙Σ_d w_d⊙N_d ; h = o⊙C/N, with C = 0 and N = 1 outside.
    sLSTM of the xLSTM (Beck et al. 2024, arXiv:2405.04517); the extension to several axes is ours.

    C and N overflow, so states are c = C/N and n = log N, which are 0 outside. N is the sum of e^a_0 with
    a_0 = i and of e^a_d with a_d = f + log w_d + n_d, and c is the mean of z and all c_d with these
    weights. Taking the largest, m, from all exponents leaves none above 0, and a sum of at least 1.
    """
    i, f, *mixing, z, o = gates
    exponents = [i, *(f + w + n_d for w, n_d in zip(_log_weights(mixing), states["n"], strict=True))]
    m = reduce(lambda a, b: a.maximum(b), exponents)
    weights = [(exponent - m).exp() for exponent in exponents]
    norm = total(weights)
    c = total([weight * c_d for weight, c_d in zip(weights, [z, *states["c"]], strict=True)]) / norm
    return o * c, {"c": c, "n": m + norm.log()}
