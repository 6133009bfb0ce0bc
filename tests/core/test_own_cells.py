"""Cells that users define agree with the oracle; definitions that compute something else are refused."""

from __future__ import annotations

from collections.abc import Callable
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oracle
from helpers.functions import FUNCTIONS, assert_precise, whole_range
from helpers.own_cells import (
    EXAMPLE,
    OWN_CELLS,
    arguments,
    operation,
    register_own_cells,
    run_all_operations,
    smooth,
)
from helpers.parity import Case

from mdlstm_tk import MDLSTM, Gate, InputError, cells, register_cell
from mdlstm_tk.cells import cell_names, get_cell

BACKENDS = ("torch", "fused")
PAIR = [Gate("a", None), Gate("b", None)]
pytestmark = pytest.mark.usefixtures("fresh_registries", "poisoned_memory", "one_thread")


@pytest.fixture(autouse=True)
def _cells(fresh_registries: None) -> None:
    register_own_cells()


CASES = [
    *(Case(cell, (3, 5), directions="all", sizes=True, states=True) for cell in OWN_CELLS),
    *(Case(cell, (7,), layer_norm=True, recompute=True) for cell in ("coupled", "h-is-c")),
    Case("all-operations", (2, 2, 3), dtype="float32"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_backend_agrees_with_the_oracle(case: Case, backend: str) -> None:
    case.check(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_operation_is_that_of_torch(dtype: torch.dtype, backend: str) -> None:
    """Also where arguments of `maximum` are equal, and at 0."""
    numbers = torch.tensor([-30.0, -1.0, 0.0, 0.5, 1.0, 25.0])
    a, b = (t.to(dtype).requires_grad_() for t in torch.cartesian_prod(numbers, numbers).unbind(1))
    results = run_all_operations("smooth-operations", a, b, backend)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True, "allow_unused": True}
    for op, result in results.items():
        expected = operation(op, *smooth(op, a.double(), b.double())).to(dtype)
        pairs = [(result, expected)]
        pairs += zip(*(torch.autograd.grad(y.sum(), (a, b), **options) for y in pairs[0]), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(
                one, other, rtol=tolerance, atol=tolerance, msg=lambda text, op=op: f"{op}: {text}"
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_operations_over_their_whole_range(dtype: torch.dtype, backend: str) -> None:
    """Functions to the last digits of each result, however small it is; all else is equal to torch's."""
    x = whole_range(dtype)
    for a, b in ((x, x.flip(0)), (x, x)):
        for op, result in run_all_operations("any-numbers", a, b, backend).items():
            if op in FUNCTIONS:
                assert_precise(op, a, result, 2, subnormal=backend == "fused")
            else:
                expected = getattr(torch, op)(*arguments(op, a, b))
                torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def test_all_ways_to_write_an_operation() -> None:
    """As an operator with a number on either side, as a method, as a function, and as one of torch."""

    def equations(maths: Any, gates: Any) -> Any:
        a, b = gates
        h = 2 - a + (1 + b) * 3 - 4 * a / 5 - (-b) + 0.5 / (abs(a) + 1)
        return h + maths.exp(-abs(a)) * maths.maximum(a, b) + maths.tanh(a).sigmoid() + maths.relu(b)

    register_cell("ours", gates=PAIR, states=())(lambda gates, states: (equations(cells, gates), {}))
    register_cell("torchs", gates=PAIR, states=())(lambda gates, states: (equations(torch, gates), {}))
    torch.manual_seed(0)
    x = torch.randn(1, 1, 2)
    for cell in ("ours", "torchs"):
        layer = MDLSTM(2, 3, ndim=1, cell=cell)
        a = (layer.weight_ih_l0[0] @ x[0, 0] + layer.bias_l0[0]).unflatten(0, (2, 3))
        torch.testing.assert_close(layer(x)[0, 0], equations(torch, a))


def test_gates_have_the_start_and_role_that_they_are_given() -> None:
    gates = [Gate("forget"), Gate("x", start=-2.0, role="forget")]
    register_cell("named", gates=gates, states=())(lambda gates, states: (sum(gates), {}))
    assert MDLSTM(1, 1, cell="named").bias_l0.tolist() == [[0, -2]]
    assert get_cell("named").gate_index("forget", 2) == [1]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["coupled", "input-gated"]


G = Gate("g")
PEEPHOLES: dict[str, Any] = {
    "gates": lambda ndim: [
        Gate("i", None, role="input"),
        *(Gate(f"f{d}", role="forget") for d in range(ndim)),
        Gate("o", role="output"),
    ]
}


def with_output_gate(h: Callable[..., Any]) -> Callable[..., Any]:
    """Equations whose h is `h(o, c, output_gate)`."""

    def equations(gates: Any, states: Any, act: Any, output_gate: Any) -> Any:
        i, *forget, o = gates
        c = i + sum(f * c_d for f, c_d in zip(forget, states["c"], strict=True))
        return h(o, c, output_gate), {"c": c}

    return equations


def one_gate(h: Callable[[Any], Any]) -> Callable[..., Any]:
    """Equations of a gate g, whose h is `h(g)`."""
    return lambda gates, states: (h(gates[0]), {"c": gates[0]})


BAD: dict[str, tuple[dict[str, Any], Any]] = {
    "output gate not passed on": (PEEPHOLES, with_output_gate(lambda o, c, gate: o * c)),
    "output gate used elsewhere": (PEEPHOLES, with_output_gate(lambda o, c, gate: gate(o, c) * o)),
    "output gate called twice": (PEEPHOLES, with_output_gate(lambda o, c, gate: gate(o, c) * gate(o, -c))),
    "peepholes without roles": ({"gates": [G]}, lambda g, s, act, gate: (g[0], {"c": g[0]})),
    "a branch": ({"gates": [G]}, one_gate(lambda g: g if g else 1.0)),
    "a comparison": ({"gates": [G]}, one_gate(lambda g: g if g == 0 else 1 / g)),
    "an operation that is not there": ({"gates": [G]}, one_gate(lambda g: g.sin())),
    "a power": ({"gates": [G]}, one_gate(lambda g: g**2)),
    "a mean": ({"gates": [G]}, one_gate(lambda g: g - g.mean())),
    "a text": ({"gates": [G]}, one_gate(lambda g: g + "z")),
    "too few arguments": ({"gates": [G]}, one_gate(lambda g: g.maximum())),
    "an option of torch": ({"gates": [G]}, one_gate(lambda g: torch.add(g, g, alpha=0))),
    "a state that is not returned": ({"gates": [G]}, lambda g, s: (g[0], {"d": g[0]})),
    "no states": ({"gates": [G]}, lambda g, s: g[0]),
    "a gate too many": ({"gates": [G]}, lambda g, s: (g[1], {"c": g[0]})),
    "no gates": ({"gates": 3}, one_gate(lambda g: g)),
    "equations without states": ({"gates": [G]}, lambda g: (g[0], {})),
    "a state h": ({"gates": [G], "states": ("h",)}, one_gate(lambda g: g)),
    "two states of one name": ({"gates": [G], "states": ("c", "c")}, one_gate(lambda g: g)),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_bad_definition_is_refused(mistake: str) -> None:
    options, equations = BAD[mistake]
    with pytest.raises((InputError, TypeError)):
        register_cell("bad", **options)(equations)
    assert "bad" not in cell_names()


BAD_NAMES: list[Callable[[], Any]] = [
    *(
        (lambda name=name: register_cell(name, gates=[G])(one_gate(abs)))
        for name in ("graves", "a b", "a@b")
    ),
    lambda: Gate("g", "relu"),  # type: ignore[arg-type]
    lambda: Gate("g", role="feedback"),  # type: ignore[arg-type]
    lambda: MDLSTM(1, 2, cell="stabel"),
]


@pytest.mark.parametrize("make", BAD_NAMES)
def test_bad_names_and_words_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_peepholes_of_own_cells(backend: str, recompute: bool, layer_norm: bool) -> None:
    """Of an input gate without activation, too."""
    equations = with_output_gate(lambda o, c, gate: gate(o, c) * c.tanh())
    register_cell("peep", **PEEPHOLES)(equations)
    torch.manual_seed(0)
    options = {"peephole": True, "layer_norm": layer_norm, "recompute": recompute}
    layer = MDLSTM(2, 3, cell="peep", backend=backend, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    x = torch.randn(1, 3, 3, 2, dtype=torch.double)

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        y: torch.Tensor = torch.func.functional_call(layer, named, (x,))
        return y.square().sum()

    assert torch.autograd.gradcheck(loss, tuple(layer.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
def test_equations_may_be_as_long_as_one_likes(layer_norm: bool) -> None:
    def equations(gates: Any, states: Any, output_activation: Any) -> Any:
        c = gates[0] * states["c"][0] + gates[1]
        for k in range(800):
            c = c * 0.999 + 0.001 * (k % 3)
        return output_activation(c), {"c": c}

    register_cell("long", gates=[Gate("f"), Gate("z", "tanh")])(equations)
    for backend in BACKENDS:
        Case("long", (2, 2), layer_norm=layer_norm).check(backend)


def test_what_equations_read_from_outside_is_read_once() -> None:
    strength = [1.0]

    @register_cell("reader", gates=[Gate("z", "tanh")], states=())
    def equations(gates: Any, states: Any) -> Any:
        return gates[0] * strength[0], {}

    x, results = torch.randn(1, 2, 3, 2, dtype=torch.float64), []
    layer = MDLSTM(2, 3, cell="reader").double()
    for layer.backend in BACKENDS:
        y = layer(x)
        strength[0] = 3.0
        results.append((y, torch.autograd.grad(y.sum(), list(layer.parameters()))))
    torch.testing.assert_close(*results)


VANISHING: dict[str, Callable[[Any], Any]] = {
    "a product with 0": lambda g: 0.0 * operation("exp", g),
    "a difference of equals": lambda g: operation("exp", g) - operation("exp", g),
    "a quotient of 0": lambda g: 0.0 / g,
}


@pytest.mark.parametrize("name", VANISHING)
def test_equations_keep_nan_and_infinity(name: str) -> None:
    """In the results, and in gradients that multiply with them."""

    def equations(gates: Any, states: Any) -> Any:
        return gates[1] + gates[1] * VANISHING[name](gates[0]), {}

    register_cell("vanishing", gates=[Gate("z", None), Gate("g", "tanh")], states=())(equations)
    layer, results = MDLSTM(3, 2, ndim=1, cell="vanishing").double(), []
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        layer.weight_ih_l0.copy_(torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]))
        layer.bias_l0.zero_()
    x = torch.tensor([[[0.0, 2.0, 1.0]], [[0.0, 1e3, 1.0]], [[0.0, 0.0, 1.0]], [[0.0, -3.0, 1.0]]])
    for backend in ("oracle", *BACKENDS):
        inputs = x.double().requires_grad_()
        if backend == "oracle":
            y, _ = oracle.run(layer, dict(layer.named_parameters()), inputs)
        else:
            layer.backend = backend
            y = layer(inputs)
        results.append((y, torch.autograd.grad(y.sum(), inputs)[0][..., 2]))
    assert results[0][0].isnan().any() and results[0][1].isnan().any()
    torch.testing.assert_close(results[1:], [results[0]] * 2, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_any_kind_and_changed_lists(backend: str) -> None:
    """Numbers of NumPy on either side, 1 / 0 of constants, and lists that equations empty."""

    def equations(gates: Any, states: Any) -> Any:
        before, f = states["c"].pop(0), gates.pop()
        infinite = np.float64(1) / (f * np.int64(0))
        c = f.minimum(infinite) * np.float32(0.5) + np.float32(0.25) * before
        return c, {"c": c}

    register_cell("numbers", gates=[G])(equations)
    x = torch.rand(1, 3, 2, 1)
    layer = MDLSTM(1, 2, cell="numbers", backend=backend)
    y = layer(x)
    h = torch.zeros(2)  # by hand, for the first column, which sees no position on its left
    for row in range(3):
        a = layer.weight_ih_l0[0] @ x[0, row, 0] + layer.weight_hh_l0[0, 0] @ h + layer.bias_l0[0]
        h = 0.5 * a.sigmoid() + 0.25 * h
        torch.testing.assert_close(y[0, row, 0], h)
    y.sum().backward()
