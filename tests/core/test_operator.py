"""`mdlstm::wavefront` and its gradient: what they refuse, what captures them, what they fall back to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.parity import Case
from helpers.refusal import refused
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mdlstm_tk import MDLSTM, Gate, InputError, register_cell
from mdlstm_tk.layer import PARAMETERS

CONTEXT = ("grad", "output", "gates", "states", "dfinal")
SIZES = torch.tensor([[3, 4], [2, 1]])


def inputs_of(
    cell: str = "graves", dtype: torch.dtype = torch.float32, gradients: bool = False, **options: Any
) -> dict[str, Any]:
    """The fields of `SweepInputs` for two samples of 3×4 positions in two directions."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 5, cell=cell, directions=[(1, 1), (-1, 1)], **options).to(dtype)
    precise = torch.float32 if dtype.itemsize == 2 else dtype
    tensors = {
        "x": torch.randn(2, 3, 4, 2, dtype=dtype),
        **{name: getattr(layer, f"{name}_l0", None) for name in PARAMETERS},
        "initial": torch.rand(2, 7, 2, 2, 5, dtype=precise),
    }
    inputs = {k: None if t is None else t.detach().requires_grad_(gradients) for k, t in tensors.items()}
    return {**inputs, "sizes": SIZES, "signs": [1, 1, -1, 1], "cell": cell}


def forward(
    inputs: dict[str, Any], backend: str = "auto", save: bool = True, recompute: bool = False
) -> Any:
    return torch.ops.mdlstm.wavefront(*inputs.values(), save, recompute, backend)


def context_of(inputs: dict[str, Any], backend: str = "auto", **options: bool) -> dict[str, Tensor]:
    """The arguments of backward beside the inputs."""
    output, final, gates, states = (t.detach() for t in forward(inputs, backend, **options))
    values = (torch.ones_like(output), output, gates, states, torch.ones_like(final))
    return dict(zip(CONTEXT, values, strict=True))


def backward(inputs: dict[str, Any], context: dict[str, Tensor]) -> Any:
    return torch.ops.mdlstm.wavefront_backward(
        *inputs.values(), *context.values(), False, "auto", True, True
    )


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "another dtype": lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.float32),
    "another device": lambda t: t.to("meta"),
    "one row less": lambda t: t[..., :-1],
    "one axis more": lambda t: t[None],
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["x", *PARAMETERS, "initial", "sizes"])
def test_every_input_is_checked(name: str, mistake: str) -> None:
    inputs = inputs_of(peephole=True, layer_norm=True)
    inputs[name] = MISTAKES[mistake](inputs[name])
    with pytest.raises(InputError) as refused:
        forward(inputs)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value) or name == "x"  # the others no longer fit x
    with pytest.raises(InputError):
        backward(inputs, dict.fromkeys(CONTEXT, torch.zeros(0)))


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", CONTEXT)
def test_everything_that_backward_reads_is_checked(name: str, mistake: str) -> None:
    inputs = inputs_of()
    context = context_of(inputs)
    context[name] = MISTAKES[mistake](context[name])
    refused(name, lambda: backward(inputs, context))


def test_backward_of_a_forward_that_saved_nothing_is_refused() -> None:
    inputs = inputs_of()
    refused("states must be", lambda: backward(inputs, context_of(inputs, save=False)))


NO_STATES = {"initial": None, "sizes": None}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"norm_bias": None}, "norm_bias"),
    ({"weight_hh": None}, "weight_hh"),
    ({"cell": "stable"}, "peephole"),
    ({"cell": "no-such-cell"}, "no-such-cell"),
    ({"signs": [1, 1]}, "directions"),
    ({"signs": [1, 1, -1, 0]}, "directions"),
    ({"weight_ih": torch.ones(2, 0, 2)}, "weight_ih"),
    ({"weight_ih": torch.ones(0, 25, 2)}, "weight_ih"),
    ({"x": torch.ones(2, 0, 4, 2)}, "grid"),
]


@pytest.mark.parametrize(("changed", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_inputs_that_do_not_go_together_are_refused(changed: dict[str, Any], named: str) -> None:
    refused(named, lambda: forward(inputs_of(peephole=True, layer_norm=True) | NO_STATES | changed))


def test_a_grid_of_more_positions_than_tables_can_count_is_refused_before_it_costs_anything() -> None:
    x = torch.ones(1, 1, 1, 2).expand(1, 70_000, 70_000, 2)
    for run in (MDLSTM(2, 3), MDLSTM(2, 3, backend="torch"), MDLSTM(2, 3).requires_grad_(False)):
        with pytest.raises(InputError, match=r"got 4900000000 in a grid 70000×70000; .*as initial_state"):
            run(x)


@pytest.mark.parametrize(
    ("dtype", "backend", "named"),
    [
        (torch.complex64, "auto", "complex64"),
        (torch.int32, "fused", "int32"),
        (torch.bool, "torch", "bool"),
        (torch.float32, "reference", "one of auto, fused, torch"),
    ],
    ids=str,
)
def test_dtypes_and_backends_are_checked_also_at_capture(
    dtype: torch.dtype, backend: str, named: str
) -> None:
    inputs = inputs_of() | NO_STATES
    for device in ("cpu", "meta"):
        converted = {k: v.to(device, dtype) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        with pytest.raises(InputError, match=named):
            forward(converted, backend)


@pytest.mark.parametrize(
    ("backend", "dtype", "gradients", "recompute", "states"),
    [
        ("fused", torch.float32, True, False, True),
        ("fused", torch.bfloat16, False, True, False),
        ("torch", torch.float32, True, True, True),
    ],
    ids=str,
)
def test_both_operators_are_what_their_schemas_and_fakes_say(
    backend: str, dtype: torch.dtype, gradients: bool, recompute: bool, states: bool
) -> None:
    inputs = inputs_of("stable", dtype, gradients, layer_norm=True) | ({} if states else {"initial": None})
    if backend == "fused":
        inputs["sizes"] = None  # kernels leave what they keep of padded positions as they find it
    check = torch.library.opcheck
    for save in (False, True):
        check(torch.ops.mdlstm.wavefront, (*inputs.values(), save, recompute, backend))
    context = context_of(inputs, backend, recompute=recompute) | ({} if states else {"dfinal": None})
    plain = [v.detach() if isinstance(v, Tensor) else v for v in (inputs | context).values()]
    check(torch.ops.mdlstm.wavefront_backward, (*plain, recompute, backend, True, True))


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
@pytest.mark.parametrize("sizes", [None, SIZES], ids=["full", "sizes"])
def test_a_trace_equals_the_network_and_can_be_trained(sizes: Tensor | None, backend: str) -> None:
    net, x = Net(backend=backend), torch.randn(2, 3, 4, 2)
    inputs = (x,) if sizes is None else (x, sizes)
    traced = torch.jit.trace(net, inputs)
    assert str(traced.inlined_graph).count("mdlstm::wavefront") == 2
    y = traced(*inputs)
    assert torch.equal(y, net(*inputs))
    gradients = torch.autograd.grad(y.sum(), list(net.parameters()))
    torch.testing.assert_close(gradients, torch.autograd.grad(net(*inputs).sum(), list(net.parameters())))


@pytest.mark.parametrize(
    ("wants_dx", "wants_weights"),
    [(False, True), (True, True), (True, False)],
    ids=["weights", "weights and x", "x"],
)
@pytest.mark.parametrize(
    ("options", "dirs"),
    [
        ({"directions": "all"}, 4),
        ({"cell": "leaky", "recompute": True}, 1),
        ({"backend": "torch", "layer_norm": True}, 1),
    ],
    ids=str,
)
def test_floating_point_operations_are_those_of_the_products(
    options: dict[str, Any], dirs: int, wants_dx: bool, wants_weights: bool
) -> None:
    layer, x = MDLSTM(2, 4, **options), torch.randn(2, 3, 4, 2, requires_grad=wants_dx)
    layer.requires_grad_(wants_weights)
    rows = 2 * 2 * 12 * dirs  # a multiplication and an addition, for each sample and position
    of_x, of_h = 5 * 4 * 2, 5 * 4 * 2 * 4  # W: G·n·C; U_1 and U_2: 2·G·n·n
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert counter.get_total_flops() == rows * (of_x + of_h)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    products = of_h + wants_weights * (of_x + of_h) + wants_dx * of_x  # dh; dW and dU; dx
    again = of_x + of_h if "recompute" in options else 0
    assert counter.get_total_flops() == rows * (products + again)


COUNT = """
import torch
{before}
from mdlstm_tk import MDLSTM
layer, x = MDLSTM(2, 4), torch.randn(2, 3, 4, 2)
y = layer(x)
graph = torch.export.export(layer, (x,)).module()
from torch.utils.flop_counter import FlopCounterMode
run = {run}
with FlopCounterMode(display=False) as counter:
    run()
print(counter.get_total_flops())
"""
COUNTER = "import torch.utils.flop_counter"


@pytest.mark.parametrize(
    ("before", "run", "flops"),
    [
        ("", "lambda: layer(x)", 9600),
        ("", "lambda: y.sum().backward()", 17280),
        (COUNTER, "lambda: graph(x)", 9600),  # which runs without a layer
    ],
)
def test_a_counter_of_operations_may_be_imported_after_the_layer(before: str, run: str, flops: int) -> None:
    """And may be switched on between forward and backward."""
    code = COUNT.format(before=before, run=run)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == flops


@pytest.mark.parametrize("backend", ["fused", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "sizes", [pytest.param(None, marks=pytest.mark.slow), SIZES], ids=["full", "sizes"]
)
def test_compiled_autograd_of_an_eager_layer(sizes: Tensor | None, backend: str) -> None:
    from torch._dynamo import compiled_autograd

    net, x = Net(backend=backend), torch.randn(2, 3, 4, 2)
    expected = torch.autograd.grad(net(x, sizes).square().sum(), list(net.parameters()))
    loss = net(x, sizes).square().sum()
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], list(expected))


@pytest.mark.parametrize("captured", ["exported", "compiled"])
def test_a_graph_of_a_cell_that_was_defined_again_is_refused(captured: str, fresh_registries: None) -> None:
    def define(factor: float) -> None:
        @register_cell("mine", gates=[Gate("z", "tanh")], states=())
        def mine(gates: Any, states: Any) -> Any:
            return factor * gates[0] + 0.5 * states["h"][0], {}

    define(1.0)
    layer, x = MDLSTM(2, 4, cell="mine"), torch.randn(2, 3, 4, 2)
    if captured == "exported":
        run: Any = torch.export.export(layer, (x,)).module()
    else:
        run = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = run(x)
    gradients = torch.autograd.grad(y.sum(), list(run.parameters()), retain_graph=True)
    define(1.0)  # the same equations
    torch.testing.assert_close(torch.autograd.grad(y.sum(), list(run.parameters())), gradients)
    y = run(x)
    define(2.0)
    refused("'mine' was defined again", lambda: torch.autograd.grad(y.sum(), list(run.parameters())))
    if captured == "exported":
        refused("capture it again", lambda: run(x))


def test_a_graph_captured_without_gradients_can_be_trained() -> None:
    for backend, recompute in (("torch", False), ("fused", True)):
        layer, x = MDLSTM(2, 4, backend=backend, recompute=recompute), torch.randn(1, 3, 4, 2)
        with torch.no_grad():
            captured = torch.export.export(layer, (x,)).module()
        gradients = [
            torch.autograd.grad(run(x).square().sum(), list(run.parameters())) for run in (captured, layer)
        ]
        torch.testing.assert_close(*gradients)


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
