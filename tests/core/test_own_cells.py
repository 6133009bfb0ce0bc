"""Cells that users define: every backend agrees with the reference, and bad definitions are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.functions import FUNCTIONS, assert_precise, whole_range
from helpers.own_cells import EXAMPLE, OWN_CELLS, arguments, register_own_cells, run_all_operations, smooth
from helpers.parity import Case
from helpers.refusal import refused
from torch import Tensor

from mdlstm_tk import MDLSTM, Gate, InputError, cells, register_cell
from mdlstm_tk.cells import cell_names, get_cell
from mdlstm_tk.cells.autodiff import SimplifiedGraph
from mdlstm_tk.cells.ir import Value, topological_order, unit_mean
from mdlstm_tk.cells.operations import OPERATIONS, Operation

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
def test_every_backend_agrees_with_the_reference(case: Case, backend: str) -> None:
    case.check(backend)


def in_torch(op: str, *args: Tensor) -> Tensor:
    if op == "softplus":
        return torch.logaddexp(*args, torch.zeros_like(*args))
    return getattr(torch, op)(*args)


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
        expected = in_torch(op, *smooth(op, a, b))
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
                expected = in_torch(op, *arguments(op, a, b))
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
    layer, x = MDLSTM(2, 3, ndim=1, cell="ours", backend="torch"), torch.randn(1, 1, 2)
    a = (layer.weight_ih_l0[0] @ x[0, 0] + layer.bias_l0[0]).unflatten(0, (2, 3))
    expected = equations(torch, a)
    for cell in ("ours", "torchs"):
        layer.definition = get_cell(cell)
        torch.testing.assert_close(layer(x)[0, 0], expected)


@pytest.mark.parametrize(("backend", "form"), [("torch", "unrolled"), ("fused", "scan")])
def test_a_row_of_the_table_is_all_that_an_operation_needs(
    backend: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exports are compared with the reference before their files appear."""
    from mdlstm_tk.export import export_onnx

    row = Operation(
        "reciprocal",
        lambda x: 1.0 / x,
        lambda dy, y, x: (0.0 - dy * y * y,),
        "1.0 / {0}",
        "Reciprocal",
    )
    monkeypatch.setitem(OPERATIONS, "reciprocal", row)

    @register_cell("reciprocal", gates=[Gate("i"), Gate("f", start=1.0), Gate("g", "tanh")])
    def equations(gates: Any, states: Any) -> Any:
        i, f, g = gates
        c = i * g + f * sum(states["c"]) * 0.5
        return (c * c + 1).reciprocal() - 1, {"c": c}

    Case("reciprocal", (3, 4), units=5).check(backend)
    export_onnx(MDLSTM(2, 3, cell="reciprocal"), tmp_path / "m.onnx", grid=(3, 4), channels=2, form=form)


def test_gates_have_the_start_and_role_that_they_are_given() -> None:
    gates = [Gate("forget"), Gate("x", start=-2.0, role="forget")]
    register_cell("named", gates=gates, states=())(lambda gates, states: (sum(gates), {}))
    assert MDLSTM(1, 1, cell="named").bias_l0.tolist() == [[0, -2]]
    assert get_cell("named").gate_index("forget", 2) == [1]


def test_a_cell_is_known_by_its_name_alone() -> None:
    refused(r"own_cell\.py:coupled", lambda: MDLSTM(1, 2, cell=f"{EXAMPLE}:coupled"))
    refused("no cell 'stabel'; did you mean 'stable'", lambda: MDLSTM(1, 2, cell="stabel"))


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["coupled", "input-gated"]


def one_gate(h: Callable[[Any], Any]) -> Callable[..., Any]:
    """Equations of a gate g, whose h is `h(g)`."""
    return lambda gates, states: (h(gates[0]), {"c": gates[0]})


F, G = Gate("f"), Gate("g")
ROLES = [*(Gate(role, role=role) for role in ("input", "forget", "output")), Gate("second", role="forget")]
PLAIN = one_gate(lambda g: g)
PEEPHOLES = [Gate(role, role=role) for role in ("input", "forget", "output")]


def with_output_gate(h: Callable[..., Any]) -> Callable[..., Any]:
    """Equations of gates i, f and o, whose h is `h(o, c, output_gate)`."""

    def equations(gates: Any, states: Any, act: Any, output_gate: Any) -> Any:
        *others, o = gates
        c = sum(others, start=states["c"][0])
        return h(o, c, output_gate), {"c": c}

    return equations


ONE_OUTPUT = {
    "gates": lambda ndim: [PEEPHOLES[0], *(Gate(f"f{d}", role="forget") for d in range(ndim)), PEEPHOLES[2]]
}
BAD: list[tuple[dict[str, Any], Callable[..., Any], str]] = [
    *(
        (ONE_OUTPUT, with_output_gate(h), r"must call output_gate\(output, c\) once, and use")
        for h in (
            lambda o, c, gate: o * c,
            lambda o, c, gate: gate(o, c) * o,
            lambda o, c, gate: gate(o, c) * gate(o, c),
            lambda o, c, gate: gate(o * 1.0, c),
        )
    ),
    ({"gates": [F, G]}, lambda g, s: (g[2], {"c": g[0]}), r"2 gates \(f, g\)"),
    ({"gates": [G, F]}, PLAIN, "do not use gate f"),
    ({"gates": ["g"]}, PLAIN, r"each entry a Gate.* got \['g'\]"),
    ({"gates": 3}, PLAIN, "each entry a Gate.* got 3"),
    ({"gates": []}, lambda g, s: (s["c"][0], {"c": s["c"][0]}), "got none"),
    ({"gates": [G, G]}, lambda g, s: (g[0], {"c": g[1]}), "distinct names, got g, g"),
    ({"gates": lambda: [G]}, PLAIN, "function from the number of axes .*TypeError"),
    ({"gates": [G]}, one_gate(lambda g: g.sin()), "'sin'.* supported are .*softplus"),
    ({"gates": [G]}, one_gate(lambda g: g - g.mean()), "unknown operation 'mean'"),
    ({"gates": [G]}, one_gate(lambda g: g**2), r" \*\* .* may use .*softplus"),
    ({"gates": [G]}, one_gate(lambda g: g if g else 1.0), "cannot branch .*maximum"),
    ({"gates": [G]}, one_gate(lambda g: g + "1"), "values and numbers, got str"),
    ({"gates": [G]}, one_gate(lambda g: g.maximum()), "takes 2 arguments, got 1"),
    ({"gates": [G]}, one_gate(lambda g: torch.add(g, g, alpha=0)), "takes no alpha; leave it out"),
    ({"gates": [G]}, one_gate(lambda g: 1.0), "must compute h"),
    ({"gates": [G]}, one_gate(lambda g: g * float("nan")), "not finite"),
    ({"gates": [G]}, one_gate(lambda g: g.minimum(np.inf)), "is not finite$"),
    ({"gates": {F, G}}, PLAIN, "gates must be a list"),
    ({"gates": [G], "states": {"c"}}, PLAIN, "states must be a list"),
    ({"gates": [G]}, lambda g, s: g[0], r'must return h, \{"c": …\}'),
    ({"gates": [G]}, lambda g, s: (g[0], {"d": g[0]}), "states c, got d"),
    ({"gates": [G]}, one_gate(lambda g: g if g == 0 else 1 / g), "cannot branch"),
    ({"gates": [G]}, one_gate(lambda g: 1 / g if g != g else g), "cannot branch .*"),
    ({"gates": [G]}, lambda g: (g[0], {}), "a function of gates, states .* got \\(g\\)"),
    ({"gates": [G]}, lambda g, s, k=2: (g[0] * k, {"c": g[0]}), r"without defaults, got \(g, s, k=2\)"),
    ({"gates": [G]}, lambda *both: PLAIN(*both), r"got \(\*both\)"),
    ({"gates": [G]}, "f", "a function of gates, states .* got f"),  # type: ignore[list-item]
    ({"gates": [G], "states": ("h",)}, PLAIN, "other than 'h'"),
    ({"gates": [G], "states": ("c", "c")}, PLAIN, "distinct names"),
    ({"gates": [*ROLES, Gate("j", role="input")]}, lambda g, s, a, o: PLAIN(g, s), "peepholes need"),
    ({"gates": ROLES, "states": ("b",)}, lambda g, s, a, o: PLAIN(g, s), "peepholes need a state c"),
]


@pytest.mark.parametrize(("options", "equations", "message"), BAD, ids=[row[-1] for row in BAD])
def test_a_bad_definition_is_refused_in_one_line(
    options: dict[str, Any], equations: Callable[..., Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        register_cell("bad", **options)(equations)
    assert "\n" not in str(caught.value) and re.match("(gates|states) must be|.*bad", str(caught.value))
    assert "bad" not in cell_names()


BAD_NAMES: list[tuple[Callable[[Any], Any], Any]] = [
    *((lambda name: register_cell(name, gates=[G])(PLAIN), bad) for bad in ("graves", "two words", None)),
    *((Gate, bad) for bad in ("a b", 3)),
    (lambda activation: Gate("g", activation), "relu"),
    (lambda role: Gate("g", role=role), "feedback"),
]


@pytest.mark.parametrize(("make", "bad"), BAD_NAMES)
def test_bad_names_and_words_are_refused(make: Callable[[Any], Any], bad: Any) -> None:
    refused(repr(bad), lambda: make(bad))


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
def test_equations_may_be_as_long_as_one_likes(layer_norm: bool) -> None:
    def equations(gates: Any, states: Any, output_activation: Any) -> Any:
        c = gates[0] * states["c"][0] + gates[1]
        for k in range(800):
            c = c * 0.999 + 0.001 * (k % 3)
        return output_activation(c), {"c": c}

    register_cell("long", gates=[F, Gate("z", "tanh")])(equations)
    for backend in BACKENDS:
        Case("long", (2, 2), layer_norm=layer_norm).check(backend)


def test_means_of_shared_values_take_no_time_of_their_own() -> None:
    """Each of these 60 sums has the one before it twice."""
    value = Value.load("a", 0)
    for _ in range(60):
        value = value + value
    graph = SimplifiedGraph()
    assert len(topological_order([graph.simplify(unit_mean(value))])) == 62


def test_what_equations_read_from_outside_is_read_once() -> None:
    strength = [1.0]

    @register_cell("reader", gates=[Gate("z", "tanh")], states=())
    def equations(gates: Any, states: Any) -> Any:
        return gates[0] * strength[0], {}

    x, results = torch.randn(1, 2, 3, 2, dtype=torch.float64), []
    layer = MDLSTM(2, 3, cell="reader").double()
    for layer.backend in ("fused", "torch"):
        y = layer(x)
        strength[0] = 3.0
        results.append((y, torch.autograd.grad(y.sum(), list(layer.parameters()))))
    torch.testing.assert_close(*results)


VANISHING: dict[str, Callable[[Any], Any]] = {
    "a product with 0": lambda g: 0.0 * g.exp(),
    "a difference of equals": lambda g: g.exp() - g.exp(),
    "a quotient of 0": lambda g: 0.0 / g,
    "a mean of zeros": lambda g: unit_mean(g.exp() * 0.0),
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
    for layer.backend in ("fused", "torch"):
        inputs = x.double().requires_grad_()
        y = layer(inputs)
        results.append((y, torch.autograd.grad(y.sum(), inputs)[0][..., 2]))
    assert results[0][0].isnan().any() and results[0][1].isnan().any()
    torch.testing.assert_close(*results, equal_nan=True)


def test_a_state_may_be_called_self() -> None:
    def equations(gates: Any, states: Any) -> Any:
        return gates[0], {"self": gates[0] + 0.5 * states["self"][0]}

    register_cell("mine", gates=[Gate("z", "tanh")], states=("self",))(equations)
    layer, x = MDLSTM(2, 3, cell="mine", backend="torch"), torch.randn(1, 2, 2, 2)
    _, (state,) = layer(x, return_state=True)
    layer(x, initial_state=(state,))


@pytest.mark.parametrize("backend", ["fused", "torch"])
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
