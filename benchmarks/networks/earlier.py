"""42 networks: segmentation and detection heads, recognisers, tokens, warps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM


class Around(nn.Module):
    """A module that computes a lambda with layers: `forward(layers, *inputs)`."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers, x)


class Pair(Around):
    def forward(self, x: Tensor, z: Tensor) -> Any:  # type: ignore[override]
        return self.function(self.layers, x, z)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def first(inputs: int, units: int, **options: Any) -> MDLSTM:
    """A layer that is channels-first."""
    return MDLSTM(inputs, units, channels_last=False, **options)


def last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def columns(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, W, C·H)."""
    return x.permute(0, 3, 1, 2).flatten(2)


def resized(y: Tensor, x: Tensor) -> Tensor:
    return functional.interpolate(y, size=x.shape[2:], mode="bilinear")


def boxes(y: Tensor) -> Tensor:
    """The places of a sampling grid around the centre, from two features."""
    return y[:, :2].movedim(1, -1).tanh()


def unet(n: Any, x: Tensor) -> Tensor:
    a = n["a"](x)
    b = n["b"](a)
    return n["head"](torch.cat([a, n["up"](n["body"](b))], 1))


def unet_of(body: nn.Module, features: int) -> nn.Module:
    up, head = nn.ConvTranspose2d(features, 4, 2, 2), nn.Conv2d(8, 2, 1)
    return Around(unet, a=conv(1, 4), b=conv(4, 6, 2), body=body, up=up, head=head)


def deep_unet(n: Any, x: Tensor) -> Tensor:
    a = n["a"](x)
    b = n["b"](a)
    h = n["body"](n["c"](b))
    h = torch.cat([functional.interpolate(h, scale_factor=2.0), b], 1)
    return n["head"](torch.cat([functional.interpolate(h, scale_factor=2.0), a], 1))


def pyramid(n: Any, x: Tensor) -> dict[str, Tensor]:
    fine = n["fine"](x)
    coarse = n["coarse"](fine)
    merged = n["side"](fine) + functional.interpolate(n["body"](coarse), size=fine.shape[2:])
    return {"scores": n["scores"](merged), "boxes": n["boxes"](merged).exp()}


def peaks(n: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The five highest scores, and their places."""
    scores, index = n["body"](x).mean(-1).flatten(1).topk(5)
    return scores, index


def positive(n: Any, x: Tensor) -> Tensor:
    y = n["body"](x).flatten(1)
    index = torch.nonzero(y > 0)
    return y.new_zeros(y.shape[0]).index_add(0, index[:, 0], y[index[:, 0], index[:, 1]])[:, None]


def attention(n: Any, x: Tensor) -> Tensor:
    y = n["body"](x)
    t = y.flatten(1, 2)
    return n["head"](n["attention"](t, t, t)[0].mean(1))


def recur(kind: type[nn.LSTM | nn.GRU]) -> nn.Module:
    after = kind(3, 4, batch_first=True, bidirectional=True)
    return Around(lambda n, x: n["after"](n["body"](x).mean(1))[0], body=MDLSTM(1, 3), after=after)


def branch(n: Any, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda h: 2 * h, lambda h: h - 1, (n["body"](x),))


IMAGE, GREY, LINE = torch.rand(1, 3, 24, 32), torch.rand(1, 1, 24, 32), torch.rand(1, 1, 16, 40)
MATRIX, SIGNAL, VOLUME = torch.rand(1, 9, 11, 1), torch.rand(1, 20, 3), torch.rand(1, 5, 6, 7, 1)
SCAN = {"form": "scan"}
Make = Callable[[], nn.Module]
# name: network, example_inputs, options, shapes of one sample x to compare on
NETWORKS: dict[str, tuple[Make, Any, dict[str, Any], list[tuple[int, ...]]]] = {
    "layer": (lambda: MDLSTM(1, 8, directions="all"), MATRIX, SCAN, [(4, 17, 1)]),
    "signal": (lambda: MDLSTM(3, 8, ndim=1, directions="all"), SIGNAL, SCAN, [(33, 3)]),
    "volume": (lambda: MDLSTM(1, 4, ndim=3), VOLUME, SCAN, [(3, 8, 5, 1)]),
    "slstm": (lambda: MDLSTM(1, 8, cell="slstm"), MATRIX, SCAN, [(7, 8, 1)]),
    "segmentation head": (
        lambda: Around(
            lambda n, x: resized(n["head"](n["body"](n["stem"](x))), x),
            stem=nn.Sequential(conv(3, 8, 2), conv(8, 8, 2)),
            body=first(8, 6, directions="all"),
            head=nn.Conv2d(24, 4, 1),
        ),
        IMAGE,
        SCAN,
        [(3, 40, 28)],
    ),
    "classifier": (
        lambda: Around(
            lambda n, x: n["head"](n["body"](last(n["stem"](x))).mean((1, 2))),
            stem=nn.Sequential(conv(3, 8, 2), nn.MaxPool2d(2)),
            body=MDLSTM(8, 6),
            head=nn.Linear(6, 10),
        ),
        IMAGE,
        SCAN,
        [(3, 31, 45)],
    ),
    "classifier, flattened": (
        lambda: Around(
            lambda n, x: n["head"](n["body"](last(n["stem"](x))).flatten(1)),
            stem=conv(3, 8, 8),
            body=MDLSTM(8, 6),
            head=nn.Linear(6 * 12, 10),
        ),
        IMAGE,
        {},
        [(3, 24, 32)],
    ),
    "classifier, adaptive": (
        lambda: Around(
            lambda n, x: n["head"](
                functional.adaptive_avg_pool2d(n["body"](n["stem"](x)), (1, 1)).flatten(1)
            ),
            stem=conv(3, 8, 2),
            body=first(8, 6),
            head=nn.Linear(6, 10),
        ),
        IMAGE,
        SCAN,
        [(3, 17, 50)],
    ),
    "pyramid detection": (
        lambda: Around(
            pyramid,
            fine=conv(3, 8, 2),
            coarse=conv(8, 8, 2),
            body=first(8, 8),
            side=nn.Conv2d(8, 8, 1),
            scores=nn.Conv2d(8, 3, 1),
            boxes=nn.Conv2d(8, 4, 1),
        ),
        IMAGE,
        SCAN,
        [(3, 48, 32)],
    ),
    "keypoints": (lambda: Around(peaks, body=MDLSTM(1, 4, directions="all")), MATRIX, SCAN, [(8, 12, 1)]),
    "heat maps": (
        lambda: Around(
            lambda n, x: n["head"](n["body"](x)).flatten(2).softmax(-1).view(x.shape[0], 3, *x.shape[2:]),
            body=first(1, 4, directions="all"),
            head=nn.Conv2d(16, 3, 1),
        ),
        GREY,
        SCAN,
        [(1, 9, 30)],
    ),
    "unet": (
        lambda: unet_of(first(6, 5, directions="all"), 20),
        GREY,
        {**SCAN, "multiple_of": 2},
        [(1, 10, 36)],
    ),
    "unet, unrolled": (lambda: unet_of(first(6, 5), 5), GREY, {}, [(1, 24, 32)]),
    "unet, float16": (lambda: unet_of(first(6, 5), 5), GREY, {"dtype": "float16"}, [(1, 24, 32)]),
    "unet, two levels": (
        lambda: Around(
            deep_unet,
            a=conv(1, 4),
            b=conv(4, 6, 2),
            c=conv(6, 8, 2),
            body=first(8, 6, cell="leaky"),
            head=nn.Conv2d(16, 1, 1),
        ),
        GREY,
        {**SCAN, "multiple_of": 4},
        [(1, 12, 40)],
    ),
    "super resolution": (
        lambda: Around(
            lambda n, x: functional.pixel_shuffle(n["head"](n["body"](x)), 2),
            body=first(1, 6),
            head=nn.Conv2d(6, 4, 3, padding=1),
        ),
        GREY,
        SCAN,
        [(1, 13, 21)],
    ),
    "residual": (
        lambda: Around(
            lambda n, x: x + n["head"](n["norm"](n["body"](x))),
            body=first(3, 8),
            norm=nn.GroupNorm(2, 8),
            head=nn.Conv2d(8, 3, 1),
        ),
        IMAGE,
        SCAN,
        [(3, 10, 26)],
    ),
    "crnn, free width": (
        lambda: Around(
            lambda n, x: n["head"](n["body"](columns(n["stem"](x)))).log_softmax(-1),
            stem=nn.Sequential(conv(1, 6), nn.MaxPool2d(2), conv(6, 8), nn.MaxPool2d((2, 1))),
            body=MDLSTM(8 * 4, 12, ndim=1, directions="all"),
            head=nn.Linear(24, 20),
        ),
        LINE,
        {"grid": (16, None)},
        [(1, 16, 90), (1, 16, 33)],
    ),
    "crnn, any height": (
        lambda: Around(
            lambda n, x: n["head"](n["body"](n["stem"](x).mean(2).movedim(1, -1))),
            stem=conv(1, 8, 2),
            body=MDLSTM(8, 12, ndim=1, directions="all"),
            head=nn.Linear(24, 20),
        ),
        LINE,
        SCAN,
        [(1, 20, 61)],
    ),
    "md recogniser": (
        lambda: Around(
            lambda n, x: n["head"](n["two"](n["one"](x)).sum(1)),
            one=MDLSTM(1, 4, directions="all", window=(2, 2)),
            two=MDLSTM(16, 8, directions="all"),
            head=nn.Linear(32, 20),
        ),
        MATRIX,
        SCAN,
        [(16, 40, 1)],
    ),
    "gru after": (lambda: recur(nn.GRU), MATRIX, SCAN, [(6, 25, 1)]),
    "lstm after": (lambda: recur(nn.LSTM), MATRIX, SCAN, [(6, 25, 1)]),
    "tokens": (
        lambda: Around(lambda n, x: n["body"](n["table"](x)), table=nn.Embedding(9, 6), body=MDLSTM(6, 5)),
        torch.randint(9, (1, 6, 7)),
        SCAN,
        [(5, 9)],
    ),
    "tokens with channels": (
        lambda: Around(
            lambda n, x: n["body"](n["table"](x).flatten(-2)), table=nn.Embedding(9, 3), body=MDLSTM(6, 5)
        ),
        torch.randint(9, (1, 6, 7, 2)),
        SCAN,
        [(5, 9, 2)],
    ),
    "token sequence": (
        lambda: Around(
            lambda n, x: n["body"](n["table"](x)), table=nn.Embedding(9, 6), body=MDLSTM(6, 5, ndim=1)
        ),
        torch.randint(9, (1, 12)),
        SCAN,
        [(30,)],
    ),
    "float tokens": (
        lambda: Around(
            lambda n, x: n["body"](n["table"](x[..., 0].long())),
            table=nn.Embedding(9, 6),
            body=MDLSTM(6, 5),
        ),
        torch.zeros(1, 6, 7, 1),
        {**SCAN, "example_range": (0, 8)},
        [],
    ),
    "log spectrogram": (
        lambda: Around(lambda n, x: n["body"]((x + 1e-3).log()[..., None]), body=MDLSTM(1, 6)),
        torch.rand(1, 30, 16),
        SCAN,
        [(50, 16)],
    ),
    "log mel, free time": (
        lambda: Around(
            lambda n, x: n["head"](n["body"](x.clamp(min=1e-5).log10()).flatten(2)),
            body=MDLSTM(1, 4),
            head=nn.Linear(4 * 16, 3),
        ),
        torch.rand(1, 30, 16, 1),
        {"grid": (None, 16)},
        [(50, 16, 1)],
    ),
    "warp": (
        lambda: Around(
            lambda n, x: functional.grid_sample(x, boxes(n["body"](x)), align_corners=False),
            body=first(1, 2),
        ),
        GREY,
        SCAN,
        [(1, 12, 19)],
    ),
    "spatial transformer": (
        lambda: Around(
            lambda n, x: functional.grid_sample(
                x,
                functional.affine_grid(
                    n["head"](n["body"](x).mean((2, 3))).view(-1, 2, 3),
                    (x.shape[0], 1, 9, 9),
                    align_corners=False,
                ),
                align_corners=False,
            ),
            body=first(1, 4),
            head=nn.Linear(4, 6),
        ),
        GREY,
        {},
        [(1, 24, 32)],
    ),
    "branch": (lambda: Around(branch, body=MDLSTM(1, 4)), MATRIX, {}, [(9, 11, 1)]),
    "nonzero": (lambda: Around(positive, body=MDLSTM(1, 4)), MATRIX, SCAN, [(5, 14, 1)]),
    "attention": (
        lambda: Around(
            attention,
            body=MDLSTM(1, 8),
            attention=nn.MultiheadAttention(8, 2, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        MATRIX,
        SCAN,
        [(6, 8, 1)],
    ),
    "two grids": (
        lambda: Pair(lambda n, x, z: n["a"](x) + n["b"](z), a=MDLSTM(1, 4), b=MDLSTM(3, 4)),
        (MATRIX, torch.rand(1, 9, 11, 3)),
        {**SCAN, "grid_inputs": ["z"]},
        [(5, 8, 1)],
    ),
    "image and mask": (
        lambda: Pair(
            lambda n, x, z: n["head"](n["body"](x) * z), body=first(3, 4), head=nn.Conv2d(4, 2, 1)
        ),
        (IMAGE, torch.rand(1, 1, 24, 32)),
        {**SCAN, "grid_inputs": ["z"]},
        [(3, 11, 18)],
    ),
    "image and vector": (
        lambda: Pair(
            lambda n, x, z: n["body"](x) + n["shift"](z)[:, None, None],
            body=MDLSTM(1, 4),
            shift=nn.Linear(5, 4),
        ),
        (MATRIX, torch.rand(1, 5)),
        SCAN,
        [(7, 6, 1)],
    ),
    "batch mixed": (
        lambda: Around(lambda n, x: n["body"](x - x.mean(0)), body=MDLSTM(1, 4)),
        MATRIX,
        SCAN,
        [],
    ),
    "log of anything": (lambda: Around(lambda n, x: n["body"](x.log()), body=MDLSTM(1, 4)), None, SCAN, []),
    "layer in a branch": (
        lambda: Around(
            lambda n, x: torch.cond(x.sum() > 0, lambda x: n["body"](x), lambda x: -n["body"](x), (x,)),
            body=MDLSTM(1, 4),
        ),
        MATRIX,
        {},
        [],
    ),
}
