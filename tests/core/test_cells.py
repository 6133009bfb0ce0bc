"""Cells: their operations, start values and peepholes; definitions that compute something else are refused.

`test_sweeps.py` compares all of them with the oracle.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from math import exp, log
from typing import Any

import pytest
import torch
from helpers.functions import FUNCTIONS, assert_precise, whole_range
from helpers.own_cells import (
    arguments,
    operation,
    register_own_cells,
    run_all_operations,
    smooth,
)

from mdlstm_tk import MDLSTM, Gate, InputError, register_cell
from mdlstm_tk.cells import BUILT_IN_CELLS, cell_names, get_cell

BACKENDS = ("torch", "fused")
pytestmark = pytest.mark.usefixtures("fresh_registries", "poisoned_memory")


@pytest.fixture(autouse=True)
def _cells(fresh_registries: None) -> None:
    register_own_cells()


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


G = Gate("g")


def one_gate(h: Callable[[Any], Any]) -> Callable[..., Any]:
    """Equations of a gate g, whose h is `h(g)`."""
    return lambda gates, states: (h(gates[0]), {"c": gates[0]})


BAD: dict[str, tuple[dict[str, Any], Any]] = {  # most would compute something else in silence
    "a fourth argument": ({"gates": [G]}, lambda g, s, act, more: (g[0], {"c": g[0]})),
    "a branch": ({"gates": [G]}, one_gate(lambda g: g if g else 1.0)),
    "a comparison": ({"gates": [G]}, one_gate(lambda g: g if g == 0 else 1 / g)),
    "an operation that is not there": ({"gates": [G]}, one_gate(lambda g: g.sin())),
    "too few arguments": ({"gates": [G]}, one_gate(lambda g: g.maximum())),
    "an option of torch": ({"gates": [G]}, one_gate(lambda g: torch.add(g, g, alpha=0))),
    "a state that is not returned": ({"gates": [G]}, lambda g, s: (g[0], {"d": g[0]})),
    "equations without states": ({"gates": [G]}, lambda g: (g[0], {})),
    "a state h": ({"gates": [G], "states": ("h",)}, one_gate(lambda g: g)),
    "two states of one name": ({"gates": [G], "states": ("c", "c")}, one_gate(lambda g: g)),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_bad_definition_is_refused(mistake: str) -> None:
    options, equations = BAD[mistake]
    with pytest.raises((InputError, TypeError, KeyError, AttributeError)):
        register_cell("bad", **options)(equations)
    assert "bad" not in cell_names()


def test_bad_names_and_words_are_refused() -> None:
    for name in ("graves", "a b", "a@b"):
        with pytest.raises(InputError):
            register_cell(name, gates=[G])(one_gate(abs))
    with pytest.raises(InputError):
        Gate("g", "relu")  # type: ignore[arg-type]


def test_equations_keep_nan_and_infinity() -> None:
    """No term is left out because it looks like 0: 0 · e^a, e^a − e^a and 0 / a with a = 1000 and 0."""

    def equations(gates: Any, states: Any) -> Any:
        a, g = gates
        vanishing = 0.0 * operation("exp", a) + (operation("exp", a) - operation("exp", a)) + 0.0 / a
        return g + g * vanishing, {}

    register_cell("vanishing", gates=[Gate("a", None), Gate("g", None)], states=(), recurrent=False)(
        equations
    )
    x = torch.tensor([2.0, 1000.0, 0.0, -3.0], dtype=torch.float64).view(-1, 1, 1)
    for backend in BACKENDS:
        layer = MDLSTM(1, 1, ndim=1, cell="vanishing", bias=False, backend=backend).double()
        torch.nn.init.ones_(layer.weight_ih_l0)
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        (gradient,) = torch.autograd.grad(y.sum(), inputs)
        for result in (y, gradient):
            assert result.flatten().isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gates_start_as_open_as_the_paper_of_a_cell_wants(ndim: int) -> None:
    starts = {
        cell: {gate.name: gate.start for gate in get_cell(cell).gates(ndim)} for cell in BUILT_IN_CELLS
    }
    for d in range(ndim):  # Σ f_d is 1/2 at most, but 0.73 with one axis, where c cannot grow
        expected = 1.0 if ndim == 1 else -log(ndim - 1) - 1
        assert starts["graves"][f"f{d + 1}"] == pytest.approx(expected)
        assert starts["mean"][f"f{d + 1}"] == 1
    assert starts["stable"]["f"] == 1 and starts["leaky"]["leak"] == -1 and starts["slstm"]["f"] == 0
    for cell in ("stable", "leaky", "slstm"):
        remainder, weights = 1.0, []
        for d in range(1, ndim):
            weights.append(remainder * (1 / (1 + exp(-starts[cell][f"l{d}"]))))
            remainder -= weights[-1]
        assert [*weights, remainder] == pytest.approx([1 / ndim] * ndim)


@pytest.mark.parametrize("name", BUILT_IN_CELLS)
def test_a_cell_is_pickled_by_its_name(name: str) -> None:
    cell = get_cell(name)
    assert pickle.loads(pickle.dumps(cell)) is copy.deepcopy(cell) is cell
