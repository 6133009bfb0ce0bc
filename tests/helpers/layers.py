"""Layers and functions of PyTorch that users put around an MDLSTM, for exports of many in one graph.

Each maps h (N, 4, H, W) to a tensor (N, …).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.lowering.lower import lower

C = 4  # features of h
Layer = Callable[[Tensor], Tensor]


class Function(nn.Module):
    def __init__(self, function: Layer) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h)


class Around(nn.Module):
    """An MDLSTM, and every layer on its output.

    Args:
        layers: the layers.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.body = MDLSTM(2, C, channels_last=False)
        self.layers = nn.ModuleList(
            layer if isinstance(layer, nn.Module) else Function(layer) for layer in layers
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.body(x)
        return tuple(layer(h) for layer in self.layers)


def exported(layers: Iterable[Layer], *, any_grid: bool = False) -> onnx.ModelProto:
    """A network of layers in the scan form, for a grid 8×6 or for any grid."""
    torch.manual_seed(0)
    net = Around(layers).eval()
    names = [f"y{k}" for k in range(len(net.layers))]
    free_axes = {"x": {2: 1, 3: 1}} if any_grid else {}
    return lower(capture(net, {"x": torch.randn(2, 2, 8, 6)}, free_axes, names), "scan")


def features_last(h: Tensor) -> Tensor:
    return h.permute(0, 2, 3, 1)


def sequence(h: Tensor) -> Tensor:
    """(N, P, 4)."""
    return h.flatten(2).transpose(1, 2)


class Recurrent(nn.Module):
    """`torch.nn.LSTM` or `torch.nn.GRU` along the first positions of a row."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], **options: bool) -> None:
        super().__init__()
        self.layer = kind(C, 3, batch_first=True, **options)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h[:, :, 0, :2].transpose(1, 2))[0]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(C, 2, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        t = sequence(h)
        return self.layer(t, t, t)[0]


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(C, 3)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h.argmax(1))


CONVOLUTIONS: list[Layer] = [
    nn.Conv2d(C, 4, 3),
    nn.Conv2d(C, 4, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(C, 4, 3, groups=2, dilation=2, padding=2),
    nn.Conv2d(C, 4, (2, 3), padding="same", dilation=2),
    nn.Conv2d(C, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(C, 4, 3, padding=1, padding_mode="circular"),
    nn.ConvTranspose2d(C, 4, 2, stride=2, bias=False),
    nn.ConvTranspose2d(C, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.Sequential(nn.Flatten(2), nn.Conv1d(C, 4, 3, padding=1), nn.ConvTranspose1d(4, 4, 2, stride=2)),
    nn.Sequential(nn.Unflatten(1, (1, C)), nn.Conv3d(1, 2, 3, padding=1), nn.ConvTranspose3d(2, 2, 2)),
]
NORMS: list[Layer] = [
    nn.BatchNorm2d(C),
    nn.BatchNorm2d(C, affine=False),
    nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(C), nn.InstanceNorm1d(C, affine=True)),
    nn.Sequential(nn.Unflatten(1, (1, C)), nn.BatchNorm3d(1)),
    nn.GroupNorm(2, C),
    nn.InstanceNorm2d(C),
    nn.InstanceNorm2d(C, affine=True),
    nn.Sequential(Function(features_last), nn.LayerNorm(C)),
    nn.Sequential(Function(features_last), nn.LayerNorm(C, bias=False)),
    nn.Sequential(Function(features_last), nn.RMSNorm(C)),
    nn.LocalResponseNorm(3),
    lambda h: functional.normalize(h, dim=1),
    lambda h: functional.normalize(h, p=1, dim=1),
]
POOLING: list[Layer] = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d(2, 1, dilation=2),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveMaxPool2d(1),
    nn.LPPool2d(2, 2),
    nn.Sequential(nn.Flatten(2), nn.MaxPool1d(2), nn.AvgPool1d(2)),
    nn.Sequential(nn.Unflatten(1, (1, C)), nn.MaxPool3d(2), nn.AvgPool3d(2)),
]
RESIZING: list[Layer] = [
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.Upsample(scale_factor=2, mode="bicubic"),
    lambda h: functional.interpolate(h, size=(5, 7), mode="bilinear"),
    lambda h: functional.interpolate(functional.max_pool2d(h, 2), size=h.shape[2:], mode="bilinear"),
    lambda h: functional.interpolate(functional.max_pool2d(h, 2), size=h.shape[2:]),
    lambda h: functional.interpolate(h, scale_factor=2, mode="bilinear", antialias=True),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.ChannelShuffle(2),
    lambda h: functional.pad(h, (1, 2, 0, 1)),
    lambda h: functional.pad(h, (1, 2), value=3.0),
    lambda h: functional.pad(h, (1, 1, 1, 1), mode="reflect"),
    lambda h: functional.pad(h, (1, 1, 1, 1), mode="replicate"),
    lambda h: functional.pad(h, (1, 1, 1, 1), mode="circular"),
]
ACTIVATIONS: list[Layer] = [
    nn.CELU(0.7),
    nn.ELU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.GLU(1),
    nn.Hardshrink(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(),
    nn.LeakyReLU(),
    nn.LogSigmoid(),
    nn.LogSoftmax(1),
    nn.Mish(),
    nn.PReLU(),
    nn.PReLU(C),
    nn.ReLU(),
    nn.ReLU6(),
    nn.SELU(),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.Softmax(1),
    nn.Softplus(),
    nn.Softshrink(),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Threshold(0.1, 0.2),
    nn.Dropout(0.5),
]
PRODUCTS: list[Layer] = [
    nn.Sequential(Function(features_last), nn.Linear(C, 3)),
    lambda h: functional.linear(h.mean((2, 3)), torch.ones(3, C), torch.ones(3)),
    lambda h: torch.addmm(torch.ones(3), h.mean((2, 3)), torch.ones(C, 3)),
    lambda h: torch.bmm(h.flatten(2), h.flatten(2).transpose(1, 2)),
    lambda h: torch.einsum("nchw,cd->ndhw", h, torch.ones(C, 3)),
    lambda h: torch.einsum("nchw,nchw->n", h, h),
    lambda h: functional.scaled_dot_product_attention(*[sequence(h)[:, None]] * 3),
    lambda h: functional.scaled_dot_product_attention(*[sequence(h)[:, None]] * 3, is_causal=True),
    SelfAttention(),
    nn.Sequential(Function(sequence), nn.TransformerEncoderLayer(C, 2, 8, batch_first=True)),
    Embedded(),
]
RECURRENT: list[Layer] = [
    Recurrent(nn.LSTM),
    Recurrent(nn.LSTM, bidirectional=True),
    Recurrent(nn.GRU),
    Recurrent(nn.GRU, bidirectional=True),
]
REDUCTIONS: list[Layer] = [
    lambda h: h.mean((2, 3)),
    lambda h: h - h.mean(),
    lambda h: h.sum((1, 2), keepdim=True),
    lambda h: h.prod(1),
    lambda h: h.amax((2, 3)),
    lambda h: h.amin((2, 3), keepdim=True),
    lambda h: h.max(1)[0],
    lambda h: h.argmax(1),
    lambda h: h.argmin(1, keepdim=True),
    lambda h: h.std(1),
    lambda h: h.var((2, 3), unbiased=False),
    lambda h: h.logsumexp(1),
    lambda h: h.norm(dim=1),
    lambda h: h.norm(p=1, dim=1),
    lambda h: (h > 0).any(1) & (h < 2).all(1),
    lambda h: h.cumsum(2),
    lambda h: h.topk(2, 1)[0],
    lambda h: h.topk(2, 1, largest=False)[1],
    lambda h: h.sort(1)[0],
]
ARRANGEMENTS: list[Layer] = [
    lambda h: torch.cat([h, h.tanh()], 1) + torch.stack([h, h], 1).flatten(1, 2),
    lambda h: h.split([1, 3], 1)[1],
    lambda h: torch.mul(*h.chunk(2, 1)),
    lambda h: h.unbind(1)[2],
    lambda h: h.reshape(h.shape[0], 2, 2, *h.shape[2:]).permute(0, 2, 1, 3, 4),
    lambda h: h[:, :1].squeeze(1),
    lambda h: h.mean((2, 3), keepdim=True).expand_as(h),
    lambda h: h.repeat(1, 2, 1, 1),
    lambda h: functional.one_hot(h.argmax(1), C),
    lambda h: h.gather(1, h.argmax(1, keepdim=True)),
    lambda h: h.index_select(1, torch.tensor([2, 0])),
    lambda h: h[:, [1, 0]],
    lambda h: h[:, :, ::2, 1:-1],
    lambda h: torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), 1.0),
    lambda h: h.scatter_add(1, h.argmax(1, keepdim=True), h),
    lambda h: h.index_add(1, torch.tensor([0, 2]), h[:, :2]),
    lambda h: torch.slice_scatter(h, h[:, :1], 1, 0, 1),
    lambda h: torch.select_scatter(h, h[:, 0], 1, 1),
    lambda h: h.roll(1, 2),
    lambda h: h.flip((2, 3)),
    lambda h: h.tril() + h.triu(1),
    lambda h: nn.functional.unfold(h, 2),
    lambda h: h + torch.arange(h.shape[3]),
    lambda h: torch.cat([h, torch.ones(h.shape[0], 1, *h.shape[2:])], 1),
    lambda h: h + torch.full_like(h, 3.0),
]
NUMBERS: list[Layer] = [
    lambda h: torch.where(((h > 0) & (h < 1)) | ~(h >= 0.5) ^ (h <= 0.2), h, 0.0),
    lambda h: h.masked_fill(h != 0, float("-inf")).softmax(1),
    lambda h: h.clamp(-1, 1) + h.clamp(min=0) + h.clamp(max=2),
    lambda h: torch.maximum(h, torch.minimum(h * 2, -h)) - 1 / (h.exp() + 1),
    lambda h: h.abs().sqrt().log1p() * (h.abs() + 1).rsqrt() * h.sign(),
    lambda h: h**2 + h.abs() ** 1.5 + h.floor() + h.ceil() + h.round(),
    lambda h: h.sin() + h.cos() + h.tan() + h.sinh() + h.cosh() + h.asinh(),
    lambda h: h.tanh().asin() + h.tanh().acos() + h.atan() + (h.tanh() / 2).atanh() + (h.abs() + 2).acosh(),
    lambda h: h.erf() + h.fmod(2.0) + h.remainder(2.0),
    lambda h: h.isnan() | h.isinf(),
    lambda h: h.half().float() + h.double().float() + h.int() + h.bool(),
    lambda h: h.to(torch.int8) + h.to(torch.uint8) + h.to(torch.int16),
    lambda h: h.long() // 3 % 2,
]
# Sizes and shapes are computed in the graph if the grid is free.
ANY_GRID = (NORMS, POOLING, RESIZING, PRODUCTS, REDUCTIONS, ARRANGEMENTS)
ONE_GRID = (CONVOLUTIONS, ACTIVATIONS, NUMBERS, RECURRENT)
