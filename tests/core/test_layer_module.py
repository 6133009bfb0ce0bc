"""The layer as a `torch.nn.Module`: factories, dtypes, copies, parametrizations, repr, types."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.checkout import ROOT
from helpers.refusal import refused
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from mdlstm_tk import MDLSTM
from mdlstm_tk.backends.cpu import sweep as cpu_sweep
from mdlstm_tk.backends.torch import products
from mdlstm_tk.errors import InputError

X = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EVERYTHING: dict[str, Any] = {"layer_norm": True, "peephole": True, "directions": "all", "num_layers": 2}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_by_argument_default_and_conversion(dtype: torch.dtype) -> None:
    layers = [MDLSTM(3, 4, dtype=dtype, **EVERYTHING), MDLSTM(3, 4, **EVERYTHING).to(dtype)]
    torch.set_default_dtype(dtype)
    try:
        layers.append(MDLSTM(3, 4, **EVERYTHING))
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in layers:
        assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
        assert layer(X.to(dtype)).dtype == dtype
        weight = layer.weight_hh_l0.double()
        joint = torch.cat([weight[0, 0, :4], weight[0, 1, :4]], dim=1)
        torch.testing.assert_close(joint @ joint.T, torch.eye(4).double(), atol=2e-2, rtol=0)


def test_a_layer_without_memory_is_given_some_later() -> None:
    expected = MDLSTM(3, 4, **EVERYTHING)
    by_argument = MDLSTM(3, 4, device="meta", **EVERYTHING)
    assert by_argument.weight_ih_l0.is_meta
    for layer in (by_argument, nn.utils.skip_init(MDLSTM, 3, 4, **EVERYTHING)):
        layer.to_empty(device="cpu").load_state_dict(expected.state_dict())
        assert torch.equal(layer(X), expected(X))
    torch.manual_seed(1)
    by_argument.reset_parameters()
    torch.manual_seed(1)
    assert torch.equal(by_argument(X), MDLSTM(3, 4, **EVERYTHING)(X))


def saved(state: Any) -> Any:
    """A state dict that went through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("kept", [copy.deepcopy, saved, lambda state: pickle.loads(pickle.dumps(state))])
def test_weights_are_refused_by_a_layer_with_another_cell(kept: Callable[[Any], Any]) -> None:
    """Although they have the same shapes."""
    cells, first, second = ("graves", "mean", "stable", "leaky", "slstm"), X, X.flip(1)
    for own, other in product(cells, repeat=2):
        nets = [nn.Sequential(nn.Linear(3, 3), MDLSTM(3, 4, cell=cell)) for cell in (own, other)]
        state = kept(nets[1].state_dict())
        if own == other:
            nets[0].load_state_dict(state)
            assert torch.equal(nets[0](first), nets[1](first))
            continue
        before = nets[0][1](second)
        with pytest.raises(
            RuntimeError, match=f"1 has the cell '{own}', got .* the cell '{other}'; create"
        ):
            nets[0].load_state_dict(state, strict=False)
        assert torch.equal(nets[0][1](second), before)


@pytest.mark.parametrize("wrap", [lambda net: net, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_weights_without_a_cell_load_and_wrapped_layers_keep_theirs(wrap: Any) -> None:
    layer, other = MDLSTM(3, 4), wrap(MDLSTM(3, 4))
    other.load_state_dict(
        {**other.state_dict()}
    )  # the tensors alone, as version 1 and safetensors have them
    other.load_state_dict(other.state_dict())
    assert {at.get("cell") for at in other.state_dict()._metadata.values()} >= {"graves"}
    layer.load_state_dict({**MDLSTM(3, 4, cell="mean").state_dict()})
    into: dict[str, Tensor] = {}
    layer.state_dict(destination=into)
    layer.load_state_dict(into)


def test_autocast_leaves_float64_and_integers_alone() -> None:
    layer, double = MDLSTM(3, 4), MDLSTM(3, 4).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert double(X.double()).dtype == torch.float64
        for mixed, x in ((double, X), (layer, X.double()), (layer, X.long())):
            with pytest.raises(InputError, match="x must have the layer's dtype"):
                mixed(x)


def test_copies_equal_the_layer() -> None:
    layer, stream = MDLSTM(3, 4, **EVERYTHING), io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (pickle.loads(pickle.dumps(layer)), torch.load(stream, weights_only=False)):
        assert repr(other) == repr(layer)
        assert torch.equal(other(X), layer(X))


class Doubled(nn.Module):
    """A parametrization that counts how often it is computed."""

    count = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.count += 1
        return 2 * weight


def test_a_parametrized_weight_is_computed_once_for_each_pass() -> None:
    layer = MDLSTM(3, 4, num_layers=2)
    plain, doubled = copy.deepcopy(layer), Doubled()
    with torch.no_grad():
        plain.weight_ih_l0.mul_(2)
    parametrize.register_parametrization(layer, "weight_ih_l0", doubled)
    before = doubled.count
    y = layer(X)
    assert doubled.count == before + 1
    assert torch.equal(y, plain(X)) and torch.equal(copy.deepcopy(layer)(X), y)


@pytest.mark.parametrize(
    "normalize", [parametrizations.weight_norm, nn.utils.weight_norm], ids=["parametrization", "hook"]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_changes_nothing_but_the_gradient(normalize: Any) -> None:
    layer = MDLSTM(3, 4, directions="all")
    expected = layer(X)
    normalize(layer, "weight_hh_l0")
    y = layer(X)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_weights_that_are_written_are_seen(backend: str) -> None:
    """Also where torch does not notice it, and where a weight of the same shape has other strides."""
    layer, x = MDLSTM(20, 4, backend=backend), torch.randn(2, 3, 4, 20)  # G·n = C
    exact = MDLSTM(20, 4, backend="reference")
    writes = (
        lambda: layer.weight_hh_l0[0, 1, 2, 3].add_(1),
        lambda: layer.bias_l0.data.add_(1),
        lambda: layer.weight_ih_l0.detach().numpy().__imul__(2),
        lambda: setattr(layer, "weight_ih_l0", nn.Parameter(layer.weight_ih_l0.mT)),
    )
    with torch.no_grad():
        for write in writes:
            before = layer(x)
            write()
            exact.load_state_dict(layer.state_dict())
            torch.testing.assert_close(layer(x), exact(x))
            assert not torch.equal(layer(x), before)


REPRS = [
    {"directions": "all", "bias": False, "backend": "torch", "recompute": True},
    {"directions": [(1, -1), (-1, 1)], "merge": "sum", "num_layers": 2, "dropout": 0.25, "peephole": True},
    {"ndim": 3, "window": (1, 2, 3), "cell": "leaky", "layer_norm": True, "channels_last": False},
]


@pytest.mark.parametrize("options", REPRS, ids=str)
def test_repr_is_the_call_that_makes_an_equal_layer(options: dict[str, Any]) -> None:
    layer = MDLSTM(3, 4, **options)
    again = eval(repr(layer), {"MDLSTM": MDLSTM})
    again.load_state_dict(layer.state_dict())
    assert repr(again) == repr(layer)
    settings = [{k: v for k, v in vars(m).items() if k[0] != "_"} for m in (layer, again)]
    assert settings[0] == settings[1]
    assert repr(MDLSTM(3, 4)) == "MDLSTM(3, 4)"


@pytest.mark.slow
def test_the_type_of_the_result_is_tensor(tmp_path: Path) -> None:
    code = "from mdlstm_tk import MDLSTM\nimport torch\nlayer = MDLSTM(3, 4)\nx = torch.zeros(2, 3)\n"
    (tmp_path / "typed.py").write_text(
        f"{code}reveal_type(layer(x))\nlayer(x, [[1, 2]])\nlayer(x, x.numpy())\nlayer(x, window=3)\n"
    )
    # In ROOT and with its settings, so that `make lint` finds in the cache what this has checked.
    command = [sys.executable, "-m", "mypy", tmp_path / "typed.py"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert 'typed.py:5: note: Revealed type is "torch._tensor.Tensor"' in output
    assert set(re.findall(r"typed\.py:(\d+): error:", output)) == {"8"}


@pytest.mark.parametrize(
    "options", [{"channels_last": False, "window": (2, 3)}, {"layer_norm": True}], ids=str
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_compiling_ahead_runs_what_it_compiles_and_changes_nothing(
    options: dict[str, Any], training: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the parameters are frozen, and in inference mode."""
    forward, backward = Mock(wraps=cpu_sweep.forward), Mock(wraps=cpu_sweep.backward)
    monkeypatch.setattr(cpu_sweep, "forward", forward)
    monkeypatch.setattr(cpu_sweep, "backward", backward)
    layer = MDLSTM(3, 4, num_layers=2, dropout=0.5, cell="slstm", directions="all", **options)
    layer.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode(frozen):
        layer.precompile(training, states=True)
    kinds = Counter((call.args[1], call.args[0].initial is not None) for call in forward.call_args_list)
    saves = (False, True) if training else (False,)  # training compiles inference, too
    assert kinds == dict.fromkeys(product(saves, (False, True)), layer.num_layers)
    assert backward.call_count == (4 if training else 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_a_parametrization_that_fails_is_no_missing_parameter() -> None:
    class Wrong(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return bias.no_such_attribute if broken else bias  # type: ignore[no-any-return, attr-defined]

    layer, broken = MDLSTM(3, 4), False
    y = layer(X)
    parametrize.register_parametrization(layer, "bias_l0", Wrong())
    assert torch.equal(layer(X), y)
    broken = True
    with pytest.raises(AttributeError, match="bias_l0"):
        layer(X)
    layer = MDLSTM(3, 4, bias=False)
    assert layer._layer_parameters(0)["bias"] is None


@pytest.mark.parametrize("change", [parametrizations.weight_norm, partial(prune.l1_unstructured, amount=1)])
def test_weights_that_are_computed_are_not_reset(change: Callable[..., Any]) -> None:
    layer = MDLSTM(3, 4)
    bias = layer.bias_l0.clone()
    change(layer, "weight_hh_l0")
    refused("weight_hh_l0 is parametrized or pruned", layer.reset_parameters)
    assert torch.equal(layer.bias_l0, bias)


class Pair(nn.Module):
    """A network that calls a layer twice, and uses its states."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MDLSTM(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.layer(x, return_state=True)
        return self.layer(y) + state[0].h[0].sum()


def test_torch_fx_makes_one_node_of_a_layer() -> None:
    net = Pair()
    traced = torch.fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layer", "layer"]
    assert torch.equal(traced(X), net(X))
    with pytest.raises(InputError, match="trace the network around it"):
        torch.fx.symbolic_trace(net.layer)


class Doubling(MDLSTM):
    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        return super().forward(2 * x, *arguments, **options)


def test_torch_fx_does_not_run_hooks_or_an_own_forward_twice() -> None:
    hooked, own = MDLSTM(3, 3), Doubling(3, 3)
    hooked.register_forward_pre_hook(lambda layer, arguments: (2 * arguments[0], *arguments[1:]))
    for layer in (hooked, own):
        with pytest.raises(InputError, match=r"twice; trace with a torch\.fx\.Tracer"):
            torch.fx.symbolic_trace(torch.nn.Sequential(layer))


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": True, "peephole": True, "recompute": True}], ids=str
)
@pytest.mark.parametrize("batch", [2, 40], ids=["one sum", "sums of parts"])
def test_frozen_weights_leave_the_gradient_of_x_as_it_is(
    backend: Any, options: dict[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And cost no product."""
    monkeypatch.setattr(cpu_sweep, "MIN_PART_BLOCKS", 1)
    cpu_sweep._make_plan.cache_clear()
    layer, x = MDLSTM(3, 4, backend=backend, **options), torch.randn(batch, 5, 6, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    layer.requires_grad_(False)
    multiplied: list[Any] = []
    monkeypatch.setattr(products, "multiply_transposed", lambda *pair: multiplied.append(pair))
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert torch.equal(dx, expected)
    assert not multiplied
