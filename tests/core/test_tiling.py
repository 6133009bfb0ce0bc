"""`tiling.checkpointed`: y, final states and all gradients are those of the plain layer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.cuts import make_layer
from torch import Tensor

from mdlstm_tk import MDLSTM, InputError, tiling

pytestmark = pytest.mark.usefixtures("poisoned_memory")


MEASURE = """
import torch
from mdlstm_tk import MDLSTM, tiling
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
layer, x = MDLSTM(1, 32, directions="all"), torch.rand(1, 512, 512, 1)
tiling.checkpointed(layer, x[:, :128, :128], 64).sum().backward()  # compiles
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak()
y = tiling.checkpointed(layer, x, 128)
y.backward(gradient=y.new_ones(()).expand_as(y))
print((peak() - before) / y.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_below_half_of_the_output_beside_it() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert 1 <= float(done.stdout) < 1.5


def test_what_it_cannot_do_raises() -> None:
    layer = make_layer((3, 4), torch.float32, window=(1, 2))
    x = torch.randn(1, 3, 4, 2).requires_grad_()
    y = tiling.checkpointed(layer, x, 2)
    with pytest.raises(RuntimeError, match="once, not twice"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda x: tiling.checkpointed(layer, x, 2).sum())(x.detach())
    for tile in ((0, 2), (2, 3)):
        with pytest.raises(InputError, match=r"multiple of the layer's window \(1, 2\)"):
            tiling.checkpointed(layer, x, tile)

    class Residual(MDLSTM):
        def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
            return x + super().forward(x, *arguments, **options)

    layer.register_forward_hook(lambda *_: None)
    for custom in (layer, Residual(2, 2)):
        with pytest.raises(InputError, match="runs neither hooks nor a forward"):
            tiling.checkpointed(custom, x, 2)


def test_inside_a_checkpoint_of_torch_and_in_an_export() -> None:
    layer, x = make_layer((3, 4)), torch.randn(1, 3, 4, 2, dtype=torch.float64).requires_grad_()

    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return tiling.checkpointed(layer, x, 2)

    y = torch.utils.checkpoint.checkpoint(Network(), x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(layer(x).sum(), x))
    torch.testing.assert_close(torch.export.export(Network(), (x,)).module()(x), layer(x))
