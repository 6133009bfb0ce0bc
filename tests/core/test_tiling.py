"""`tiling.checkpointed`: y, final states and all gradients are those of the plain layer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.cuts import make_layer, results, run_in_parts
from helpers.parity import random_faces, to_state
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mdlstm_tk import MDLSTM, InputError, tiling

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


@pytest.mark.parametrize("direction", [(1, 1), (-1, 1), (-1, -1)], ids=str)
@pytest.mark.parametrize("detach_every", [1, 2])
def test_gradients_are_cut_every_few_tiles(direction: tuple[int, int], detach_every: int) -> None:
    """Between blocks of `detach_every` tiles, which are counted from the corner where the sweep begins."""
    grid, tile = (6, 9), 2
    layer = make_layer(grid, directions=[direction])
    x = torch.randn(2, *grid, 2, dtype=torch.float64).requires_grad_()
    faces = random_faces(2, grid, 1)
    leaves = [x, *faces, *layer.parameters()]
    cuts = []
    for extent, sign in zip(grid, direction, strict=True):
        places = list(range(tile, extent, tile))  # where tiles meet
        cuts.append(sorted(places[::sign][detach_every - 1 :: detach_every]))
    expected = results(*run_in_parts(layer, x, faces, cuts, detach=True), leaves)
    y, last = tiling.checkpointed(
        layer, x, tile, initial_state=(to_state(faces),), return_state=True, detach_every=detach_every
    )
    actual = results(y, tree_leaves(last), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("direction", [(1, 1), (-1, 1), (1, -1), (-1, -1)], ids=str)
def test_cut_gradients_of_a_padded_sample_are_those_of_the_sample_alone(direction: tuple[int, int]) -> None:
    """Those of parameters and of initial states: where a sample has no positions, nothing is cut."""
    grid, tile, sizes = (6, 8), 2, [(6, 8), (2, 8), (4, 2), (2, 2), (6, 4)]
    layer, faces = make_layer(grid, directions=[direction]), random_faces(len(sizes), grid, 1)
    x = torch.randn(len(sizes), *grid, 2, dtype=torch.float64)
    options: dict[str, Any] = {"tile": tile, "return_state": True, "detach_every": 1}

    def gradients(x: Tensor, faces: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
        y, states = tiling.checkpointed(layer, x, initial_state=(to_state(faces),), **options)
        loss = sum(tensor.square().sum() for tensor in (y, *tree_leaves(states)))
        return torch.autograd.grad(loss, [*layer.parameters(), *faces])  # type: ignore[arg-type]

    for k, (height, width) in enumerate(sizes):
        one = slice(k, k + 1)
        inside = [(slice(None), slice(lines)) for lines in (width, height)] * 2  # of h and c, by axis
        whole = [face[one].detach().requires_grad_() for face in faces]
        cut = [face[lines].detach().requires_grad_() for face, lines in zip(whole, inside, strict=True)]
        expected = gradients(x[one, :height, :width], cut, **options)
        actual = gradients(x[one], whole, sizes=sizes[one], **options)
        own, of_faces = actual[: -len(faces)], actual[-len(faces) :]
        of_sample = [face[lines] for face, lines in zip(of_faces, inside, strict=True)]
        torch.testing.assert_close([*own, *of_sample], [*expected], rtol=1e-12, atol=1e-12)


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
