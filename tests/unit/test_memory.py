"""What a sweep keeps, and what it takes at most."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mdlstm_tk import MDLSTM

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_kept_for_backward(recompute: bool) -> None:
    layer, x = MDLSTM(1, 32, directions="all", recompute=recompute), torch.randn(2, 16, 16, 1)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    given = [x, *layer.parameters()]
    total = sum(kept.values()) - sum(t.untyped_storage().nbytes() for t in given)
    numbers = 2 * 32 if recompute else (5 + 2) * 32  # (G + 2)·n a cell and direction
    assert 0 < total <= 1.05 * numbers * 4 * 2 * 16 * 16 * 4


@pytest.mark.parametrize("recompute", [False, True])
def test_peak_memory_of_training(recompute: bool) -> None:
    layer = MDLSTM(1, 32, backend="fused", recompute=recompute)
    x, grad = torch.randn(1, 128, 128, 1), torch.randn(1, 128, 128, 32)
    layer(x).backward(grad)
    cells = 128 * 128
    numbers = 2 if recompute else 5 + 2
    assert cells * 2 * 32 * 4 < _peak(lambda: layer(x).backward(grad)) <= 1.25 * cells * numbers * 32 * 4


def test_peak_memory_of_training_where_threads_have_a_dx_each() -> None:
    layer = MDLSTM(128, 32, directions="all", backend="fused")
    x, grad = torch.randn(1, 128, 128, 128, requires_grad=True), torch.randn(1, 128, 128, 128)
    torch.set_num_threads(4)
    layer(x).backward(grad)
    kept, dx = 128 * 128 * 4 * (5 + 2) * 32 * 4, x.nbytes
    assert kept + 2 * dx < _peak(lambda: layer(x).backward(grad)) <= 1.25 * kept + 4 * dx


def test_memory_of_inference() -> None:
    layer, x = MDLSTM(1, 32, backend="fused"), torch.randn(1, 128, 128, 1)
    cells = 128 * 128
    with torch.no_grad():
        layer(x)
        peak = _peak(lambda: layer(x))
    assert cells * 32 * 4 < peak < 1.25 * cells * 32 * 4  # the output and two wavefronts


def _peak(run: Callable[[], object]) -> int:
    """Bytes of tensors that `run` has at most, beside those there were before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
