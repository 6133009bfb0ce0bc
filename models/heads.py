"""Networks that read a whole grid: which class it is, which class each cell is, which text it holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mdlstm_tk.backends.tables import valid_mask
from mdlstm_tk.layer import blocks
from mdlstm_tk.models.blocks import Hierarchy, Sight, Window, shrink
from mdlstm_tk.models.registry import register
from mdlstm_tk.wavefront import Direction

SILENT = 100.0  # how far the blank is ahead of all characters where a text has ended


class Reader(nn.Module):
    """Levels of sweeps in all directions, and a linear map on top.

    Args:
        sight: what a sweep sees: "grid", or, to compare with, "rows" or "line".
        channels: C of x.
        outputs: classes; for a recogniser characters and the blank.
        hidden: units of each direction of the top level.
        layers: stacked in each level.
        windows: of each level, see `Hierarchy`; if empty, the network's own.
        cell: as in `MDLSTM`, as are directions and layer_norm.
        dropout: probability of zeroing an output of a level, while training.

    Attributes:
        block: cells of x that a position of the top level stands for.
    """

    levels: ClassVar[Sequence[Window]] = ((1, 1),)

    def __init__(
        self,
        sight: Sight,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 1,
        windows: Sequence[Window] = (),
        cell: str = "graves",
        directions: int | Literal["all"] | Sequence[Direction] = "all",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        options = {"cell": cell, "directions": directions, "layer_norm": layer_norm}
        levels = windows or self.levels
        self.body = Hierarchy(sight, channels, hidden, levels, layers, dropout, **options)
        self.block = joint(levels)
        self.head = nn.Linear(self.body.output_size, self._features(outputs))

    def _features(self, outputs: int) -> int:
        """What the linear map makes at each position."""
        return outputs


class Classifier(Reader):
    """Which class a grid is: logits from the mean over all of the sample's positions."""

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → (N, classes)."""
        y, sizes = self.body(x, sizes)
        pooled = y.mean((1, 2)) if sizes is None else y.sum((1, 2)) / sizes.prod(dim=1, keepdim=True)
        logits: Tensor = self.head(pooled)
        return logits


class Segmenter(Reader):
    """Which class each cell is. With windows, a top position speaks for each cell of its block."""

    def _features(self, outputs: int) -> int:
        return outputs * prod(self.block)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → (N, H, W, classes)."""
        return spread(self.head(self.body(x, sizes)[0]), self.block, x)


class Recogniser(Reader):
    """Which text a grid holds, as Graves & Schmidhuber 2009: columns collapse to one line, for CTC.

    Output 0 is the blank. Past the end of a sample it is as good as certain, so that neither the loss
    nor who decodes needs to know the lengths.
    """

    levels = ((2, 2), (2, 1))

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → (N, T, 1 + characters), T the width of the top level."""
        y, sizes = self.body(x, sizes)
        if sizes is None:
            logits: Tensor = self.head(y.mean(1))
            return logits
        logits = self.head(y.sum(1) / sizes[:, :1, None])
        ended = ~valid_mask(logits.shape[1:-1], sizes[:, 1:])[..., None]
        silence = logits.new_zeros(logits.shape[-1])
        silence[1:] = -SILENT
        return logits.where(~ended, silence)


HEADS: dict[str, type[Reader]] = {
    "classify": Classifier,
    "segment": Segmenter,
    "transcribe": Recogniser,
}
SIGHTS: dict[Sight, tuple[str, str]] = {
    "grid": ("md", "MD_LSTM"),
    "rows": ("horizontal", "HORIZONTAL_SD_LSTM"),
    "line": ("snake", "SNAKE_SD_LSTM"),
}
for _kind, _head in HEADS.items():
    for _sight, _names in SIGHTS.items():
        register(*_names, kind=_kind)(partial(_head, _sight))


@register("conv", kind="segment")
class ConvNet(nn.Module):
    """Three convolutions, to compare with, over the blocks that windows make: one sees 19×19 blocks.

    Features are layer-normalised between them, or else the learning rate of an LSTM is too high.
    """

    def __init__(
        self, channels: int, outputs: int, *, hidden: int = 32, windows: Sequence[Window] = ((1, 1),)
    ) -> None:
        super().__init__()
        self.block = joint(windows)
        cells = prod(self.block)
        widths = (channels * cells, hidden, hidden, outputs * cells)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 7, padding=3) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in widths[1:-1])

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → (N, H, W, classes)."""
        if sizes is not None:
            x = x.masked_fill(~valid_mask(x.shape[1:-1], sizes)[..., None], 0)
        y, sizes = blocks(x, self.block), shrink(sizes, self.block)
        for index, layer in enumerate(self.layers):
            if index:
                y = self.norms[index - 1](y).relu()
            if index and sizes is not None:
                y = y.masked_fill(~valid_mask(y.shape[1:-1], sizes)[..., None], 0)
            y = layer(y.movedim(-1, 1)).movedim(1, -1)
        return spread(y, self.block, x)


def joint(windows: Sequence[Window]) -> Window:
    """The block of cells that all windows, one upon the other, make of one."""
    return tuple(prod(extents) for extents in zip(*windows, strict=True))


def spread(y: Tensor, block: Window, x: Tensor) -> Tensor:
    """What a block (N, h, w, cells of a block × K) says of each of its cells, (N, H, W, K) as x is."""
    if prod(block) > 1:
        y = y.unflatten(-1, (*block, -1)).permute(0, 1, 3, 2, 4, 5)
        y = y.flatten(1, 2).flatten(2, 3)[:, : x.shape[1], : x.shape[2]]
    return y


class Normalized(nn.Module):
    """A network between raw numbers: what comes in gets mean 0 and variance 1, what comes out loses them.

    Args:
        network: from standardised x, and sizes if there are any.
        mean: of each channel of x.
        std: likewise.
        target_mean: of each output; none if outputs are as they should be.
        target_std: likewise.
    """

    mean: Tensor
    std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        target_mean: Sequence[float] = (),
        target_std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.scales_targets = bool(target_mean)
        named = {"mean": mean, "std": std, "target_mean": target_mean, "target_std": target_std}
        for name, values in named.items():
            if values:
                self.register_buffer(name, torch.tensor(values))

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, *grid, C) → what the network makes of it."""
        x = (x - self.mean) / self.std
        y: Tensor = self.network(x) if sizes is None else self.network(x, sizes)
        return y * self.target_std + self.target_mean if self.scales_targets else y
