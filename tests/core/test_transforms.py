"""A layer inside PyTorch's own machinery: autocast, `torch.compile`, `torch.func`, batched gradients, and
graphs that torch saved, loaded by a process that only imports the operator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.parity import Case
from helpers.requirements import missing
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from mdlstm_tk import MDLSTM
from mdlstm_tk.backends.torch import products
from mdlstm_tk.errors import InputError


def per_sample_gradients(layer: MDLSTM, x: Tensor) -> Any:
    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, (sample[None],)).square().sum()

    return vmap(grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), x)


def dual_numbers(layer: MDLSTM, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x.cos()))).tangent


TRANSFORMS: dict[str, Callable[[MDLSTM, Tensor], Any]] = {
    "grad": lambda layer, x: grad(lambda x: layer(x).square().sum())(x),
    "vmap": lambda layer, x: vmap(layer)(torch.stack([x, -x])),
    "per-sample gradients": per_sample_gradients,
    "jvp": lambda layer, x: jvp(layer, (x,), (x.cos(),)),
    "jacobians": lambda layer, x: (jacrev(layer)(x), jacfwd(layer)(x)),
    "hessian": lambda layer, x: hessian(lambda x: layer(x).sum())(x),
    "dual numbers": dual_numbers,
    "batched gradients": lambda layer, x: torch.autograd.functional.jacobian(layer, x, vectorize=True),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # batched gradients go one by one
@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_agree_with_plain_autograd(transform: str, backend: str) -> None:
    case = Case(grid=(2, 3), batch=2, units=3, directions="all", layer_norm=True)
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    run = TRANSFORMS[transform]
    expected, actual = (run(case.layer(which, torch.float64), x) for which in ("reference", backend))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_third_derivatives() -> None:
    results = []
    for backend in ("fused", "torch", "reference"):
        layer = Case(grid=(2, 2), units=2).layer(backend, torch.float64)
        derivative = x = torch.ones(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
        for f in (layer, torch.square, torch.square):
            (derivative,) = torch.autograd.grad(f(derivative).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(derivative.sum(), list(layer.parameters())))
    torch.testing.assert_close(results[:2], [results[2]] * 2)


def test_second_derivatives_in_half_precision() -> None:
    case = Case(grid=(2, 3), units=3, layer_norm=True, dtype="bfloat16")
    results = []
    for backend, dtype in (("auto", torch.bfloat16), ("reference", torch.float64)):
        layer, x = case.layer(backend, dtype), torch.ones(1, 2, 3, 2, dtype=dtype, requires_grad=True)
        (first,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.sum(), [x, *layer.parameters()]))
    for gradient, expected in zip(*results, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=0.02 * scale)


def test_gradients_that_can_be_differentiated_are_as_precise_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = MDLSTM(2, 8, cell="stable"), torch.randn(1, 9, 10, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().square().sum()
        first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        second = torch.autograd.grad(loss, list(layer.parameters()), create_graph=True)
    for gradient, expected in zip(second, first, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_equals_a_layer_of_that_dtype(dtype: torch.dtype) -> None:
    """Autocast must not round once more what is float32 inside a sweep."""
    torch.manual_seed(0)
    layer, x = MDLSTM(2, 8, cell="stable"), torch.randn(2, 4, 5, 2)
    with torch.autocast("cpu", dtype):
        chosen = layer.backend_for(x)
        y = layer(x)
        gradients = torch.autograd.grad(y.sum(), list(layer.parameters()))
    assert chosen.name == "fused"
    half = MDLSTM(2, 8, cell="stable").to(dtype)
    half.load_state_dict(layer.state_dict())
    expected = half(x.to(dtype))
    assert y.dtype == dtype and torch.equal(y, expected)
    others = torch.autograd.grad(expected.sum(), list(half.parameters()))
    for gradient, other in zip(gradients, others, strict=True):
        assert gradient.dtype == torch.float32 and torch.equal(gradient, other.float())


SIZES = torch.tensor([[4, 5], [2, 3]])
COMPILED: list[tuple[dict[str, Any], Tensor | None]] = [
    ({"peephole": True}, None),
    ({"directions": "all", "cell": "stable"}, SIZES),
    ({"num_layers": 2, "window": 2, "cell": "leaky", "dropout": 0.0}, SIZES),
    ({"layer_norm": True, "recompute": True, "cell": "stable"}, None),
]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(("arguments", "sizes"), COMPILED)
def test_compiles_into_one_graph(arguments: dict[str, Any], sizes: Tensor | None, autocast: bool) -> None:
    torch.manual_seed(0)
    layer, x = MDLSTM(2, 8, **arguments), torch.randn(2, 4, 5, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert layer.backend_for(x).name == "fused"
        outputs = [run(x, sizes) for run in (layer, compiled)]
    gradients = [torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in outputs]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_compiled_once_for_many_sizes() -> None:
    layer, graphs = MDLSTM(2, 8, cell="leaky"), []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
    for shape in ((3, 4, 5, 2), (2, 6, 4, 2), (5, 7, 9, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("captured", [False, True])
def test_tangents_of_a_gradient_go_through_the_backward_pass(captured: bool) -> None:
    """The forward pass has run before forward-mode differentiation begins."""
    layer = Case(grid=(2, 3), units=2).layer("fused", torch.float64)
    run = torch.compile(layer, backend="eager", fullgraph=True) if captured else layer
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    y = run(x)
    v, tangent = torch.randn(2, *y.shape, dtype=torch.float64)
    with forward_ad.dual_level():
        (gradient,) = torch.autograd.grad(y, x, forward_ad.make_dual(v, tangent))
        actual = forward_ad.unpack_dual(gradient).tangent
    (expected,) = torch.autograd.grad(layer(x), x, tangent)
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_a_captured_graph_refuses_forward_mode_whose_derivative_torch_takes_for_zero() -> None:
    layer, x = MDLSTM(2, 4), torch.randn(2, 3, 4, 2)
    graph = torch.export.export(layer, (x,)).module()
    for derivative in (lambda: dual_numbers(graph, x), lambda: jvp(graph, (x,), (x,))):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="a captured graph has no derivative in forward mode"):
            derivative()


def test_a_graph_of_make_fx_takes_other_sizes() -> None:
    layer, x = MDLSTM(2, 4), torch.randn(2, 3, 4, 2)
    full, sizes = torch.tensor([[3, 4], [3, 4]]), torch.tensor([[2, 2], [3, 3]])
    graph = make_fx(lambda x, sizes: layer(x, sizes))(x, full)
    torch.testing.assert_close(graph(x, sizes), layer(x, sizes), rtol=0, atol=0)


def test_derivatives_of_a_layer_that_runs_twice() -> None:
    """The input of the second call depends on the weights, too: no way to them may count twice."""
    results = []
    for backend in ("auto", "reference"):
        layer = Case(grid=(2, 3), units=2).layer(backend, torch.float64)
        y, state = layer(torch.ones(1, 2, 3, 2, dtype=torch.float64), return_state=True)
        y, parameters = layer(y, initial_state=state), list(layer.parameters())
        first = torch.autograd.grad(y.square().sum(), parameters, create_graph=True)
        second = torch.autograd.grad(torch.cat([g.flatten() for g in first]).square().sum(), parameters)
        results.append([*first, *second])
    torch.testing.assert_close(*results)


def test_transforms_multiply_no_16_bit_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of their products in float32, as a GPU computes them, torch has no derivative."""
    dtypes, multiply = set(), products.multiply

    def recorded(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        dtypes.add(a.dtype)
        return multiply(a, b, out)

    monkeypatch.setattr(products, "multiply", recorded)
    layer, x = MDLSTM(2, 3, dtype=torch.bfloat16), torch.ones(1, 2, 2, 2, dtype=torch.bfloat16)
    assert grad(lambda x: layer(x).sum())(x).dtype == torch.bfloat16
    assert dtypes == {torch.float32}


LOAD = """
import mdlstm_tk.layer
import torch
x, expected = torch.load("tensors.pt")
for net in ({expressions},):
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(net(x[:1]), expected[:1], rtol=0, atol=1e-6)
"""


@pytest.fixture
def network() -> tuple[MDLSTM, Tensor]:
    """A layer and its input."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 4, directions="all", cell="stable").eval()
    return layer, torch.linspace(-1, 1, 2 * 3 * 4 * 2).view(2, 3, 4, 2)


def exported(layer: MDLSTM, x: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))


def load(expressions: str, layer: MDLSTM, x: Tensor, folder: Path) -> None:
    """Load graphs in a process of its own and compare their outputs with the layer's."""
    with torch.no_grad():
        torch.save((x, layer(x)), folder / "tensors.pt")
    code = LOAD.format(expressions=expressions)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and shapes become constants
def test_an_exported_program_and_a_trace(network: tuple[MDLSTM, Tensor], tmp_path: Path) -> None:
    torch.export.save(exported(*network), tmp_path / "net.pt2")
    torch.jit.trace(*network).save(str(tmp_path / "net.ts"))
    load("torch.export.load('net.pt2').module(), torch.jit.load('net.ts')", *network, tmp_path)


def test_an_exported_layer_with_windows_takes_any_extents() -> None:
    torch.manual_seed(0)
    layer, sizes = MDLSTM(2, 3, window=(2, 3)), torch.tensor([[5, 4], [2, 3]])
    extents = {1: torch.export.Dim("height", min=3), 2: torch.export.Dim("width", min=4)}
    program = torch.export.export(
        layer, (torch.randn(2, 5, 4, 2), sizes), dynamic_shapes={"x": extents, "sizes": {}}
    )
    for grid in ((5, 4), (6, 6), (9, 10)):
        x = torch.randn(2, *grid, 2)
        torch.testing.assert_close(program.module()(x, sizes), layer(x, sizes), rtol=0, atol=0)


@pytest.mark.weekly
@pytest.mark.timeout(900)  # a C++ compiler reads all of torch's headers
def test_a_package_of_aot_inductor(
    network: tuple[MDLSTM, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        missing("there is no C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    quickly = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
    torch._inductor.aoti_compile_and_package(
        exported(*network), package_path=str(tmp_path / "net.pt2"), inductor_configs=quickly
    )
    load("torch._inductor.aoti_load_package('net.pt2')", *network, tmp_path)
