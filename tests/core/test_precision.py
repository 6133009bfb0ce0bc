"""Large grids and numbers: sums as precise as their terms, half precision, infinities and NaN."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import oracle
from helpers.parity import Case
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mdlstm_tk import MDLSTM

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def _gradients(layer: MDLSTM, backend: str, dtype: torch.dtype, grad: Tensor) -> dict[str, Tensor]:
    layer = copy.deepcopy(layer).to(dtype)
    layer.backend = backend
    x = torch.randn(1, 256, 256, 2, generator=torch.Generator().manual_seed(1))
    layer(x.to(dtype)).backward(grad.to(dtype))
    return {name: p.grad.double() for name, p in layer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("options", "random_signs"),
    [({"peephole": True}, True), ({"cell": "stable", "layer_norm": True}, False)],
    ids=["graves", "stable-norm-same-sign"],
)
def test_float32_gradients_of_a_large_grid(options: dict[str, Any], random_signs: bool) -> None:
    """Within 1e-6 of float64, relative to the largest entry of the gradient. The torch backend in float64
    stands for the oracle, which would take minutes."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 16, **options)
    with torch.no_grad():
        if layer.peephole:  # contractive, or c grows with the number of paths
            layer.weight_hh_l0.mul_(0.3)
            layer.bias_l0.view(5, 16)[1:3] = -1
            layer.peephole_l0.normal_(std=0.1)
    shape = (1, 256, 256, 16 * len(layer.directions))
    grad = torch.randn(shape) if random_signs else torch.rand(shape)
    truth = _gradients(layer, "torch", torch.float64, grad)
    for backend in ("fused", "torch"):
        for name, gradient in _gradients(layer, backend, torch.float32, grad).items():
            error = (gradient - truth[name]).abs().max() / truth[name].abs().max()
            assert error < 1e-6, f"{name} of {backend}: {error:.1e}"


SLSTM: list[Any] = [  # grid, bias of the forget gate, largest x
    ((80, 80), 3, 1),
    ((100, 100), 0.5, 1),
    ((24, 24, 24), 3, 1e5),
    ((512, 512), 0, 1),
    pytest.param((1024, 1024), 3, 1e5, marks=pytest.mark.slow),
    pytest.param((64, 64, 64), 3, 1, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("grid", "forget", "scale"), SLSTM, ids=str)
def test_slstm_is_a_mean_on_every_grid(grid: tuple[int, ...], forget: float, scale: float) -> None:
    """|c| ≤ 1 and all is finite; float32 agrees with float64 unless rounding of a huge x decides."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 8, ndim=len(grid), cell="slstm", backend="fused")
    with torch.no_grad():
        layer.bias_l0[:, 8:16] = forget
    x = (scale * (2 * torch.rand(1, *grid, 2) - 1)).requires_grad_()
    y, (state,) = layer(x, return_state=True)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *layer.parameters()))
    assert all(face.isfinite().all() for face in tree_leaves(state))
    assert max(face.abs().max() for face in state.c) <= 1 + 1e-6 and y.abs().max() <= 1 + 1e-6
    if scale == 1:
        with torch.no_grad():
            exact = copy.deepcopy(layer).double()(x.double())
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_pre_activations_beyond_float16(backend: str) -> None:
    """Rounded to float16 they would be infinite, and the layer norm would turn them into NaN."""
    case = Case("stable", layer_norm=True, dtype="float16")
    layer = case.layer(backend, torch.float16)
    x = torch.full((1, 5, 8, 2), 6e4, dtype=torch.float16)
    y = layer(x)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    layer.backend = "torch"
    torch.testing.assert_close(y.double(), layer.double()(x.double()), rtol=0, atol=2e-3)


def test_a_closed_gate_passes_nothing_on() -> None:
    """A slope that is not 0 to rounding shows once it is multiplied by a huge x."""
    case = Case(units=4)
    x = torch.randn(1, 4, 4, 2, dtype=torch.float64)
    x[0, 1, 1, 0] = 1e20
    layer = case.layer("fused", torch.float64)
    truth, _ = oracle.run(layer, dict(layer.named_parameters()), x)
    gradient, expected = (torch.autograd.grad(y.sum(), layer.weight_ih_l0)[0] for y in (layer(x), truth))
    torch.testing.assert_close(gradient, expected)
