"""The equations of the cells that come with the package against the same ones written in NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers.checkout import ROOT

from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.errors import InputError

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def by_hand(cell: str, a: Array, up: Array, left: Array) -> tuple[Array, Array]:
    """h and c of one cell from its pre-activations (G, n) and the states above and to the left."""
    if cell in ("graves", "mean"):
        i, f1, f2, g, o = sigmoid(a[0]), sigmoid(a[1]), sigmoid(a[2]), np.tanh(a[3]), sigmoid(a[4])
        share = 0.5 if cell == "mean" else 1.0
        c = i * g + share * (f1 * up + f2 * left)
        return o * np.tanh(c), c
    if cell == "stable":
        i, f, lam, g, o = sigmoid(a[0]), sigmoid(a[1]), sigmoid(a[2]), np.tanh(a[3]), sigmoid(a[4])
        c = i * g + f * (lam * up + (1 - lam) * left)
        return o * np.tanh(c), c
    assert cell == "leaky", f"write the equations of '{cell}' in NumPy into by_hand"
    phi, lam, g, w0, w1 = sigmoid(a[0]), sigmoid(a[1]), np.tanh(a[2]), sigmoid(a[3]), sigmoid(a[4])
    before = lam * up + (1 - lam) * left
    c = phi * g + (1 - phi) * before
    return np.tanh(w0 * before + w1 * c), c


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_a_2x2_grid_equals_the_equations_written_by_hand(cell: str) -> None:
    torch.manual_seed(0)
    n = 3
    layer = MDLSTM(2, n, cell=cell).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 2, 2, 2, dtype=torch.double)
    weight_ih, weight_hh, bias = (p[0].detach().numpy() for p in layer.parameters())
    h: dict[tuple[int, int], Array] = {}
    c: dict[tuple[int, int], Array] = {}
    zero = np.zeros(n)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        above, beside = (row - 1, column), (row, column - 1)
        a = weight_ih @ x[0, row, column].numpy() + bias
        a = a + weight_hh[0] @ h.get(above, zero) + weight_hh[1] @ h.get(beside, zero)
        h[row, column], c[row, column] = by_hand(
            cell, a.reshape(-1, n), c.get(above, zero), c.get(beside, zero)
        )
    expected = np.array([[h[0, 0], h[0, 1]], [h[1, 0], h[1, 1]]])
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-12)


def test_peepholes_let_gates_see_the_states() -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 1, ndim=1, peephole=True).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    w, u, b, p = (parameter.detach().numpy().reshape(-1) for parameter in layer.parameters())
    x = np.random.default_rng(0).standard_normal(4)
    h = c = 0.0
    expected = []
    for value in x:
        i, f, g, o = w * value + u * h + b
        i, f = sigmoid(i + p[0] * c), sigmoid(f + p[1] * c)
        c = i * np.tanh(g) + f * c
        h = sigmoid(o + p[2] * c) * np.tanh(c)
        expected.append(h)
    y = layer(torch.from_numpy(x).reshape(1, 4, 1))
    np.testing.assert_allclose(y.detach().numpy().reshape(-1), expected, atol=1e-12)


def test_leaky_state_stays_within_one() -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 8, cell="leaky", directions="all")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=3)
    assert layer(torch.randn(2, 40, 40, 1) * 100).abs().max() <= 1


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_each_cell_is_documented(cell: str) -> None:
    page = (ROOT / "docs/cells.md").read_text(encoding="utf-8")
    assert len(re.findall(rf"^\| `{cell}` \|", page, re.MULTILINE)) == 2, (
        f"docs/cells.md needs a row for '{cell}' in both tables: when to choose it, and its equations"
    )
    assert f'"{cell}"' in str(MDLSTM.__doc__), f"name '{cell}' in the docstring of MDLSTM, at cell="


def test_an_unknown_cell_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"graves, .*got 'lstm'"):
        MDLSTM(1, 2, cell="lstm")
