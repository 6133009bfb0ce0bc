"""The layer as users call it: layouts, windows, parameters, state dicts, copies, and what it refuses."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk.cells import BUILT_IN_CELLS

X = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
EVERYTHING: dict[str, Any] = {"layer_norm": True, "peephole": True, "directions": "all", "num_layers": 2}


def test_dropout_acts_between_layers_while_training_only() -> None:
    layer = MDLSTM(1, 8, num_layers=2, dropout=0.5)
    x = torch.randn(1, 4, 4, 1)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    with pytest.warns(UserWarning, match="does nothing in one layer; raise num_layers"):
        MDLSTM(1, 8, dropout=0.5)


SIZES: list[Any] = [torch.tensor([[4, 5], [2, 3]], dtype=torch.int32), np.array([[4, 5], [2, 3]])]
BAD_VALUES = ([[4, 5], [2, 6]], [[4, 5], [0, 3]], [[-1, 5], [1, 3]])
BAD_SIZES = (*BAD_VALUES, [[4, 5]], [[True, True], [True, False]], [[4.0, 5.0], [2.0, 3.0]])


def test_sizes_are_integers_inside_the_grid() -> None:
    layer = MDLSTM(3, 4)
    expected = layer(X, [[4, 5], [2, 3]])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for sizes in SIZES:
        assert torch.equal(layer(X, sizes), expected)
    for bad in BAD_SIZES:
        with pytest.raises(InputError, match="sizes must"):
            layer(X, bad)
        if bad in BAD_VALUES:
            with pytest.raises(InputError, match="sizes must"):  # where a captured graph reads them
                compiled(X, torch.tensor(bad))
    meta = MDLSTM(3, 4, device="meta")(X.to("meta"), [[4, 5], [2, 3]])
    assert meta.is_meta and meta.shape == expected.shape


def test_names_and_shapes_of_parameters() -> None:
    layer = MDLSTM(3, 4, window=(1, 2), **EVERYTHING)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    of_layers: dict[str, Any] = {f"weight_hh_l{k}": (4, 2, 20, 4) for k in range(2)} | {
        f"bias_l{k}": (4, 20) for k in range(2)
    }
    of_layers |= {f"peephole_l{k}": (4, 5, 4) for k in range(2)}
    of_layers |= {f"norm_{name}_l{k}": (4, 6, 4) for name in ("weight", "bias") for k in range(2)}
    assert shapes == {"weight_ih_l0": (4, 20, 6), "weight_ih_l1": (4, 20, 16), **of_layers}
    assert layer.directions == [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    assert [*dict(MDLSTM(3, 4, bias=False).named_parameters())] == ["weight_ih_l0", "weight_hh_l0"]
    assert MDLSTM(3, 4, cell="slstm", layer_norm=True).norm_weight_l0.shape == (1, 5, 4)  # no output tanh


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_recurrent_weights_start_orthogonal_over_all_axes(dtype: torch.dtype) -> None:
    weight = MDLSTM(3, 4, dtype=dtype).weight_hh_l0.double()  # (1, 2, 5·4, 4)
    joint = torch.cat([weight[0, 0, :4], weight[0, 1, :4]], dim=1)
    torch.testing.assert_close(joint @ joint.T, torch.eye(4).double(), atol=2e-2, rtol=0)


def test_a_layer_without_memory_is_given_some_later() -> None:
    layer = MDLSTM(3, 4, device="meta", **EVERYTHING)
    assert layer(X.to("meta")).is_meta
    layer.to_empty(device="cpu")
    torch.manual_seed(1)
    layer.reset_parameters()
    torch.manual_seed(1)
    assert torch.equal(layer(X), MDLSTM(3, 4, **EVERYTHING)(X))


def saved(state: Any) -> Any:
    """A state dict that went through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()))


OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # weights of equal shapes
    ({"cell": "graves"}, {"cell": "mean"}),
    ({"directions": [(1, 1), (-1, -1)]}, {"directions": [(1, -1), (-1, 1)]}),
    ({"window": (1, 6)}, {"window": (2, 3)}),
]


@pytest.mark.parametrize("kept", [copy.deepcopy, saved])
@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_weights_for_another_layer_are_refused(options: Any, kept: Callable[[Any], Any]) -> None:
    nets = [nn.Sequential(nn.Linear(3, 3), MDLSTM(3, 4, **each)) for each in options]
    state, before = kept(nets[1].state_dict()), nets[0][1](X)
    with pytest.raises(RuntimeError, match=f"1 has .*'{next(iter(options[0]))}'.*, got weights of"):
        nets[0].load_state_dict(state, strict=False)
    assert torch.equal(nets[0][1](X), before)
    nets[1].load_state_dict(state)


@pytest.mark.parametrize("wrap", [lambda net: net, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_weights_that_name_less_load(wrap: Any) -> None:
    """Those of 1.0 name the cell alone, or nothing, as files of tensors do."""
    layer = wrap(MDLSTM(3, 4, directions="all"))
    state = layer.state_dict()
    layer.load_state_dict({**state})
    assert {at.get("cell") for at in state._metadata.values()} >= {"graves"}
    for entry in state._metadata.values():
        entry.pop("directions", None)
        entry.pop("window", None)
    layer.load_state_dict(state)
    into: dict[str, Tensor] = {}
    layer.state_dict(destination=into)
    layer.load_state_dict(into)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_memory_that_is_not_what_it_seems_is_copied_or_refused(backend: str) -> None:
    """Kernels get addresses."""
    layer = MDLSTM(3, 4, peephole=True, backend=backend)
    expected, named = layer(X), dict(layer.named_parameters())
    views: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
        lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,  # it has the negative bit
    ]
    for view in views:
        torch.testing.assert_close(layer(view(X.clone())), expected)
        parameters = {name: view(p.detach().clone()) for name, p in named.items()}
        torch.testing.assert_close(torch.func.functional_call(layer, parameters, (X,)), expected)
    for other in (X.to_sparse(), torch.nested.nested_tensor([*X]), X.to_mkldnn(), X.bool()):
        with pytest.raises((InputError, RuntimeError, TypeError)):
            layer(other)


def test_a_parametrized_weight_is_computed_once_for_each_pass() -> None:
    layer, calls = MDLSTM(3, 4, num_layers=2), []

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(weight)
            return 2 * weight

    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.bias_l0.mul_(2)
    parametrize.register_parametrization(layer, "bias_l0", Doubled())
    calls.clear()
    assert torch.equal(layer(X), plain(X)) and len(calls) == 1


BAD_ARGUMENTS: list[dict[str, Any]] = [
    {"input_size": 0},
    {"hidden_size": -1},
    {"ndim": 0},
    {"num_layers": 0},
    {"window": 0},
    {"window": (2, 2, 2)},
    {"directions": 4},
    {"directions": [(1, 1), (1, 1)]},
    {"directions": [(1, 0)]},
    {"merge": "max"},
    {"backend": "cudnn"},
    {"cell": "lstm"},
    {"peephole": True, "cell": "stable"},
    {"layer_norm": True, "bias": False},
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=str)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        MDLSTM(**{"input_size": 1, "hidden_size": 2, **arguments})
    assert MDLSTM(1, 2, directions=np.array([[1, -1]])).directions == [(1, -1)]
    shown = "MDLSTM(3, 4, ndim=2, num_layers=1, cell='mean', directions=[(1, -1)], window=(1, 2))"
    assert repr(eval(shown)) == shown


def test_an_x_that_does_not_fit_is_refused() -> None:
    layer, first = MDLSTM(3, 2), MDLSTM(3, 2, channels_last=False)
    bad = [torch.zeros(2, 2, 3, 3, 3), torch.zeros(2, 5, 5, 4), X.double(), X.to("meta"), X.long()]
    for x in (*bad, torch.zeros(2, 0, 5, 3)):
        with pytest.raises(InputError):
            layer(x)
    for run, x in ((layer, torch.zeros(3, 8, 9)), (first, torch.zeros(2, 8, 9, 3))):
        with pytest.raises(InputError, match=f"channels_last={not run.channels_last}"):
            run(x)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError):
        layer(X.double())
    with pytest.raises(InputError, match="got 4900000000 in a grid 70000×70000"):
        MDLSTM(2, 3, backend="torch")(torch.ones(1, 1, 1, 2).expand(1, 70_000, 70_000, 2))


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_constant_input_has_sane_gradients_at_64x64(cell: str, layer_norm: bool) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 16, cell=cell, layer_norm=layer_norm)
    x = torch.stack([torch.zeros(64, 64, 1), torch.ones(64, 64, 1)]).requires_grad_()
    gradients = torch.autograd.grad(layer(x).mean(), [x, *layer.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients) < 100
