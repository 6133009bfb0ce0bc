"""Gradients of parameters are sums over the grid, and must stay as precise as what they sum."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mdlstm_tk import MDLSTM
from mdlstm_tk.backends.torch import products

pytestmark = pytest.mark.usefixtures("one_thread")


def _gradients(layer: MDLSTM, backend: str, dtype: torch.dtype, grad: Tensor) -> dict[str, Tensor]:
    layer = copy.deepcopy(layer).to(dtype)
    layer.backend = backend
    x = torch.randn(1, 256, 256, 2, generator=torch.Generator().manual_seed(1))
    layer(x.to(dtype)).backward(grad.to(dtype))
    return {name: p.grad.double() for name, p in layer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("options", "random_signs"),
    [
        ({"peephole": True}, True),
        ({"peephole": True}, False),
        ({"cell": "stable", "directions": [(1, 1), (-1, 1)]}, True),
        ({"cell": "stable", "layer_norm": True}, False),
    ],
    ids=["graves", "graves-same-sign", "stable", "stable-norm"],
)
def test_float32_gradients_of_a_large_grid(options: dict[str, Any], random_signs: bool) -> None:
    """Within 1e-6 of float64, relative to the largest entry of the gradient. The float64 sweep of the torch
    backend stands for `reference`, with which other tests compare it; that would take minutes here."""
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
        for name, found in _gradients(layer, backend, torch.float32, grad).items():
            error = (found - truth[name]).abs().max() / truth[name].abs().max()
            assert error < 1e-6, f"{name} of {backend}: {error:.1e}"


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 50])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_products_summed_in_parts(rows: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SUM_ROWS", 8)
    monkeypatch.setattr(products, "MAX_PART_SUMS", at_once)
    a, b = torch.randn(2, rows, 3, dtype=torch.float64), torch.randn(2, rows, 5, dtype=torch.float64)
    torch.testing.assert_close(products.multiply_transposed(a, b), a.transpose(1, 2) @ b)
