"""The layer as users call it: layouts, windows, parameters, state dicts, copies, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk import layer as layer_module
from mdlstm_tk.cells import BUILT_IN_CELLS

X = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EVERYTHING: dict[str, Any] = {"layer_norm": True, "peephole": True, "directions": "all", "num_layers": 2}


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_each_cell_sees_exactly_its_own_quadrant(cell: str) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 4, cell=cell, directions="all").double()
    x = torch.randn(1, 4, 6, 1, dtype=torch.double, requires_grad=True)
    y = layer(x)  # four directions of 4 units
    for k, (down, right) in enumerate(layer.directions):
        for row, column in ((0, 0), (1, 0), (2, 3), (3, 5)):
            part = y[0, row, column, 4 * k : 4 * (k + 1)].sum()
            (seen,) = torch.autograd.grad(part, x, retain_graph=True)
            rows = torch.arange(4)[:, None] * down <= row * down
            columns = torch.arange(6)[None] * right <= column * right
            assert ((seen[0, ..., 0] != 0) == (rows & columns)).all()


@pytest.mark.parametrize("merge", ["concat", "sum", "mean"])
def test_merge(merge: str) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(2, 3, directions="all", merge=merge)
    both = MDLSTM(2, 3, directions="all")
    both.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4, 2)
    parts = both(x).unflatten(-1, (4, 3))
    expected = {"concat": parts.flatten(-2), "sum": parts.sum(-2), "mean": parts.mean(-2)}[merge]
    torch.testing.assert_close(layer(x), expected)
    assert layer.output_size == expected.shape[-1]


def test_stacking_feeds_one_layer_into_the_next() -> None:
    torch.manual_seed(0)
    stack = MDLSTM(2, 3, num_layers=2, directions="all", merge="sum")
    layers = [MDLSTM(size, 3, directions="all", merge="sum") for size in (2, 3)]
    for k, layer in enumerate(layers):
        state = {n.replace(f"_l{k}", "_l0"): p for n, p in stack.state_dict().items() if f"_l{k}" in n}
        layer.load_state_dict(state)
    x = torch.randn(2, 4, 3, 2)
    torch.testing.assert_close(stack(x), layers[1](layers[0](x)))


def test_dropout_acts_between_layers_while_training_only() -> None:
    layer = MDLSTM(1, 8, num_layers=2, dropout=0.5)
    x = torch.randn(1, 4, 4, 1)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    with pytest.warns(UserWarning, match="does nothing in one layer; raise num_layers"):
        MDLSTM(1, 8, dropout=0.5)


@pytest.mark.parametrize("short_run", [0, 100], ids=["one copy", "two copies"])
def test_windows_feed_blocks_as_features_and_pad_the_far_edge(
    short_run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_module, "SHORT_RUN", short_run)
    torch.manual_seed(0)
    layer = MDLSTM(2, 3, window=(2, 3))
    plain = MDLSTM(12, 3)
    plain.load_state_dict({**layer.state_dict()})  # the tensors alone
    x = torch.randn(2, 5, 7, 2)
    padded = torch.zeros(2, 6, 9, 2)
    padded[:, :5, :7] = x
    blocks = torch.empty(2, 3, 3, 12)
    for row in range(3):
        for column in range(3):
            block = padded[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            blocks[:, row, column] = block.reshape(2, 12)
    torch.testing.assert_close(layer(x), plain(blocks))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_layouts_of_x(ndim: int) -> None:
    """Channels last or first, with or without a batch axis."""
    options: dict[str, Any] = {"ndim": ndim, "num_layers": 2, "directions": "all", "window": 2}
    last, first = MDLSTM(3, 4, **options), MDLSTM(3, 4, channels_last=False, **options)
    first.load_state_dict(last.state_dict())
    x, sizes = torch.randn(2, *(5, 6, 3)[:ndim], 3), [[5, 6, 3][:ndim], [3, 4, 1][:ndim]]
    y = last(x, sizes)
    assert y.shape == (2, *(3, 3, 2)[:ndim], last.output_size)
    torch.testing.assert_close(first(x.movedim(-1, 1), sizes), y.movedim(-1, 1))
    for k in range(2):
        torch.testing.assert_close(last(x[k], sizes[k]), y[k])
        torch.testing.assert_close(first(x[k].movedim(-1, 0), sizes[k]), y[k].movedim(-1, 0))


def test_names_and_shapes_of_parameters() -> None:
    layer = MDLSTM(3, 4, window=(1, 2), **EVERYTHING)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    of_layers: dict[str, Any] = {f"weight_hh_l{k}": (4, 2, 20, 4) for k in range(2)} | {
        f"bias_l{k}": (4, 20) for k in range(2)
    }
    of_layers |= {f"peephole_l{k}": (4, 5, 4) for k in range(2)}
    of_layers |= {f"norm_{name}_l{k}": (4, 6, 4) for name in ("weight", "bias") for k in range(2)}
    assert shapes == {"weight_ih_l0": (4, 20, 6), "weight_ih_l1": (4, 20, 16), **of_layers}
    assert [*dict(MDLSTM(3, 4, bias=False).named_parameters())] == ["weight_ih_l0", "weight_hh_l0"]
    assert MDLSTM(3, 4, cell="slstm", layer_norm=True).norm_weight_l0.shape == (1, 5, 4)  # no output tanh


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
    *(({"cell": one}, {"cell": two}) for one in BUILT_IN_CELLS for two in BUILT_IN_CELLS if one != two),
    ({"directions": [(1, 1), (-1, -1)]}, {"directions": [(1, -1), (-1, 1)]}),
    ({"window": (1, 6)}, {"window": (2, 3)}),
]


@pytest.mark.parametrize("kept", [copy.deepcopy, saved, lambda state: pickle.loads(pickle.dumps(state))])
def test_weights_for_another_layer_are_refused(kept: Callable[[Any], Any]) -> None:
    for options in OTHERS:
        nets = [nn.Sequential(nn.Linear(3, 3), MDLSTM(3, 4, **each)) for each in options]
        state, before = kept(nets[1].state_dict()), nets[0][1](X)
        if nets[0][1].weight_ih_l0.shape == nets[1][1].weight_ih_l0.shape:
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


def test_copies_equal_the_layer() -> None:
    layer, stream = MDLSTM(3, 4, **EVERYTHING), io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    copies = [
        pickle.loads(pickle.dumps(layer)),
        copy.deepcopy(layer),
        torch.load(stream, weights_only=False),
    ]
    for other in copies:
        assert repr(other) == repr(layer)
        assert torch.equal(other(X), layer(X))


class Doubled(nn.Module):
    """A parametrization that counts how often it is computed."""

    count, fails = 0, False

    def forward(self, weight: Tensor) -> Tensor:
        self.count += 1
        return weight.no_such_attribute if self.fails else 2 * weight  # type: ignore[no-any-return, attr-defined]


def test_a_parametrized_weight_is_computed_once_for_each_pass() -> None:
    layer = MDLSTM(3, 4, num_layers=2)
    plain, doubled = copy.deepcopy(layer), Doubled()
    with torch.no_grad():
        plain.bias_l0.mul_(2)
    parametrize.register_parametrization(layer, "bias_l0", doubled)
    before = doubled.count
    y = layer(X)
    assert doubled.count == before + 1
    assert torch.equal(y, plain(X)) and torch.equal(copy.deepcopy(layer)(X), y)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    layer(X).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    doubled.fails = True
    with pytest.raises(AttributeError):  # it is no missing bias
        layer(X)


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_weights_that_are_written_are_seen(backend: str) -> None:
    """Also where torch does not notice it, and where a weight of the same shape has other strides."""
    layer, x = MDLSTM(20, 4, backend=backend), torch.randn(2, 3, 4, 20)  # G·n = C
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
            fresh = MDLSTM(20, 4, backend=backend)
            fresh.load_state_dict(layer.state_dict())
            torch.testing.assert_close(layer(x), fresh(x))
            assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_x_and_parameters_of_other_layouts_and_classes(backend: str) -> None:
    """Kernels get addresses: memory that is not what it seems is copied, or refused."""

    class Named(Tensor):
        """As libraries of images have them."""

    layer = MDLSTM(3, 4, peephole=True, backend=backend)
    expected, named = layer(X), dict(layer.named_parameters())
    views: list[Callable[[Tensor], Tensor]] = [
        lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,  # with the negative bit
        lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
        lambda t: t.as_subclass(Named),
    ]
    for view in views:
        torch.testing.assert_close(layer(view(X.clone())).as_subclass(Tensor), expected)
        parameters = {name: view(p.detach().clone()) for name, p in named.items()}
        torch.testing.assert_close(
            torch.func.functional_call(layer, parameters, (X,)).as_subclass(Tensor), expected
        )
    with torch.inference_mode():
        odd = X.clone()
    refused = [X.to_sparse(), torch.nested.nested_tensor([*X]), X.to_mkldnn(), X.bool(), X.numpy()]
    for other in refused:
        with pytest.raises((InputError, RuntimeError, TypeError, AttributeError)):
            layer(other)
    with torch.no_grad():
        torch.testing.assert_close(layer(odd), expected)


REPRS: list[dict[str, Any]] = [
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
