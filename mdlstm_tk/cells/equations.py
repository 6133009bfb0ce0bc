"""The cells: their gates and their equations, written once.

An equation here takes *activated* gates and uses nothing but `+`, `-`, `*` and the functions it is
handed, so the same lines run on torch tensors and build ONNX nodes. Activating is the same for
every cell (g is tanh, all other gates sigmoid) and is done by whoever calls.

Throughout, i, f, g, o, … are (…, n); `c[d]` is the state one step back along axis d, 0 outside
the grid. Gate order is the order of the parameters' rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from mdlstm_tk.errors import InputError

Value = Any  # a torch tensor, or a value in an ONNX graph under construction
Values = Sequence[Value]
Function = Callable[..., Value]

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Cell:
    """A recurrent cell with G = 3 + D gates of n units.

    Attributes:
        name: what `MDLSTM(cell=...)` calls it.
        gates: ndim → the names of its gates, in order. The gate named "g" is the candidate (tanh).
        step: (gates, c, squash, late_gate) → (h, c). `squash` is tanh, after layer norm where
            that is on; `late_gate` activates the output gate once the new c is known (peepholes).
        back: the gradient of `step`: (gates, c, new c, dh, dc, squash, late_gate) → the gradients of
            the activated gates and of c. Here `squash` returns its value and the function that pulls
            a gradient back through it, and `late_gate` adds to the gradient of the new c what comes
            to it through the output gate.
        bias: (gate name, ndim) → the value its bias starts at.
    """

    name: str
    gates: Callable[[int], tuple[str, ...]]
    step: Callable[[Values, Values, Function, Function], tuple[Value, Value]]
    back: Callable[..., tuple[list[Value], list[Value]]]
    bias: Callable[[str, int], float]

    def candidate(self, ndim: int) -> int:
        """The place of the tanh gate."""
        return self.gates(ndim).index("g")


def total(terms: Sequence[Value]) -> Value:
    """The sum, without the `0 +` that the builtin starts from (a node in a graph)."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def _graves(gates: Values, c: Values, squash: Function, late_gate: Function) -> tuple[Value, Value]:
    """c = i⊙g + Σ_d f_d⊙c_d ; h = o⊙tanh(c). Graves, Fernández, Schmidhuber 2007."""
    i, *f, g, o = gates
    new = i * g + total([f_d * c_d for f_d, c_d in zip(f, c, strict=True)])
    return late_gate(o, new) * squash(new), new


def _graves_back(
    gates: Values, c: Values, new: Value, dh: Value, dnew: Value, squash: Function, late_gate: Function
) -> tuple[list[Value], list[Value]]:
    i, *f, g, o = gates
    out, pull = squash(new)
    do = dh * out
    dnew = late_gate(do, dnew + pull(dh * o))
    return [dnew * g, *(dnew * c_d for c_d in c), dnew * i, do], [dnew * f_d for f_d in f]


def _mean(gates: Values, c: Values, squash: Function, late_gate: Function) -> tuple[Value, Value]:
    """c = i⊙g + (1/D) Σ_d f_d⊙c_d ; h = o⊙tanh(c). rnn2d; multi-hare's "halved" cell."""
    i, *f, g, o = gates
    new = i * g + total([f_d * c_d for f_d, c_d in zip(f, c, strict=True)]) * (1 / len(c))
    return late_gate(o, new) * squash(new), new


def _mean_back(
    gates: Values, c: Values, new: Value, dh: Value, dnew: Value, squash: Function, late_gate: Function
) -> tuple[list[Value], list[Value]]:
    i, *f, g, o = gates
    out, pull = squash(new)
    do = dh * out
    dnew = late_gate(do, dnew + pull(dh * o))
    share = dnew * (1 / len(c))
    return [dnew * g, *(share * c_d for c_d in c), dnew * i, do], [share * f_d for f_d in f]


def _mix(weights: Values, c: Values) -> Value:
    """Stick-breaking convex mix: λ₁c₁ + (1 − λ₁)(λ₂c₂ + (1 − λ₂)(… c_D))."""
    return _mixes(weights, c)[0]


def _mixes(weights: Values, c: Values) -> list[Value]:
    """The mix of c₁…c_D, of c₂…c_D, …, of c_D alone."""
    results = [c[-1]]
    for weight, state in zip(reversed(weights), reversed(c[:-1]), strict=True):
        results.insert(0, results[0] + weight * (state - results[0]))
    return results


def _mix_back(weights: Values, c: Values, dmix: Value) -> tuple[list[Value], list[Value]]:
    """The gradients of the weights and of c, given that of the mix."""
    dweights, dc = [], []
    for weight, state, rest in zip(weights, c, _mixes(weights, c)[1:], strict=False):
        dweights.append(dmix * (state - rest))
        dc.append(dmix * weight)
        dmix = dmix - dc[-1]
    return dweights, [*dc, dmix]


def _stable(gates: Values, c: Values, squash: Function, late_gate: Function) -> tuple[Value, Value]:
    """c = i⊙g + f⊙c̄, c̄ the mix of c_d by λ ; h = o⊙tanh(c). Leifert et al. 2016, LSTM-stable."""
    i, f, *mixing, g, o = gates
    new = i * g + f * _mix(mixing, c)
    return late_gate(o, new) * squash(new), new


def _stable_back(
    gates: Values, c: Values, new: Value, dh: Value, dnew: Value, squash: Function, late_gate: Function
) -> tuple[list[Value], list[Value]]:
    i, f, *mixing, g, o = gates
    out, pull = squash(new)
    do = dh * out
    dnew = late_gate(do, dnew + pull(dh * o))
    dmixing, dc = _mix_back(mixing, c, dnew * f)
    return [dnew * g, dnew * _mix(mixing, c), *dmixing, dnew * i, do], dc


def _leaky(gates: Values, c: Values, squash: Function, late_gate: Function) -> tuple[Value, Value]:
    """c = φ⊙g + (1 − φ)⊙c̄ ; h = tanh(ω₀⊙c̄ + ω₁⊙c). Leifert et al. 2016, LeakyLP; |c| ≤ 1."""
    leak, *mixing, g, w0, w1 = gates
    before = _mix(mixing, c)
    new = before + leak * (g - before)
    return squash(w0 * before + w1 * new), new


def _leaky_back(
    gates: Values, c: Values, new: Value, dh: Value, dnew: Value, squash: Function, late_gate: Function
) -> tuple[list[Value], list[Value]]:
    leak, *mixing, g, w0, w1 = gates
    before = _mix(mixing, c)
    _, pull = squash(w0 * before + w1 * new)
    dinner = pull(dh)
    dnew = dnew + dinner * w1
    dg = dnew * leak
    dmixing, dc = _mix_back(mixing, c, dinner * w0 + dnew - dg)
    return [dnew * (g - before), *dmixing, dg, dinner * before, dinner * new], dc


def _forget_gates(ndim: int) -> tuple[str, ...]:
    return ("i", *(f"f{d + 1}" for d in range(ndim)), "g", "o")


def _stable_gates(ndim: int) -> tuple[str, ...]:
    return ("i", "f", *_mixing_gates(ndim), "g", "o")


def _leaky_gates(ndim: int) -> tuple[str, ...]:
    return ("leak", *_mixing_gates(ndim), "g", "w0", "w1")


def _mixing_gates(ndim: int) -> tuple[str, ...]:
    return tuple(f"l{d + 1}" for d in range(ndim - 1))


def _sum_bias(gate: str, ndim: int) -> float:
    """Forget gates start at logit(1/D) − 1, for Σ_d f_d about 1/2. Where the sum exceeds 1, c grows with
    the number of paths through the grid, so they are left room to open. (Graves 2007 start at about
    logit(1/2); so did we, and had c at 1e13 at 64×64.) One axis has no such limit and gets 1 (Gers et
    al. 2000; Jozefowicz et al. 2015)."""
    if not gate.startswith("f"):
        return 0.0
    return 1.0 if ndim == 1 else -log(ndim - 1) - 1


def _open_bias(gate: str, ndim: int) -> float:
    """Forget gate open with bias 1 (Gers et al. 2000; Jozefowicz et al. 2015); mixing gates λ_d at
    1/(D − d + 1), so that every axis starts with equal weight."""
    if gate.startswith("l"):
        return -log(ndim - int(gate[1:]))
    return 1.0 if gate.startswith("f") else 0.0


def _leaky_bias(gate: str, ndim: int) -> float:
    """The leak φ starts at sigmoid(−1), which keeps 73 % of the state as an open forget gate does;
    mixing gates as for `stable`."""
    return -1.0 if gate == "leak" else _open_bias(gate, ndim)


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("graves", _forget_gates, _graves, _graves_back, _sum_bias),
        Cell("mean", _forget_gates, _mean, _mean_back, _open_bias),
        Cell("stable", _stable_gates, _stable, _stable_back, _open_bias),
        Cell("leaky", _leaky_gates, _leaky, _leaky_back, _leaky_bias),
    )
}


def get_cell(name: str) -> Cell:
    """The cell of that name.

    Raises:
        InputError: no such cell.
    """
    if name not in CELLS:
        raise InputError(f"cell must be one of {', '.join(CELLS)}, got {name!r}")
    return CELLS[name]
