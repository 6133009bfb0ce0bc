"""The common layers and functions of PyTorch need no trust around a sweep; each operator comes once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.lowering.lower import lower, walk
from mdlstm_tk.runtime.model_check import OPERATORS

C = 4  # features of h (N, 4, H, W), which each of these takes
Layer = Callable[[Tensor], Tensor]


class Function(nn.Module):
    """A function, or a layer with what is done before and after it."""

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layers = function, [] if layer is None else nn.ModuleList([layer])

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h, *self.layers)


def on_features(layer: nn.Module) -> Layer:
    return Function(lambda h, layer: layer(h.permute(0, 2, 3, 1)), layer)


def on_sequence(layer: nn.Module) -> Layer:
    """A recurrent layer along the first positions of a row."""
    return Function(lambda h, layer: layer(h[:, :, 0, :2].transpose(1, 2))[0], layer)


def positions(h: Tensor) -> Tensor:
    """(N, P, 4)."""
    return h.flatten(2).transpose(1, 2)


def attend(h: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(*[positions(h)[:, None]] * 3, is_causal=True)


CONVOLUTIONS: list[Layer] = [
    nn.Conv2d(C, 4, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(C, 4, 3, padding=1, padding_mode="reflect"),
    nn.ConvTranspose2d(C, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.Sequential(nn.Unflatten(1, (1, C)), nn.Conv3d(1, 2, 3, padding=1), nn.ConvTranspose3d(2, 2, 2)),
]
NORMS: list[Layer] = [
    nn.Sequential(nn.BatchNorm2d(C), nn.GroupNorm(2, C), nn.InstanceNorm2d(C, affine=True)),
    nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(C), nn.InstanceNorm1d(C, affine=True)),
    on_features(nn.LayerNorm(C)),
    on_features(nn.RMSNorm(C)),
    nn.LocalResponseNorm(3),
    *(lambda h, p=p: functional.normalize(h, p=p, dim=1) for p in (1, 2)),
]
RESIZING: list[Layer] = [
    nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveMaxPool2d(1),
    nn.Upsample(scale_factor=2, mode="nearest"),
    lambda h: functional.interpolate(functional.max_pool2d(h, 2), size=h.shape[2:], mode="bilinear"),
    nn.PixelShuffle(2),
]
ACTIVATIONS: list[Layer] = [
    *(kind() for kind in (nn.CELU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU)),
    *(kind() for kind in (nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.SiLU, nn.Mish)),
    *(kind() for kind in (nn.Softplus, nn.Softshrink, nn.Softsign, nn.LogSigmoid, nn.Tanh, nn.Dropout)),
    *(kind(1) for kind in (nn.GLU, nn.Softmax, nn.LogSoftmax)),
]
PRODUCTS: list[Layer] = [
    on_features(nn.Linear(C, 3)),
    lambda h: torch.einsum("nchw,nchw->n", h, h),
    attend,
    Function(lambda h, layer: layer(positions(h)), nn.TransformerEncoderLayer(C, 2, 8, batch_first=True)),
    Function(lambda h, layer: layer(h.argmax(1)), nn.Embedding(C, 3)),
]
RECURRENT: list[Layer] = [
    on_sequence(kind(C, 3, batch_first=True, bidirectional=True)) for kind in (nn.LSTM, nn.GRU)
]
REDUCTIONS: list[Layer] = [
    lambda h: h - h.mean() + h.mean((2, 3), keepdim=True) + h.sum((1, 2), keepdim=True),
    lambda h: h.prod(1) + h.amax(1) + h.amin(1) + h.max(1)[0] + h.argmax(1) + h.argmin(1),
    lambda h: h.std(1) + h.var(1, unbiased=False) + h.logsumexp(1) + h.norm(dim=1) + h.norm(p=1, dim=1),
    lambda h: h.cumsum(2) + h.sort(1)[0],
]
ARRANGEMENTS: list[Layer] = [
    lambda h: h.split([1, 3], 1)[1] + torch.mul(*h.chunk(2, 1))[:, :1] + h.unbind(1)[2][:, None],
    lambda h: h[:, :1].squeeze(1) + h[:, [1, 0]].index_select(1, torch.tensor([1]))[:, 0],
    lambda h: h.mean((2, 3), keepdim=True).expand_as(h).repeat(1, 2, 1, 1),
    lambda h: h.gather(1, h.argmax(1, keepdim=True)),
    lambda h: torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), 1.0),
    lambda h: torch.slice_scatter(h, h[:, :1], 1, 0, 1) + torch.select_scatter(h, h[:, 0], 1, 1),
]
NUMBERS: list[Layer] = [
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
GROUPS = {  # and whether sizes and shapes are computed in the graph, as the grid is free
    "norms and sizes": ([*NORMS, *RESIZING], True),
    "products and reductions": ([*PRODUCTS, *REDUCTIONS, *ARRANGEMENTS], True),
    "convolutions and recurrent layers": ([*CONVOLUTIONS, *RECURRENT], False),
    "functions of numbers": ([*ACTIVATIONS, *NUMBERS], False),
}


class Around(nn.Module):
    """An MDLSTM, and every layer on its output."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.body = MDLSTM(2, C, channels_last=False)
        self.layers = nn.ModuleList(
            layer if isinstance(layer, nn.Module) else Function(layer) for layer in layers
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.body(x)
        return tuple(layer(h) for layer in self.layers)


@pytest.mark.parametrize("name", GROUPS)
def test_common_layers_need_no_trust(name: str) -> None:
    layers, any_grid = GROUPS[name]
    names = [f"y{k}" for k in range(len(layers))]
    free_axes = {"x": [2, 3]} if any_grid else {}
    x = torch.randn(2, 2, *((40, 56) if any_grid else (8, 6)))
    model = lower(capture(Around(layers).eval(), {"x": x}, free_axes, names).model, "scan")
    known = {name.decode() for name in OPERATORS}
    assert {node.op_type for node in walk(model.graph.node)} <= known
