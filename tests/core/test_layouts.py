"""Weights that are views of other tensors, or that are written between calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from mdlstm_tk import MDLSTM

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")
BACKENDS = ("torch", "fused")


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda w: w.mT.contiguous().mT,
    "all axes reversed": lambda w: reverse_axes(reverse_axes(w).contiguous()),
    "expanded": lambda w: w[:1, ..., :1].expand_as(w),
    "sliced": lambda w: torch.cat([w, w], dim=-1)[..., ::2],
}


def reverse_axes(w: Tensor) -> Tensor:
    return w.permute(*reversed(range(w.dim())))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "options", [{}, {"peephole": True, "layer_norm": True, "recompute": True}], ids=str
)
def test_weights_may_be_views_of_any_layout(options: dict[str, Any], view: str, backend: str) -> None:
    """Also where a view has the shape of what it is a view of, here since G·n = C."""
    torch.manual_seed(0)
    layer = MDLSTM(20, 4, directions="all", backend=backend, **options).double()
    exact = MDLSTM(20, 4, directions="all", backend="reference", **options).double()
    x = torch.randn(2, 3, 4, 20, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        weights = {k: p.detach().clone() for k, p in layer.named_parameters()}
        changed = parameter.detach().clone().requires_grad_()
        results = []
        for module in (layer, exact):
            given = weights | {name: VIEWS[view](changed)}
            y = functional_call(module, given, (x,))
            results.append((y, *torch.autograd.grad(y.square().sum(), changed)))
        torch.testing.assert_close(*results, msg=lambda text, name=name: f"{name}: {text}")
    square = layer.weight_ih_l0.detach().transpose(1, 2)  # G·n = C: it fits, and its strides are others
    weights = {k: p.detach() for k, p in layer.named_parameters()} | {"weight_ih_l0": square}
    for again in (x, x):
        torch.testing.assert_close(
            functional_call(layer, weights, (again,)), functional_call(exact, weights, (again,))
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_written_are_seen(backend: str) -> None:
    """Also where torch does not notice it."""
    layer, x = MDLSTM(20, 4, backend=backend), torch.randn(2, 3, 4, 20)
    exact = MDLSTM(20, 4, backend="reference")
    writes = (
        lambda: layer.weight_hh_l0[0, 1, 2, 3].add_(1),
        lambda: layer.bias_l0.data.add_(1),
        lambda: layer.weight_ih_l0.detach().numpy().__imul__(2),
        lambda: setattr(
            layer, "weight_ih_l0", torch.nn.Parameter(layer.weight_ih_l0.mT.contiguous().mT + 1)
        ),
    )
    with torch.no_grad():
        for write in writes:
            before = layer(x)
            write()
            exact.load_state_dict(layer.state_dict())
            torch.testing.assert_close(layer(x), exact(x))
            assert not torch.equal(layer(x), before)
