"""The equations of the cells that come with the package against the same ones written in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import BUILT_IN_CELLS, get_cell
from mdlstm_tk.cells.autodiff import SimplifiedGraph
from mdlstm_tk.cells.ir import Kernel, Store, Value, unit_mean

Array = np.ndarray
Before = dict[str, tuple[Array, Array]]  # by name, the states above and to the left
BACKENDS = ("torch", "fused")


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def by_hand(
    cell: str, a: Array, before: Before, p: Array, norm: Callable[[Array, int], Array]
) -> dict[str, Array]:
    """The states of one position, h among them.

    Args:
        cell: its name.
        a: the pre-activations (G, n).
        before: the states before.
        p: peepholes (5, n), zeros where there are none.
        norm: the layer norm of a value, by its number; the identity where there is none.
    """

    def s(k: int, peephole: Array | float = 0.0) -> Array:
        return sigmoid(norm(a[k] + peephole, k))

    up, left = before["c"]
    if cell in ("graves", "mean"):
        i, f1, f2 = s(0, p[0] * up + p[1] * left), s(1, p[2] * up), s(2, p[3] * left)
        share = 0.5 if cell == "mean" else 1.0
        c = i * np.tanh(norm(a[3], 3)) + share * (f1 * up + f2 * left)
        return {"h": s(4, p[4] * c) * np.tanh(norm(c, 5)), "c": c}
    if cell == "stable":
        c = s(0) * np.tanh(norm(a[3], 3)) + s(1) * (s(2) * up + (1 - s(2)) * left)
        return {"h": s(4) * np.tanh(norm(c, 5)), "c": c}
    if cell == "leaky":
        mixed = s(1) * up + (1 - s(1)) * left
        c = s(0) * np.tanh(norm(a[2], 2)) + (1 - s(0)) * mixed
        return {"h": np.tanh(norm(s(3) * mixed + s(4) * c, 5)), "c": c}
    assert cell == "slstm", f"write the equations of '{cell}' in NumPy into by_hand"
    i, f, w1 = norm(a[0], 0), norm(a[1], 1), s(2)
    grown = [np.exp(f) * w * np.exp(n_d) for w, n_d in zip((w1, 1 - w1), before["n"], strict=True)]
    norm_sum = np.exp(i) + grown[0] + grown[1]
    c = (np.exp(i) * np.tanh(norm(a[3], 3)) + grown[0] * up + grown[1] * left) / norm_sum
    return {"h": s(4) * c, "c": c, "n": np.log(norm_sum)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        *((cell, {"layer_norm": norm}) for cell in BUILT_IN_CELLS for norm in (False, True)),
        ("graves", {"peephole": True}),
        ("graves", {"peephole": True, "layer_norm": True}),
    ],
    ids=str,
)
def test_a_2x2_grid_equals_the_equations_written_by_hand(
    cell: str, options: dict[str, bool], backend: str
) -> None:
    torch.manual_seed(0)
    n = 3
    layer = MDLSTM(2, n, cell=cell, backend=backend, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 2, 2, 2, dtype=torch.double)
    weights = {name: parameter[0].detach().numpy() for name, parameter in layer.named_parameters()}
    names, zero = ("h", *get_cell(cell).states), np.zeros(n)

    def norm(value: Array, k: int) -> Array:
        if not layer.layer_norm:
            return value
        scaled = (value - value.mean()) / np.sqrt(value.var() + 1e-5)
        return scaled * weights["norm_weight_l0"][k] + weights["norm_bias_l0"][k]

    states: dict[tuple[int, int], dict[str, Array]] = {}
    for row, column in product(range(2), repeat=2):
        around = [states.get(place, {}) for place in ((row - 1, column), (row, column - 1))]
        before = {name: tuple(state.get(name, zero) for state in around) for name in names}
        a = weights["weight_ih_l0"] @ x[0, row, column].numpy() + weights["bias_l0"]
        a = a + sum(u @ h for u, h in zip(weights["weight_hh_l0"], before["h"], strict=True))
        peepholes = weights.get("peephole_l0", np.zeros((5, n)))
        states[row, column] = by_hand(cell, a.reshape(-1, n), before, peepholes, norm)  # type: ignore[arg-type]
    y, (last,) = layer(x, return_state=True)
    expected = np.array([[states[row, column]["h"] for column in range(2)] for row in range(2)])
    np.testing.assert_allclose(y[0].detach().numpy(), expected, atol=1e-12)
    for name, d, k in product(names, range(2), range(2)):
        face = getattr(last, name)[d][0, k, 0].detach().numpy()
        np.testing.assert_allclose(face, states[(1, k) if d == 0 else (k, 1)][name], atol=1e-12)


def unstabilised(x: Array, weight_hh: Array) -> Array:
    """h of an sLSTM from its definition with C and N, whose pre-activations are x (*grid, G·n) and U h."""
    grid, n = x.shape[:-1], weight_hh.shape[2]
    zero = np.zeros(n, np.longdouble)  # which on most computers has larger exponents than float64
    outside = (zero, zero, zero + 1)
    states: dict[Any, tuple[Array, ...]] = {}
    for position in np.ndindex(*grid):
        places = [(*position[:d], e - 1, *position[d + 1 :]) for d, e in enumerate(position)]
        before = [states.get(place, outside) for place in places]
        a = x[position].astype(np.longdouble) + sum(
            u @ h for u, (h, _, _) in zip(weight_hh, before, strict=True)
        )
        i, f, *mixing, z, o = a.reshape(-1, n)
        weights, remainder = [], np.ones(n, np.longdouble)
        for pre_activation in mixing:
            weights.append(remainder * sigmoid(pre_activation))
            remainder = remainder * sigmoid(-pre_activation)
        weights.append(remainder)
        c = np.exp(i) * np.tanh(z) + np.exp(f) * sum(w * b[1] for w, b in zip(weights, before, strict=True))
        norm = np.exp(i) + np.exp(f) * sum(w * b[2] for w, b in zip(weights, before, strict=True))
        states[position] = (sigmoid(o) * c / norm, c, norm)
    return np.array([states[position][0] for position in np.ndindex(*grid)]).reshape(*grid, n)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("backend", ["torch", "fused"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1, 50])
@pytest.mark.parametrize("grid", [(40,), (5, 8), (3, 2, 4)], ids=str)
def test_slstm_equals_its_definition_without_a_stabiliser(
    grid: tuple[int, ...], scale: int, dtype: torch.dtype, backend: str
) -> None:
    n, rng = 5, np.random.default_rng(0)
    gates = len(get_cell("slstm").gates(len(grid)))
    layer = MDLSTM(gates * n, n, ndim=len(grid), cell="slstm", bias=False, backend=backend).to(dtype)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(gates * n))
    x = rng.uniform(-scale, scale, (*grid, gates * n)).astype(np.float32)
    inputs = torch.from_numpy(x).to(dtype)[None].requires_grad_()
    y = layer(inputs)
    gradients = torch.autograd.grad(y.sum(), [inputs, *layer.parameters()])
    assert all(result.isfinite().all() for result in (y, *gradients))
    expected = unstabilised(x, layer.weight_hh_l0[0].detach().numpy())
    fine = np.isfinite(expected)
    assert fine.mean() > 0.5
    tolerance = 1e-11 if dtype == torch.float64 else 2e-6 * max(scale, 10)
    h = y[0].detach().numpy()
    np.testing.assert_allclose(h[fine], expected[fine].astype(float), rtol=0, atol=tolerance)


A, B = Value.load("a", 0), Value.load("a", 1)
NEGATED = 0 - B
SIMPLER: dict[str, tuple[Value, list[str]]] = {  # an expression, and its values in the simplest form
    "a sum with 0": (A + 0.0, ["a[0]"]),
    "0 in front": (0.0 + A, ["a[0]"]),
    "a difference from 0": (A - 0.0, ["a[0]"]),
    "a product with 1": (1.0 * (A * 1.0), ["a[0]"]),
    "a product with 0": (A * 0.0 + 0.0 * B, ["0.0"]),
    "a quotient by 1": (A / 1.0, ["a[0]"]),
    "a quotient of 0": (0.0 / A, ["0.0"]),
    "numbers": (Value.wrap(3.0) * 2.0 - 1.0, ["5.0"]),
    "a number by 0": (Value.wrap(3.0) / 0.0, ["3.0", "0.0", "divide"]),
    "the sign of a number": (Value.wrap(-2.0).sign(), ["-1.0"]),
    "the sign of 0": (Value.wrap(0.0).sign(), ["0.0"]),
    "two negatives": (A - NEGATED, ["a[0]", "a[1]", "add"]),
    "a negative in a sum": (A + NEGATED, ["a[0]", "a[1]", "subtract"]),
    "a negative in front": (NEGATED + A, ["a[0]", "a[1]", "subtract"]),
    "a negative factor": (B - A * NEGATED, ["a[1]", "a[0]", "multiply", "add"]),
    "a negative numerator": (A - NEGATED / B, ["a[0]", "a[1]", "divide", "add"]),
    "a difference of equals": (A * B - B * A, ["0.0"]),
    "equals in another order": (A.maximum(B) / B.maximum(A), ["a[0]", "a[1]", "maximum", "divide"]),
    "no equals in another order": ((A - B) / (B - A), ["a[0]", "a[1]", "subtract", "subtract", "divide"]),
    "the mean of a number": (unit_mean(Value.wrap(2.0)), ["2.0"]),
    "the mean of a mean": (unit_mean(unit_mean(A)), ["a[0]", "mean"]),
    "the mean of a sum": (unit_mean(A + 1.0), ["a[0]", "mean", "1.0", "add"]),
    "the mean of a multiple": (unit_mean(A * 3.0), ["a[0]", "mean", "3.0", "multiply"]),
    "the mean of a product": (unit_mean(A * B), ["a[0]", "a[1]", "multiply", "mean"]),
}


@pytest.mark.parametrize("name", SIMPLER)
def test_a_graph_is_simplified(name: str) -> None:
    value, expected = SIMPLER[name]
    kernel = Kernel([Store("b", 0, SimplifiedGraph().simplify(value, is_adjoint=True))])
    texts = [f"{v.slot}[{v.row}]" if v.op == "load" else v.op for v in kernel.values]
    texts = [str(v.number) if v.op == "constant" else t for v, t in zip(kernel.values, texts, strict=True)]
    assert sorted(texts) == sorted(expected)


def test_kernels_that_read_other_rows_have_other_texts() -> None:
    """Compiled code is kept by them."""
    values = [A, B, Value.load("b", 0), A + B, B + B, Value.wrap(1.0), Value.wrap(2.0)]
    assert len({Kernel([Store("y", 0, value)]).text for value in values}) == len(values)


def test_a_mean_needs_the_units_of_means_within_it() -> None:
    centred = A - unit_mean(A)
    levels = [value.level for value in (A, unit_mean(A), centred, unit_mean(centred * centred), B + B)]
    assert levels == [0, 1, 1, 2, 0]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gates_start_as_open_as_the_paper_of_a_cell_wants(ndim: int) -> None:
    starts = {
        cell: {gate.name: gate.start for gate in get_cell(cell).gates(ndim)} for cell in BUILT_IN_CELLS
    }
    for d in range(ndim):  # Σ f_d is 1/2 at most, but 0.73 with one axis, where c cannot grow
        expected = 1.0 if ndim == 1 else float(np.log(1 / ndim / (1 - 1 / ndim))) - 1
        assert starts["graves"][f"f{d + 1}"] == pytest.approx(expected)
        assert starts["mean"][f"f{d + 1}"] == 1
    assert starts["stable"]["f"] == 1 and starts["leaky"]["leak"] == -1 and starts["slstm"]["f"] == 0
    for cell in ("stable", "leaky", "slstm"):
        remainder, weights = 1.0, []
        for d in range(1, ndim):
            weights.append(remainder * sigmoid(starts[cell][f"l{d}"]))
            remainder -= weights[-1]
        assert [*weights, remainder] == pytest.approx([1 / ndim] * ndim)
