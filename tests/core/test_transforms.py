"""A layer inside PyTorch's own machinery: autocast, `torch.compile`, `torch.func`, derivatives of any
order, and graphs that torch saved, loaded by a process that only imports the layer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cuts import make_layer, run
from helpers.parity import random_faces
from torch import Tensor
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError

SIZES = torch.tensor([[4, 5], [2, 3]])


def per_sample(layer: MDLSTM, x: Tensor) -> Any:
    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, (sample[None],)).square().sum()

    return vmap(grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), x)


def one_by_one(layer: MDLSTM, x: Tensor) -> Any:
    parameters = dict(layer.named_parameters())
    gradients = [
        torch.autograd.grad(layer(sample[None]).square().sum(), list(parameters.values())) for sample in x
    ]
    return dict(zip(parameters, map(torch.stack, zip(*gradients, strict=True)), strict=True))


def dual(layer: Any, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x.cos()))).tangent


Pair = tuple[Callable[[MDLSTM, Tensor], Any], Callable[[MDLSTM, Tensor], Any]]
TRANSFORMS: dict[str, Pair] = {  # and the same by plain autograd
    "vmap": (
        lambda layer, x: vmap(layer)(torch.stack([x, -x])),
        lambda layer, x: torch.stack([layer(x), layer(-x)]),
    ),
    "per-sample gradients": (per_sample, one_by_one),
    "jvp": (
        lambda layer, x: jvp(lambda x: layer(x, [[2, 3], [1, 2]]), (x,), (x.cos(),)),
        lambda layer, x: functional.jvp(lambda x: layer(x, [[2, 3], [1, 2]]), x, x.cos()),
    ),
    "dual numbers": (dual, lambda layer, x: functional.jvp(layer, x, x.cos())[1]),
}


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_agree_with_plain_autograd(transform: str, backend: str) -> None:
    layer = make_layer((2, 3), units=3, directions="all", layer_norm=True, backend=backend)
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    actual, expected = (run(layer, x) for run in TRANSFORMS[transform])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize(("cell", "grid"), [("graves", (2, 2)), ("slstm", (2,))], ids=str)
def test_first_and_second_derivatives(cell: str, grid: tuple[int, ...], backend: str) -> None:
    layer = make_layer(grid, units=2, cell=cell, directions=[(1, -1)[: len(grid)]], backend=backend)
    x = torch.randn(2, *grid, 2, dtype=torch.float64).requires_grad_()
    faces, sizes = random_faces(2, grid, 1, 2, cell), torch.tensor([[2, 2], [2, 1]])[:, -len(grid) :]

    def function(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        y, last = run(layer, x, list(others[: len(faces)]), sizes)
        return y, *last

    leaves = (x, *faces, *layer.parameters())  # which the checks perturb in place
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)
    frozen = (x.detach(), *leaves[1:])
    assert torch.autograd.gradgradcheck(function, frozen)


def test_derivatives_of_a_layer_that_runs_twice() -> None:
    """The input of the second call depends on the weights, too: no way to them may count twice."""
    layer, x = make_layer((2, 3), units=2), torch.ones(1, 2, 3, 2, dtype=torch.float64)

    def loss(*parameters: Tensor) -> Tensor:
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return functional_call(layer, named, (functional_call(layer, named, (x,)),)).square().sum()

    parameters = tuple(p.detach().requires_grad_() for p in layer.parameters())
    assert torch.autograd.gradgradcheck(loss, parameters)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_autocast_computes_as_a_layer_in_16_bits(backend: str) -> None:
    """And gradients that can be differentiated are as precise as others."""
    torch.manual_seed(0)
    layer, x = MDLSTM(2, 8, cell="stable", backend=backend), torch.randn(2, 4, 5, 2)
    half = MDLSTM(2, 8, cell="stable", backend=backend).bfloat16()
    half.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        gradients = torch.autograd.grad(y.sum(), list(layer.parameters()), retain_graph=True)
        again = torch.autograd.grad(y.sum(), list(layer.parameters()), create_graph=True)
    expected = half(x.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    others = torch.autograd.grad(expected.sum(), list(half.parameters()))
    for gradient, other, second in zip(gradients, others, again, strict=True):
        assert gradient.dtype == torch.float32
        assert backend == "torch" or torch.equal(gradient, other.float())
        scale = gradient.abs().max().item()
        torch.testing.assert_close([second, other.float()], [gradient] * 2, rtol=0, atol=0.02 * scale)


COMPILED: list[tuple[dict[str, Any], Tensor | None]] = [
    ({"peephole": True}, None),
    ({"directions": "all", "cell": "stable"}, SIZES),
    ({"num_layers": 2, "window": 2, "cell": "leaky", "dropout": 0.0, "backend": "torch"}, SIZES),
    ({"layer_norm": True, "recompute": True, "cell": "slstm"}, None),
]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(("arguments", "sizes"), COMPILED)
def test_compiles_into_one_graph(arguments: dict[str, Any], sizes: Tensor | None, autocast: bool) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(2, 8, **arguments)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for other in (sizes, sizes if sizes is None else sizes.flip(0)):  # it knows neither values nor rows
        x, states = torch.randn(2, 4, 5, 2, requires_grad=True), [*layer.parameters()]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = [run(x, other, return_state=True) for run in (layer, compiled)]
        sums = [y.square().sum() + sum(s.c[0].sum() for s in final) for y, final in outputs]
        gradients = [torch.autograd.grad(each, [x, *states]) for each in sums]
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(gradients[1], gradients[0])


def test_a_captured_graph_refuses_forward_mode_whose_derivative_torch_takes_for_zero() -> None:
    layer, x = MDLSTM(2, 4), torch.randn(2, 3, 4, 2)
    graph = torch.export.export(layer, (x,)).module()
    for derivative in (lambda: dual(graph, x), lambda: jvp(graph, (x,), (x,))):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="no derivative in forward mode"):
            derivative()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_captured_graphs_take_other_inputs_and_can_be_trained() -> None:
    layer, (x, other) = (
        make_layer((4, 5), directions="all"),
        torch.randn(2, 2, 4, 5, 2, dtype=torch.float64),
    )
    dims = (
        {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("height")},
        {0: torch.export.Dim.AUTO},
    )
    with torch.no_grad():
        frozen = torch.export.export(layer, (x, SIZES)).module()  # without what backward needs
    graphs = [
        torch.jit.trace(layer, (x, SIZES)),
        make_fx(lambda x, sizes: layer(x, sizes))(x, SIZES),
        frozen,
        *(
            torch.export.export(layer, (x, SIZES), dynamic_shapes=dims, strict=strict).module()
            for strict in (False, True)
        ),
    ]
    others = [(other, SIZES.flip(0))] * 3 + [(other[:1, :3], SIZES[1:])] * 2
    for graph, inputs in zip(graphs, others, strict=True):
        torch.testing.assert_close(graph(*inputs), layer(*inputs), rtol=0, atol=1e-14)
    for batch, height in ((1, 1), (3, 2), (2, 9)):  # the one that was captured for any batch and height
        sizes = torch.tensor([[1, 5], [height, 1], [height, 4]])[:batch]
        inputs = torch.randn(batch, height, 5, 2, dtype=torch.float64), sizes
        torch.testing.assert_close(graphs[-2](*inputs), layer(*inputs), rtol=0, atol=1e-14)
    for graph in (graphs[0], *graphs[2:]):
        gradients = []
        for net in (graph, layer):
            names, weights = zip(*net.named_parameters(), strict=True)
            loss = net(x, SIZES).square().sum()
            found = torch.autograd.grad(loss, weights, create_graph=graph is frozen)
            gradients.append(dict(zip(names, found, strict=True)))
        torch.testing.assert_close(*gradients)


LOAD = """
import mdlstm_tk.layer
import torch
x, expected = torch.load("tensors.pt")
for net in torch.export.load("net.pt2").module(), torch.jit.load("net.ts"):
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
"""


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and shapes become constants
def test_a_process_that_only_imports_the_layer_loads_graphs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, x = MDLSTM(2, 4, directions="all", cell="stable"), torch.randn(2, 3, 4, 2)
    with torch.no_grad():
        torch.save((x, layer(x)), tmp_path / "tensors.pt")
        torch.export.save(torch.export.export(layer, (x,)), tmp_path / "net.pt2")
        torch.jit.trace(layer, x).save(str(tmp_path / "net.ts"))
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
