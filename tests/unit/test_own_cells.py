"""Cells that users define: every backend agrees with the reference, and bad definitions are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mdlstm_tk import MDLSTM, InputError, register_cell
from mdlstm_tk.cells import cell_names, get_cell
from mdlstm_tk.cells.lowering import lower

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_cell.py"
pytestmark = pytest.mark.usefixtures("fresh_registries", "poisoned_memory", "one_thread")


def _example(name: str) -> str:
    return f"{EXAMPLE}:{name}"


@pytest.mark.parametrize(
    ("name", "grid", "options"),
    [
        *(("coupled", grid, {}) for grid in [(1,), (7,), (1, 1), (1, 7), (7, 1), (5, 8)]),
        *(("input-gated", grid, {}) for grid in [(1, 7), (5, 8), (2, 3, 2)]),  # it has no recurrent product
        ("input-gated", (5, 8), {"layer_norm": True}),
    ],
    ids=str,
)
def test_every_backend_agrees_with_the_reference(
    name: str, grid: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(2, 5, ndim=len(grid), directions="all", cell=_example(name), **options).double()
    x = torch.randn(2, *grid, 2, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([grid, [max(1, extent - 1) for extent in grid]])
    results = {}
    for backend in ("reference", "torch", "fused"):
        layer.backend = backend
        y, leaves = layer(x, sizes), [x, *layer.parameters()]
        grad = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        results[backend] = [y, *torch.autograd.grad(y, leaves, grad, materialize_grads=True)]
    for backend in ("torch", "fused"):
        for result, truth in zip(results[backend], results["reference"], strict=True):
            torch.testing.assert_close(result, truth, rtol=0, atol=1e-11)


def test_a_cell_without_recurrence_has_no_recurrent_weights() -> None:
    layer = MDLSTM(3, 4, directions="all", cell=_example("input-gated"))
    assert {name for name, _ in layer.named_parameters()} == {"weight_ih_l0", "bias_l0"}
    graph = lower("forward", get_cell("input-gated"), 2, False, False)
    assert not get_cell("input-gated").recurrent
    assert {value.row for value in graph.values if value.slot == "a"} == {0, 1, 2}


def test_a_file_is_named_with_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from mdlstm_tk import register_cell\n"
        "@register_cell('plain', gates=('g',))\n"
        "def plain(gates, c, output_activation):\n"
        "    return output_activation(gates[0] + sum(c)), gates[0] + sum(c)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert MDLSTM(1, 2, cell="mine.py:plain").cell == "plain"
    assert "plain" in cell_names()
    with pytest.raises(InputError, match="no cell 'other'"):
        MDLSTM(1, 2, cell="mine.py:other")
    with pytest.raises(InputError, match="there is no file"):
        MDLSTM(1, 2, cell="absent.py:plain")


def test_the_example_runs() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["coupled", "input-gated"]


def three_gates(gates: Any, c: Any, output_activation: Any) -> Any:
    f, g, o = gates
    c_new = f * c[0] + g
    return o * output_activation(c_new), c_new


BAD: dict[str, tuple[tuple[str, ...], Callable[..., Any], str]] = {
    "too many gates": (("f", "g", "o", "extra"), three_gates, "4 gates"),
    "too few gates": (("g", "o"), three_gates, "2 gates"),
    "an unused gate": (("f", "g", "o"), lambda g, c, a: (a(g[0] + g[1]), g[0]), "gate o"),
    "an unknown method": (("g",), lambda g, c, a: (a(g[0].exp()), g[0]), "'exp'"),
    "an unknown operator": (("g",), lambda g, c, a: (a(g[0] / 2), g[0]), "'/'"),
    "a function of torch": (("g",), lambda g, c, a: (a(torch.tanh(g[0])), c[0]), r"TypeError.*\.tanh\(\)"),
    "a comparison": (("g",), lambda g, c, a: (a(g[0]), g[0] if g[0] > 0 else c[0]), "'>'"),
    "one result": (("g",), lambda g, c, a: a(g[0]), r"\(h, c_new\)"),
    "a repeated gate": (("g", "g"), lambda g, c, a: (a(g[0]), g[1]), "distinct"),
    "no gates": ((), lambda g, c, a: (c[0], c[0]), "none"),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_definition_is_refused_in_one_line(reason: str) -> None:
    gates, equations, value = BAD[reason]
    with pytest.raises(InputError, match=value) as caught:
        register_cell("bad", gates=gates)(equations)
    assert "\n" not in str(caught.value)
    assert "bad" not in cell_names()


def test_a_taken_or_impossible_name_is_refused() -> None:
    for name in ("graves", "two words", ""):
        with pytest.raises(InputError, match=f"'{name}'"):
            register_cell(name, gates=("f", "g", "o"))(three_gates)


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="'stable'"):
        MDLSTM(1, 2, cell="stabel")
