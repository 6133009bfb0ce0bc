"""Networks of the kinds that users bring: strides, skip connections, several outputs, several inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk import MDLSTM


class UNet(nn.Module):
    """Channels first: a stride of 2 down, an MDLSTM layer, a stride of 2 up, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.body = MDLSTM(3, 2, directions="all", channels_last=False)
        self.up = nn.ConvTranspose2d(8, 3, 2, stride=2)
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.up(self.body(self.down(x).relu()))], dim=1))


class ConvStem(nn.Module):
    """A stem as in torchvision, x (N, 3, H, W), before a channels-last layer.

    Args:
        positions: positions of the layer's grid if the head takes them all, so that the network takes one
            grid only; None if it takes their mean.
    """

    def __init__(self, positions: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.layer = MDLSTM(4, 3)
        self.positions = positions
        self.head = nn.Linear(3 * (positions or 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.stem(x).permute(0, 2, 3, 1))
        return self.head(h.flatten(1) if self.positions else h.mean(dim=(1, 2)))


class WindowedConv(nn.Module):
    """A layer with a window, followed by a convolution without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MDLSTM(1, 4, window=2)
        self.convolution = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(self.layer(x).movedim(-1, 1)).movedim(1, -1)


class Conditioned(nn.Module):
    """x and two more inputs: numbers z (N, 2), and a class k (N,) which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MDLSTM(2, 3)
        self.shift = nn.Linear(2, 3)
        self.embedding = nn.Embedding(4, 3)

    def forward(self, x: Tensor, z: Tensor, k: Tensor | None = None) -> Tensor:
        y = self.layer(x) + self.shift(z)[:, None, None]
        return y if k is None else y + self.embedding(k)[:, None, None]


class ManyHeads(nn.Module):
    """Channels first, with several outputs: a map, numbers for the whole sample, and a mask of integers.

    Args:
        container: dict, tuple or list: what they are returned in.
    """

    def __init__(self, container: type = dict) -> None:
        super().__init__()
        self.container = container
        self.layer = MDLSTM(3, 2, directions="all", channels_last=False)
        self.map = nn.Conv2d(8, 2, 1)
        self.numbers = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> object:
        h = self.layer(x)
        outputs = {
            "map": self.map(h),
            "numbers": self.numbers(h.mean(dim=(2, 3))),
            "mask": self.map(h).argmax(1),
        }
        return outputs if self.container is dict else self.container(outputs.values())


class FoldedHeight(nn.Module):
    """A recogniser that folds the height of an image into features, so that it takes one height only."""

    def __init__(self, height: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.layer = MDLSTM(3 * (height // 2), 4, ndim=1, directions="all")
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x).permute(0, 3, 1, 2).flatten(2)))


class Tokens(nn.Module):
    """A grid of indices of a table with 7 rows: integers (N, H, W), or floats (N, H, W, 1)."""

    def __init__(self, last_axis: int) -> None:
        super().__init__()
        self.has_axis = bool(last_axis)
        self.table, self.layer = nn.Embedding(7, 4), MDLSTM(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.table(x[..., 0].long() if self.has_axis else x))


class TwoGrids(nn.Module):
    """Two images of one size, with one and with three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MDLSTM(1, 2), MDLSTM(3, 2, directions="all", merge="sum")

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.first(x) + self.second(z)


class Function(nn.Module):
    """A layer, and a function of x or of the output.

    Args:
        before, after: the functions.
        **options: of the layer.
    """

    def __init__(self, before: Any = None, after: Any = None, **options: Any) -> None:
        super().__init__()
        self.layer, self.before, self.after = MDLSTM(1, 2, **options), before, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x if self.before is None else self.before(x))
        return y if self.after is None else self.after(y)


def spectrogram() -> Function:
    """(N, time, frequency) without an axis for channels, which begins with a logarithm."""
    return Function(lambda x: (x + 1e-3).log()[..., None])


def warped() -> Function:
    """Channels first: features that are sampled at places which the network computes."""
    sample = nn.functional.grid_sample
    return Function(after=lambda y: sample(y, y.movedim(1, -1), align_corners=False), channels_last=False)


def branching() -> Function:
    """A branch that a batch with a large feature takes, which changes that feature alone."""
    return Function(
        after=lambda y: torch.cond((y > 0.1).any(), lambda h: h.clamp(max=0.1), torch.clone, (y,))
    )


def sparse() -> Function:
    """The sum of the positive features of each sample, by way of their indices."""

    def summed(y: Tensor) -> Tensor:
        y = y.flatten(1)
        index = torch.nonzero(y > 0)
        return y.new_zeros(y.shape[0]).index_add(0, index[:, 0], y[index[:, 0], index[:, 1]])[:, None]

    return Function(after=summed)
