"""The cells that come with the package: slstm from its definition, and start values.

`test_sweeps.py` compares all of them with the equations of `helpers/oracle.py`.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import BUILT_IN_CELLS, get_cell

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


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


@pytest.mark.parametrize("name", BUILT_IN_CELLS)
def test_a_cell_is_pickled_by_its_name(name: str) -> None:
    cell = get_cell(name)
    assert pickle.loads(pickle.dumps(cell)) is copy.deepcopy(cell) is cell
