"""`mdlstm::wavefront` and its gradient: what they refuse, what captures them, what they fall back to."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.parity import Case
from helpers.without_packages import IMPORT_HOOK
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mdlstm_tk import MDLSTM, InputError, clear_caches
from mdlstm_tk import operator as wavefront_operator
from mdlstm_tk.backends import dispatch
from mdlstm_tk.backends.cpu import compile as cpu_compile
from mdlstm_tk.backends.torch import sweep as torch_sweep

NAMES = ("x", "weight_ih", "weight_hh", "bias", "peephole", "norm_weight", "norm_bias", "sizes")
RESIDUALS = ("grad", "output", "gates", "c")


def arguments(
    cell: str = "graves", dtype: torch.dtype = torch.float32, gradients: bool = False, **options: Any
) -> dict[str, Any]:
    """The operator's first ten arguments, for two samples of 3×4 positions in two directions."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 5, cell=cell, directions=[(1, 1), (-1, 1)], **options).to(dtype)
    parameters = [getattr(layer, f"{name}_l0", None) for name in NAMES[1:7]]
    tensors = [torch.randn(2, 3, 4, 2, dtype=dtype), *parameters]
    given = [None if t is None else t.detach().requires_grad_(gradients) for t in tensors]
    sizes = torch.tensor([[3, 4], [2, 1]])
    return dict(zip(NAMES, [*given, sizes], strict=True)) | {"directions": [1, 1, -1, 1], "cell": cell}


def forward(
    given: dict[str, Any], backend: str = "auto", save: bool = True, recompute: bool = False
) -> Any:
    return wavefront_operator.wavefront(*given.values(), save, recompute, backend)


def backward(given: dict[str, Any], backend: str = "auto", **changed: Tensor) -> Any:
    """Backward with what forward saved, some of it changed."""
    output, gates, c = forward(given, backend)
    residuals = {"grad": torch.ones_like(output), "output": output, "gates": gates, "c": c} | changed
    return wavefront_operator.wavefront_backward(*residuals.values(), *given.values(), backend, True)


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "another dtype": lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.float32),
    "another device": lambda t: t.to("meta"),
    "one row less": lambda t: t[..., :-1],
    "one axis more": lambda t: t[None],
}


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_checked(name: str, mistake: str, backend: str) -> None:
    given = arguments(peephole=True, layer_norm=True)
    given[name] = MISTAKES[mistake](given[name])
    with pytest.raises(InputError) as refused:
        forward(given, backend)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value) or name == "x"  # the others no longer fit x
    residuals = [torch.zeros(0)] * 4
    with pytest.raises(InputError):
        wavefront_operator.wavefront_backward(*residuals, *given.values(), backend, True)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", RESIDUALS)
def test_every_residual_is_checked(name: str, mistake: str, backend: str) -> None:
    given = arguments()
    residuals = dict(zip(RESIDUALS[1:], forward(given, backend), strict=True))
    residuals["grad"] = torch.ones_like(residuals["output"])
    with pytest.raises(InputError, match=name) as refused:
        backward(given, backend, **{name: MISTAKES[mistake](residuals[name])})
    assert "\n" not in str(refused.value)


def test_backward_of_a_forward_that_saved_nothing_is_refused() -> None:
    given = arguments()
    with pytest.raises(InputError, match="c must be"):
        backward(given, **dict(zip(RESIDUALS[1:], forward(given, save=False), strict=True)))


@pytest.mark.parametrize("backend", ["auto", "fused", "torch"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool, torch.float8_e5m2], ids=str)
def test_only_four_dtypes_are_accepted(dtype: torch.dtype, backend: str) -> None:
    given = arguments() | {"sizes": None}
    given = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in given.items()}
    meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in given.items()}
    for inputs in (given, meta):
        with pytest.raises(InputError, match=str(dtype).removeprefix("torch.")):
            forward(inputs, backend)


@pytest.mark.parametrize("backend", ["nonsense", "reference", ""])
def test_an_unknown_backend_is_refused_also_at_capture(backend: str) -> None:
    given = arguments()
    meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in given.items()}
    for inputs in (given, meta):
        with pytest.raises(InputError, match="backend must be one of auto, fused, torch"):
            forward(inputs, backend)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"norm_bias": None}, "norm_bias"),
        ({"weight_hh": None}, "weight_hh"),
        ({"cell": "stable"}, "peephole"),
        ({"cell": "no-such-cell"}, "no-such-cell"),
        ({"directions": [1, 1]}, "directions"),
        ({"directions": [1, 1, -1, 0]}, "directions"),
        ({"weight_ih": torch.ones(2, 0, 2)}, "weight_ih"),
        ({"weight_ih": torch.ones(0, 25, 2)}, "weight_ih"),
        ({"x": torch.ones(2, 0, 4, 2)}, "grid"),
    ],
    ids=str,
)
def test_inputs_that_do_not_go_together_are_refused(
    changed: dict[str, Any], named: str, backend: str
) -> None:
    with pytest.raises(InputError, match=named):
        forward(arguments(peephole=True, layer_norm=True) | {"sizes": None} | changed, backend)


@pytest.mark.parametrize(
    ("backend", "dtype", "gradients", "recompute"),
    [
        ("fused", torch.float32, True, False),
        ("fused", torch.bfloat16, False, True),
        ("torch", torch.float32, True, True),
    ],
    ids=str,
)
def test_both_operators_are_what_their_schemas_and_fakes_say(
    backend: str, dtype: torch.dtype, gradients: bool, recompute: bool
) -> None:
    given = arguments("stable", dtype, gradients, layer_norm=True)
    if not recompute:
        given["sizes"] = None  # kernels leave the gates of padded positions as they find them
    check = torch.library.opcheck
    for save in (False, True):
        check(wavefront_operator.wavefront, (*given.values(), save, recompute, backend))
    saved = [t.detach() for t in forward(given, backend, recompute=recompute)]
    grad = torch.randn(saved[0].shape).to(dtype).requires_grad_(gradients)
    check(wavefront_operator.wavefront_backward, (grad, *saved, *given.values(), backend, True))


@pytest.fixture
def fresh_choices() -> Iterator[None]:
    """Nothing is known of any device, and afterwards nothing of what the test did to it."""
    states = (dispatch._failures, dispatch._failed_late, dispatch._warned)

    def clear() -> None:
        for cached in (dispatch.choose, dispatch.engine, cpu_compile.get_kernel, cpu_compile.get_packer):
            cached.cache_clear()
        for state in states:
            state.clear()
        clear_caches()

    clear()
    yield
    clear()


def test_the_device_of_x_decides_whatever_was_captured(fresh_choices: None) -> None:
    """There is no other device in every installation, so this looks at the choice."""
    cpu, xpu = torch.device("cpu"), torch.device("xpu")
    for backend in ("auto", "fused"):
        assert dispatch.engine(backend, cpu, torch.float32).__name__.endswith("cpu.launch")
    assert dispatch.engine("auto", xpu, torch.float32) is torch_sweep
    with pytest.raises(InputError, match="xpu"):
        dispatch.engine("fused", xpu, torch.float32)


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_captured_graphs_hold_what_was_asked_for_and_no_choice(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = MDLSTM(2, 4, backend=backend), torch.randn(2, 3, 4, 2)
    graphs = [torch.export.export(layer, (x,)).module(), torch.jit.trace(layer, x)]
    asked: list[tuple[Any, ...]] = []

    def engine(*arguments: Any) -> Any:
        asked.append(arguments)
        return torch_sweep  # as if x were on another device

    expected = layer(x)
    monkeypatch.setattr(wavefront_operator, "engine", engine)
    for graph in graphs:
        torch.testing.assert_close(graph(x), expected)
        assert asked.pop() == (backend, x.device, x.dtype)


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("fails", ["forward", "backward", "recompute", "pack", "pack_transposed"])
def test_a_kernel_that_does_not_compile_is_replaced(
    fails: str, monkeypatch: pytest.MonkeyPatch, fresh_choices: None
) -> None:
    """Also where only backward fails: the gates that the kernels of both layers saved mean something else
    to the backend that takes over."""
    torch.manual_seed(0)
    recompute = fails == "recompute"
    layers = [
        MDLSTM(2, 4, num_layers=2, directions="all", recompute=recompute, backend=backend)
        for backend in ("auto", "reference")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 3, 4, 2)
    compile_kernel, compile_packer = cpu_compile._compile, cpu_compile.njit_cached

    def broken_kernel(name: str, pass_kind: str, *others: Any) -> Any:
        if pass_kind == fails:
            raise BrokenError("LLVM has changed")
        return compile_kernel(name, pass_kind, *others)

    def broken_packer(function: Any, signature: str) -> Any:
        if function.__name__ == f"{fails}_float32":
            raise BrokenError("LLVM has changed")
        return compile_packer(function, signature)

    monkeypatch.setattr(cpu_compile, "_compile", broken_kernel)
    monkeypatch.setattr(cpu_compile, "njit_cached", broken_packer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y, expected = (layer(x) for layer in layers)
        gradients, truth = (
            torch.autograd.grad(out.square().sum(), list(layer.parameters()))
            for out, layer in zip((y, expected), layers, strict=True)
        )
        assert torch.equal(layers[0](x), layers[0](x))
    assert [str(w.message).count("LLVM has changed") for w in caught] == [1]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients, truth)
    chosen = layers[0].backend_for(x)
    assert chosen.name == "torch" and "LLVM has changed" in chosen.reason
    with pytest.raises(InputError, match="LLVM has changed"):
        MDLSTM(2, 4, backend="fused")(x)


BROKEN_NUMBA = {
    "switched off": ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "NUMBA_DISABLE_JIT"),
    "not installed": (IMPORT_HOOK.format(names=("numba", "llvmlite")), "No module named 'numba'"),
    "broken": ("import sys; sys.path.insert(0, 'broken')", "needs NumPy 1.0"),
}
WITHOUT_NUMBA = """
import warnings
import torch
from mdlstm_tk import MDLSTM, InputError, clear_caches
from mdlstm_tk._util.diagnostics import check_installation
x = torch.ones(1, 3, 4, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y, other = (MDLSTM(2, 4)(x.to(dtype)) for dtype in (torch.float32, torch.float32))
    y.sum().backward()
print(*(warning.message for warning in caught), sep="\\n")
print(MDLSTM(2, 4).backend_for(x))
try:
    MDLSTM(2, 4, backend="fused")(x)
except InputError as error:
    print(error)
print([check.state for check in check_installation() if check.name == "kernels for the CPU"])
"""


@pytest.mark.parametrize("case", BROKEN_NUMBA)
def test_without_a_working_numba_the_torch_backend_runs(case: str, tmp_path: Path) -> None:
    setup, reason = BROKEN_NUMBA[case]
    package = tmp_path / "broken" / "numba"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemError('Numba needs NumPy 1.0 or less')")
    code = f"{setup}\n{WITHOUT_NUMBA}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    *warned, choice, refused, doctor = done.stdout.splitlines()
    assert len(warned) == 1 and reason in warned[0]
    assert "name='torch'" in choice and reason in choice
    assert "backend='fused'" in refused and reason in refused
    assert doctor == ("['absent']" if case == "not installed" else "['broken']")


class Net(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = MDLSTM(2, 4, directions="all", num_layers=2, **options)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        y: Tensor = self.head(self.layer(x, sizes))
        return y


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("sizes", [None, torch.tensor([[3, 4], [2, 1]])], ids=["full", "sizes"])
def test_a_trace_equals_the_network_and_can_be_trained(sizes: Tensor | None, backend: str) -> None:
    net, x = Net(backend=backend), torch.randn(2, 3, 4, 2)
    inputs = (x,) if sizes is None else (x, sizes)
    traced = torch.jit.trace(net, inputs)
    assert str(traced.inlined_graph).count("mdlstm::wavefront") == 2
    y = traced(*inputs)
    assert torch.equal(y, net(*inputs))
    gradients = torch.autograd.grad(y.sum(), list(net.parameters()))
    torch.testing.assert_close(gradients, torch.autograd.grad(net(*inputs).sum(), list(net.parameters())))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tensorboard_draws_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(Net(), torch.randn(1, 3, 4, 2))
    graph = EventAccumulator(str(tmp_path)).Reload().Graph()
    assert "mdlstm::wavefront" in {node.op for node in graph.node}


FLOPS = [
    # positions · (W: G·n·C, U_1 and U_2: 2·G·n·n) · directions · 2, with G·n = 5·4 and n = 4
    ({"directions": "all"}, 2 * 12 * 4 * 2, 20 * 2, 20 * 8),
    ({"cell": "leaky"}, 2 * 12 * 1 * 2, 20 * 2, 20 * 8),
    ({"recompute": True}, 2 * 12 * 1 * 2, 20 * 2, 20 * 8),
    ({"backend": "torch", "layer_norm": True}, 2 * 12 * 1 * 2, 20 * 2, 20 * 8),
]


@pytest.mark.parametrize("wants_dx", [False, True], ids=["weights", "weights and x"])
@pytest.mark.parametrize(("options", "rows", "of_x", "of_h"), FLOPS, ids=lambda value: str(value))
def test_floating_point_operations_are_those_of_the_products(
    options: dict[str, Any], rows: int, of_x: int, of_h: int, wants_dx: bool
) -> None:
    layer, x = MDLSTM(2, 4, **options), torch.randn(2, 3, 4, 2, requires_grad=wants_dx)
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert counter.get_total_flops() == rows * (of_x + of_h)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    products = of_x + 2 * of_h + (of_x if wants_dx else 0)  # dW, dU and dh, and dx
    again = of_x + of_h if "recompute" in options else 0
    assert counter.get_total_flops() == rows * (products + again)


def test_floating_point_operations_of_one_axis_are_those_that_torch_counts_in_its_lstm() -> None:
    """With one axis, the layer is `torch.nn.LSTM`: here step by step, with products that torch counts."""
    layer = MDLSTM(3, 5, ndim=1)
    x, cell = torch.randn(2, 7, 3), nn.LSTMCell(3, 5)
    with FlopCounterMode(display=False) as ours:
        layer(x).sum().backward()
    with FlopCounterMode(display=False) as theirs:
        state = (torch.zeros(2, 5, requires_grad=True), torch.zeros(2, 5))
        for t in range(7):
            state = cell(x[:, t], state)
        state[0].sum().backward()
    assert ours.get_total_flops() == theirs.get_total_flops() > 0


def test_double_backward_through_a_captured_graph() -> None:
    case = Case(grid=(2, 2), units=2)
    layer = case.layer("fused", torch.float64)
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    graph = torch.export.export(layer, (x,)).module()
    results = []
    for run in (layer, graph):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), list(run.parameters())))
    torch.testing.assert_close(*results)
