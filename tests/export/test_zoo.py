"""Foreign networks and random layers: files are right on grids and values that their exports did not see,
or there is no file.

The fast tests export the common layers in two networks of many outputs; the slow one each network alone.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import (
    Columns,
    ConvStem,
    Function,
    ManyHeads,
    Pyramid,
    RandomNet,
    UNet,
    WindowedConv,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.lowering.lower import lower, walk
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.infer import open_model
from mdlstm_tk.runtime.model_check import OPERATORS

Operation = Callable[[Tensor], Tensor]
GRIDS = {  # by the number of axes
    1: ((1,), (2,), (9,), (33,), (70,), (128,)),
    2: ((1, 1), (2, 9), (13, 3), (6, 18), (33, 20), (12, 70)),
    3: ((1, 1, 1), (1, 5, 2), (4, 1, 3), (2, 3, 7), (8, 5, 4), (5, 6, 9)),
}
SCALES = (1e-3, 0.3, 1.0, 5.0)  # beyond, the sigmoid of ONNX Runtime closes gates for good
C = 4  # features of h (N, 4, H, W), which each of these takes


class Applied(nn.Module):
    """A function with a layer."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h, *self.layers)


def positions(h: Tensor) -> Tensor:
    """(N, P, 4)."""
    return h.flatten(2).transpose(1, 2)


def attend(h: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(*[positions(h)[:, None]] * 3, is_causal=True)


def on_features(layer: nn.Module) -> nn.Module:
    return Applied(lambda h, layer: layer(h.permute(0, 2, 3, 1)), layer)


SIZED: list[Operation] = [  # of any grid
    nn.Sequential(nn.BatchNorm2d(C), nn.GroupNorm(2, C), nn.InstanceNorm2d(C, affine=True)),
    nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(C), nn.InstanceNorm1d(C, affine=True)),
    on_features(nn.LayerNorm(C)),
    on_features(nn.RMSNorm(C)),
    on_features(nn.Linear(C, 3)),
    nn.LocalResponseNorm(3),
    *(lambda h, p=p: functional.normalize(h, p=p, dim=1) for p in (1, 2)),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveMaxPool2d(1),
    nn.Upsample(scale_factor=2, mode="nearest"),
    lambda h: functional.interpolate(functional.max_pool2d(h, 2), size=h.shape[2:], mode="bilinear"),
    nn.PixelShuffle(2),
    lambda h: torch.einsum("nchw,nchw->n", h, h),
    attend,
    Applied(lambda h, layer: layer(positions(h)), nn.TransformerEncoderLayer(C, 2, 8, batch_first=True)),
    Applied(lambda h, layer: layer(h.argmax(1)), nn.Embedding(C, 3)),
    lambda h: h - h.mean() + h.mean((2, 3), keepdim=True) + h.sum((1, 2), keepdim=True),
    lambda h: h.prod(1) + h.amax(1) + h.amin(1) + h.max(1)[0] + h.argmax(1) + h.argmin(1),
    lambda h: h.std(1) + h.var(1, unbiased=False) + h.logsumexp(1) + h.norm(dim=1) + h.norm(p=1, dim=1),
    lambda h: h.cumsum(2) + h.sort(1)[0],
    lambda h: h.split([1, 3], 1)[1] + torch.mul(*h.chunk(2, 1))[:, :1] + h.unbind(1)[2][:, None],
    lambda h: h[:, :1].squeeze(1) + h[:, [1, 0]].index_select(1, torch.tensor([1]))[:, 0],
    lambda h: h.mean((2, 3), keepdim=True).expand_as(h).repeat(1, 2, 1, 1),
    lambda h: h.gather(1, h.argmax(1, keepdim=True)),
    lambda h: torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), 1.0),
    lambda h: torch.slice_scatter(h, h[:, :1], 1, 0, 1) + torch.select_scatter(h, h[:, 0], 1, 1),
]
OF_NUMBERS: list[Operation] = [
    nn.Conv2d(C, 4, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(C, 4, 3, padding=1, padding_mode="reflect"),
    nn.ConvTranspose2d(C, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.Sequential(nn.Unflatten(1, (1, C)), nn.Conv3d(1, 2, 3, padding=1), nn.ConvTranspose3d(2, 2, 2)),
    *(kind() for kind in (nn.CELU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU)),
    *(kind() for kind in (nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.SiLU, nn.Mish)),
    *(kind() for kind in (nn.Softplus, nn.Softshrink, nn.Softsign, nn.LogSigmoid, nn.Tanh, nn.Dropout)),
    *(kind(1) for kind in (nn.GLU, nn.Softmax, nn.LogSoftmax)),
    lambda h: torch.where(((h > 0) & (h < 1)) | ~(h >= 0.5) ^ (h <= 0.2), h, 0.0),
    lambda h: h.masked_fill(h != 0, float("-inf")).softmax(1),
    lambda h: torch.maximum(h, torch.minimum(h * 2, -h)) - 1 / (h.exp() + 1),
    lambda h: h.abs().sqrt().log1p() * (h.abs() + 1).rsqrt() * h.sign(),
    lambda h: h**2 + h.abs() ** 1.5 + h.floor() + h.ceil() + h.round(),
    lambda h: h.sin() + h.cos() + h.tan() + h.sinh() + h.cosh() + h.asinh(),
    lambda h: h.tanh().asin() + h.tanh().acos() + h.atan() + (h.tanh() / 2).atanh() + (h.abs() + 2).acosh(),
    lambda h: h.erf() + h.fmod(2.0) + h.remainder(2.0) + h.long() // 3,
    lambda h: h.isnan() | h.isinf(),
]


class Around(nn.Module):
    """An MDLSTM, and every layer on its output."""

    def __init__(self, *layers: Operation) -> None:
        super().__init__()
        self.body = MDLSTM(2, C, channels_last=False)
        self.layers = nn.ModuleList(
            each if isinstance(each, nn.Module) else Applied(each) for each in layers
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.body(x)
        return tuple(layer(h) for layer in self.layers)


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "unet": UNet,
    "stem": ConvStem,
    "heads": ManyHeads,
    "window, convolution": WindowedConv,
    "pyramid": Pyramid,
    "columns, LSTM": lambda: Columns(nn.LSTM, bidirectional=True, num_layers=2, batch_first=True),
    "columns, GRU": lambda: Columns(nn.GRU, bidirectional=True, bias=False),
    "columns, RNN": lambda: Columns(nn.RNN, nonlinearity="relu"),
    "crop": lambda: Function(after=lambda y: y[:, :30, -40:]),
    "sequence": lambda: Function(after=lambda y: y.flatten(1, 2)),
    "reflected": lambda: nn.Sequential(nn.ReflectionPad2d(2), MDLSTM(2, 3, channels_last=False)),
    "differences": lambda: Function(after=lambda y: y[:, 1:] - y[:, :-1]),
}


def outcome(net: nn.Module, path: Path, **options: Any) -> str:
    """ "right", or why the network is refused.

    On every grid that the file takes, and every scale, the file is as close to float64 as torch itself in
    float32, up to a factor; and the extents that it declares for its outputs are true.
    """
    weights = copy.deepcopy(net.state_dict())
    try:
        export_onnx(net, path, **options)
    except MDLSTMError as error:
        reason = str(error)
    if not path.exists():
        return reason
    torch.testing.assert_close(net.state_dict(), weights, rtol=0, atol=0)
    assert net.training and b"/site-packages/" not in path.read_bytes()
    session, exact = open_model(path, trusted=True, device="cpu"), float64_reference(net)
    metadata, declared, rng = session.metadata, {}, np.random.default_rng(1)
    tile = () if isinstance(session, Session) else (3,)
    if isinstance(session, Session):
        declared = {y.name: y.shape for y in session.graph.session.get_outputs()}
    for grid in GRIDS[metadata.ndim] if None in metadata.extents else [metadata.extents]:
        for scale in SCALES:
            x = (rng.normal(size=(2, *metadata.shape_of(grid))) * scale).astype(np.float32)
            try:
                actual = named(session(x, *tile))
            except InputError:
                continue  # the file says that it does not take this grid
            with torch.no_grad():
                own = named(net.eval()(torch.from_numpy(x)))
            for name, truth in named(exact(x)).items():
                for extent, known in zip(truth.shape, declared.get(name, ()), strict=False):
                    assert known == extent or not isinstance(known, int), (name, truth.shape)
                rounding = np.abs(own[name].double().numpy() - truth).max(initial=0)
                errors = np.abs(actual[name].astype(np.float64) - truth)
                allowed = 30 * rounding + 1e-5 * max(1.0, np.abs(truth).max(initial=0))
                # One in a hundred may lie at a step of the network, or where it divides by next to nothing.
                assert (errors > allowed).mean() <= 0.01, (name, grid, scale, errors.max(), allowed)
    return "right"


def named(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, tuple | list):
        return {f"y{k}" if k else "y": y for k, y in enumerate(outputs)}
    return dict(outputs) if isinstance(outputs, dict) else {"y": outputs}


LAYERS = [*SIZED, *OF_NUMBERS]
ZOO: dict[str, Callable[[], nn.Module]] = {
    **WHOLE,
    **{f"layer {k}": lambda each=each: Around(each) for k, each in enumerate(LAYERS)},
}
LIMITED = {"layer 3", "layer 18", "layer 56"}  # an ε of its dtype, a mean of the batch, NaN: refused
FORMS = ("unrolled", "scan", "tiles")


def check_foreign(name: str) -> None:
    torch.manual_seed(0)
    net = ZOO[name]()
    first = next(each for each in net.modules() if isinstance(each, MDLSTM | nn.Conv2d))
    options: Any = {"multiple_of": 2} if isinstance(net, UNet) else {}
    options["channels"] = first.in_channels if isinstance(first, nn.Conv2d) else first.input_size
    options["channels_last"] = isinstance(first, MDLSTM) and first.channels_last
    with tempfile.TemporaryDirectory() as folder:
        reason = outcome(net, Path(folder, "m.onnx"), form="scan", **options)
    assert (reason == "right") != (name in LIMITED), reason


def check_random(seed: int, form: str) -> None:
    net = RandomNet(seed, ndim=1 + seed % 3)
    options: Any = {"form": form, "channels": net.channels, "atol": 1e-4}
    if form == "unrolled":
        options["grid"] = GRIDS[net.ndim][seed % 4]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.tiles" if form == "tiles" else "m.onnx")
        assert outcome(net, path, **options) == "right"


@pytest.mark.parametrize("name", ["unet", "pyramid", "columns, LSTM", "columns, GRU", "columns, RNN"])
def test_networks_are_right_on_grids_that_their_export_did_not_see(name: str) -> None:
    check_foreign(name)


@pytest.mark.parametrize(
    ("seed", "form"),  # of one to three axes
    [(0, "tiles"), (1, "tiles"), (1, "scan"), (2, "unrolled"), (3, "scan"), (4, "unrolled"), (5, "scan")],
)
def test_random_layers_are_right_in_every_form(seed: int, form: str) -> None:
    check_random(seed, form)


@pytest.mark.slow
@settings(max_examples=10)
@given(st.sampled_from([*ZOO]), st.integers(0, 10**6), st.sampled_from(FORMS))
def test_drawn_networks_are_right_or_refused(name: str, seed: int, form: str) -> None:
    check_foreign(name)
    check_random(seed, form)


@pytest.mark.parametrize("layers", [SIZED, OF_NUMBERS], ids=["sized", "numbers"])
def test_common_layers_need_no_trust(layers: list[Operation]) -> None:
    names = [f"y{k}" for k in range(len(layers))]
    model = lower(capture(Around(*layers).eval(), {"x": torch.randn(2, 2, 8, 6)}, {}, names).model, "scan")
    known = {name.decode() for name in OPERATORS}
    assert {node.op_type for node in walk(model.graph.node)} <= known
