"""Networks for images: blocks, pyramids, detection heads, norms, paddings, volumes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM, tiling
from networks.earlier import Around, Pair, conv, first, last

RGB, GREY, VOLUME = torch.rand(2, 3, 16, 24), torch.rand(2, 1, 16, 24), torch.rand(2, 2, 4, 6, 8)
ANY = [(3, 12, 20), (3, 17, 9)]
ANY_GREY = [(1, 12, 20), (1, 17, 9)]


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 2), nn.SiLU(), nn.Linear(2, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class Bottleneck(nn.Module):
    """A residual block with the attributes of torchvision's."""

    expansion: int = 2

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, groups=2), nn.BatchNorm2d(width)
        self.conv3, self.relu = nn.Conv2d(width, outputs, 1), nn.ReLU(inplace=True)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.conv3(self.relu(self.bn2(self.conv2(out))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Branching(nn.Module):
    """Decisions by shapes, as in code that grew."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.wide = first(3, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if c == 1:
            x = x.expand(n, 3, h, w)
        assert x.dim() == 4, f"expected a batch, got {x.shape}"
        y = self.wide(self.body(x))
        return y if y.shape[-2:] == (h, w) else functional.interpolate(y, size=(h, w))


class CoordConv(nn.Module):
    """Coordinates as channels, from `torch.linspace`."""

    def __init__(self, dtype: bool = True) -> None:
        super().__init__()
        self.conv, self.body, self.dtype = nn.Conv2d(5, 4, 1), first(4, 3), dtype

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        options = {"dtype": x.dtype, "device": x.device} if self.dtype else {}
        ys = torch.linspace(-1, 1, h, **options).view(1, 1, h, 1).expand(n, 1, h, w)
        xs = torch.linspace(-1, 1, w, **options).view(1, 1, 1, w).expand(n, 1, h, w)
        return self.body(self.conv(torch.cat([x, ys, xs], 1)))


class SSD(nn.Module):
    """Boxes and classes of several scales, flattened and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 6, 2), first(6, 4, directions="all")
        self.extra = nn.ModuleList([conv(16, 8, 2), conv(8, 8, 2)])
        self.loc = nn.ModuleList([nn.Conv2d(c, 2 * 4, 3, padding=1) for c in (16, 8, 8)])
        self.conf = nn.ModuleList([nn.Conv2d(c, 2 * 5, 3, padding=1) for c in (16, 8, 8)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = [self.body(self.stem(x))]
        for layer in self.extra:
            features.append(layer(features[-1]))
        loc, conf = [], []
        for f, box, score in zip(features, self.loc, self.conf, strict=True):
            loc.append(box(f).permute(0, 2, 3, 1).contiguous().view(f.size(0), -1, 4))
            conf.append(score(f).permute(0, 2, 3, 1).contiguous().view(f.size(0), -1, 5))
        return torch.cat(loc, 1), torch.cat(conf, 1).softmax(-1)


class YOLO(nn.Module):
    """A head that decodes boxes with a grid of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 6, 4), first(6, 5), nn.Conv2d(5, 2 * 7, 1)
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [3.0, 1.5]]))

    def forward(self, x: Tensor) -> Tensor:
        p = self.head(self.body(self.stem(x)))
        n, _, h, w = p.shape
        p = p.view(n, 2, 7, h, w).permute(0, 1, 3, 4, 2)
        gy, gx = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((gx, gy), -1).to(p.dtype)
        xy = (p[..., :2].sigmoid() + grid) * 4
        wh = p[..., 2:4].exp() * self.anchors[None, :, None, None]
        return torch.cat([xy, wh, p[..., 4:].sigmoid()], -1).reshape(n, -1, 7)


class FPN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.ModuleDict({"c2": conv(3, 4, 2), "c3": conv(4, 6, 2), "c4": conv(6, 8, 2)})
        self.side = nn.ModuleDict({"c2": nn.Conv2d(4, 5, 1), "c3": nn.Conv2d(6, 5, 1), "c4": first(8, 5)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for name, layer in self.c.items():
            x = features[name] = layer(x)
        p = self.side["c4"](features["c4"])
        out = {"p4": p}
        for name in ("c3", "c2"):
            lateral = self.side[name](features[name])
            p = lateral + functional.interpolate(p, size=lateral.shape[-2:], mode="nearest")
            out["p" + name[1]] = p
        return out


class AttentionGate(nn.Module):
    """The gate of an attention U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.body, self.up = conv(1, 6, 2), first(6, 4), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.skip, self.gate, self.out = conv(1, 4), nn.Conv2d(4, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        g, s = self.up(self.body(self.down(x))), self.skip(x)
        g = g[:, :, : s.shape[2], : s.shape[3]]
        return self.out(torch.cat([s * torch.sigmoid(self.gate(functional.relu(g + s))), g], dim=1))


class UNetPadded(nn.Module):
    """Pads the decoder to the skip connection, as a well-known U-Net does."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down = conv(1, 4), nn.Sequential(nn.MaxPool2d(2), conv(4, 6))
        self.body, self.up, self.out = first(6, 4), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.up(self.body(self.down(a)))
        dy, dx = a.size(2) - b.size(2), a.size(3) - b.size(3)
        b = functional.pad(b, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.out(torch.cat([a, b], dim=1))


def norm_net(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.GELU(), first(4, 3), nn.Conv2d(3, 2, 1))


def padded_conv(mode: str) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), first(4, 3))


def weight_normed(wrap: Any) -> nn.Module:
    return nn.Sequential(wrap(nn.Conv2d(3, 4, 3, padding=1)), first(4, 3), nn.Conv2d(3, 2, 1))


def parametrized_layer(wrap: Any) -> nn.Module:
    layer = first(3, 4)
    wrap(layer, "weight_hh_l0")
    return layer


def checkpointed(n: Any, x: Tensor) -> Tensor:
    return n["head"](tiling.checkpointed(n["body"], n["stem"](x), tile=4))


def amp(n: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = n["body"](n["stem"](x))
    return n["head"](y.float())


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), first(4, 3))
    import torch.nn.utils.prune as prune

    prune.random_unstructured(net[0], "weight", 0.3)
    return net


def siamese(n: Any, x: Tensor, z: Tensor) -> Tensor:
    a, b = (n["body"](n["stem"](v)).mean((2, 3)) for v in (x, z))
    return functional.cosine_similarity(a, b)[:, None]


def video(n: Any, x: Tensor) -> Tensor:
    """(N, T, H, W, C): a layer over each frame, an LSTM over the frames."""
    b, t = x.shape[:2]
    y = n["body"](x.flatten(0, 1)).mean((1, 2)).view(b, t, -1)
    return n["time"](y)[0][:, -1]


pools = nn.utils.parametrizations
M2, ODD = {"multiple_of": 2}, [(1, 10, 12), (1, 6, 20)]
# name: network, example_inputs, options, shapes of one sample x for a scan, () if there is none
NETWORKS: dict[str, tuple[Any, Any, dict[str, Any], list[tuple[int, ...]]]] = {
    "squeeze-excite": (
        lambda: nn.Sequential(first(3, 4), SqueezeExcite(4), nn.Conv2d(4, 2, 1)),
        RGB,
        {},
        ANY,
    ),
    "bottleneck": (lambda: nn.Sequential(Bottleneck(3, 4, 2), first(8, 3), Bottleneck(3, 4)), RGB, {}, ANY),
    "branching by shape": (Branching, RGB, {}, ANY),
    "coordconv, dtype": (CoordConv, RGB, {}, ANY),
    "coordconv, default": (lambda: CoordConv(False), RGB, {}, ANY),
    "ssd": (SSD, RGB, {}, ANY),
    "yolo": (YOLO, RGB, {}, [(3, 16, 24), (3, 20, 36)]),
    "fpn": (FPN, RGB, {}, ANY),
    "attention gate": (AttentionGate, GREY, {}, ODD),
    "unet, padded": (UNetPadded, GREY, {}, ANY_GREY),
    "group norm": (lambda: norm_net(nn.GroupNorm(2, 4)), RGB, {}, ANY),
    "instance norm": (lambda: norm_net(nn.InstanceNorm2d(4, affine=True)), RGB, {}, ANY),
    "batch norm, no stats": (lambda: norm_net(nn.BatchNorm2d(4, track_running_stats=False)), RGB, {}, ANY),
    "local response norm": (lambda: norm_net(nn.LocalResponseNorm(2)), RGB, {}, ANY),
    "weight norm": (lambda: weight_normed(pools.weight_norm), RGB, {}, ANY),
    "spectral norm": (lambda: weight_normed(pools.spectral_norm), RGB, {}, ANY),
    "old weight norm": (lambda: weight_normed(nn.utils.weight_norm), RGB, {}, ANY),
    "old spectral norm": (lambda: weight_normed(nn.utils.spectral_norm), RGB, {}, ANY),
    "weight norm of a layer": (lambda: parametrized_layer(pools.weight_norm), RGB, {}, ANY),
    "spectral norm of a layer": (lambda: parametrized_layer(pools.spectral_norm), RGB, {}, ANY),
    "pruned": (pruned, RGB, {}, ANY),
    "reflect padding": (lambda: padded_conv("reflect"), RGB, {}, ANY),
    "replicate padding": (lambda: padded_conv("replicate"), RGB, {}, ANY),
    "circular padding": (lambda: padded_conv("circular"), RGB, {}, ANY),
    "adaptive pool": (
        lambda: nn.Sequential(first(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        RGB,
        {},
        ANY,
    ),
    "adaptive pool 4x6": (
        lambda: nn.Sequential(first(3, 4), nn.AdaptiveAvgPool2d((4, 6)), nn.Flatten(), nn.Linear(96, 5)),
        RGB,
        {},
        [(3, 16, 24)],
    ),
    "pixel unshuffle": (
        lambda: nn.Sequential(nn.PixelUnshuffle(2), first(4, 4), nn.PixelShuffle(2)),
        GREY,
        M2,
        ODD,
    ),
    "unfold": (
        lambda: Around(
            lambda n, x: n["body"](functional.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])),
            body=first(9, 3),
        ),
        GREY,
        {},
        ANY_GREY,
    ),
    "bicubic": (
        lambda: Around(
            lambda n, x: functional.interpolate(
                n["body"](x), scale_factor=2, mode="bicubic", align_corners=False
            ),
            body=first(3, 3),
        ),
        RGB,
        {},
        ANY,
    ),
    "dilated": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.PReLU(), first(4, 3)),
        RGB,
        {},
        ANY,
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.Hardswish(), first(6, 3)),
        RGB,
        {},
        ANY,
    ),
    "valid convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), first(4, 3), nn.Conv2d(3, 2, 3)),
        RGB,
        {},
        ANY,
    ),
    "floor stride": (lambda: nn.Sequential(first(3, 4), nn.Conv2d(4, 1, 2, stride=2)), RGB, {}, ANY),
    "checkpointed": (
        lambda: Around(checkpointed, stem=nn.Conv2d(3, 4, 1), body=first(4, 3), head=nn.Conv2d(3, 2, 1)),
        RGB,
        {},
        ANY,
    ),
    "autocast inside": (
        lambda: Around(amp, stem=nn.Conv2d(3, 4, 1), body=first(4, 3), head=nn.Conv2d(3, 2, 1)),
        RGB,
        {},
        ANY,
    ),
    "siamese": (
        lambda: Pair(siamese, stem=conv(3, 4, 2), body=first(4, 3)),
        (RGB, RGB.flip(3)),
        {"grid_inputs": ["z"]},
        ANY,
    ),
    "volume, channels first": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), first(4, 3, ndim=3), nn.Conv3d(3, 2, 1)),
        VOLUME,
        {},
        [(2, 3, 5, 7)],
    ),
    "3-D unet": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 2, stride=2), first(4, 3, ndim=3), nn.ConvTranspose3d(3, 2, 2, 2)
        ),
        VOLUME,
        M2,
        [(2, 6, 4, 8)],
    ),
    "video": (
        lambda: Around(video, body=MDLSTM(1, 3), time=nn.LSTM(3, 4, batch_first=True)),
        torch.rand(2, 3, 5, 6, 1),
        {"channels_last": True},
        [(4, 5, 7, 1)],
    ),
    "channels last": (
        lambda: Around(
            lambda n, x: n["c"](n["body"](last(x).contiguous()).movedim(-1, 1)),
            body=MDLSTM(3, 4, directions="all", merge="mean"),
            c=nn.Conv2d(4, 2, 1),
        ),
        RGB,
        {"channels_last": False},
        ANY,
    ),
}
