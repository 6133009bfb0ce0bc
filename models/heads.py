"""Networks that classify, segment and transcribe: an encoder and a linear head; and a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes
from mdlstm_tk._util.windows import space_to_depth
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import Directions
from mdlstm_tk.models.blocks import (
    Encoder,
    Recurrence,
    Window,
    combine_windows,
    depth_to_space,
    fill_padding,
    sizes_in_windows,
)
from mdlstm_tk.models.hub import HubModel
from mdlstm_tk.models.registry import register
from mdlstm_tk.tiling.stages import TileStages

BLANK_MARGIN = 100.0  # how far the logit of the blank exceeds all others after the end of a text


class EncoderNet(HubModel):
    """Base of the networks: an encoder with all directions, then a linear head.

    Args:
        recurrence: "grid" for the multi-dimensional LSTM; "rows" or "flattened" for one-dimensional ones to
            compare it with.
        channels: C of x.
        outputs: classes, or the blank and the characters.
        hidden: n, units of each direction of the last level.
        layers: stacked layers in each level.
        windows: the window of each level, see `Encoder`; empty for the default of the network.
        cell: as in `MDLSTM`.
        directions: as in `MDLSTM`.
        layer_norm: as in `MDLSTM`.
        dropout: probability of zeroing an output of a level in training.
        ndim: D, axes of the grid.
        device: where the parameters are.
        dtype: type of the parameters.

    Attributes:
        stride: positions of x, along each axis, per position of the encoder's output.
    """

    default_windows: ClassVar[Sequence[Window]] = ((1, 1),)

    def __init__(
        self,
        recurrence: Recurrence,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 1,
        windows: Sequence[Window] = (),
        cell: str = "graves",
        directions: Directions = "all",
        layer_norm: bool = False,
        dropout: float = 0.0,
        ndim: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options = {"cell": cell, "directions": directions, "layer_norm": layer_norm} | factory
        if ndim != 2 and (recurrence != "grid" or self.default_windows != EncoderNet.default_windows):
            raise InputError(f"this network is for grids of two axes, got {ndim}; choose the model md")
        windows = windows or (self.default_windows if ndim == 2 else ((1,) * ndim,))
        if any(len(window) != ndim for window in windows):
            raise InputError(f"windows must have {ndim} extents each, got {list(windows)}")
        self.encoder = Encoder(recurrence, channels, hidden, windows, layers, dropout, **options)
        self.stride = combine_windows(windows)
        self.head = nn.Linear(self.encoder.output_size, self._head_features(outputs), **factory)

    def _head_features(self, outputs: int) -> int:
        """Return the number of features that the head computes at each position of the encoder's output."""
        return outputs


class Classifier(EncoderNet):
    """Predicts one class per sample, from the mean of the encoder's output over the valid positions."""

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, *grid, C) to logits (N, classes)."""
        y, extents = self.encoder(x, sizes)
        axes = tuple(range(1, y.dim() - 1))
        pooled = y.mean(axes) if extents is None else y.sum(axes) / extents.prod(dim=1, keepdim=True)
        logits: Tensor = self.head(pooled)
        return logits

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles, see `Encoder.tile_stages`."""
        return TileStages(self.encoder.tile_stages(), pool=tuple(range(len(self.stride))), head=self.head)


class Segmenter(EncoderNet):
    """Predicts one class per position.

    With windows, each position of the encoder's output predicts every position of x that it covers.
    """

    def _head_features(self, outputs: int) -> int:
        return outputs * prod(self.stride)

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, *grid, C) to logits (N, *grid, classes)."""
        y, _ = self.encoder(x, sizes)
        return depth_to_space(self.head(y), self.stride, x.shape[1:-1])

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles, see `Encoder.tile_stages`."""
        *stages, last = self.encoder.tile_stages()
        return TileStages([*stages, replace(last, after=self.head)], upsample=self.stride)


class TextRecognizer(EncoderNet):
    """Predicts one text per sample (Graves & Schmidhuber 2009): columns are averaged to steps of CTC.

    Output 0 is the blank. After the end of a sample the blank is nearly certain, so that neither the loss
    nor the decoder needs to know the lengths.
    """

    default_windows = ((2, 2), (2, 1))

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, H, W, C) to logits (N, T, 1 + characters), T the width of the encoder's output."""
        y, extents = self.encoder(x, sizes)
        if extents is None:
            logits: Tensor = self.head(y.mean(1))
            return logits
        logits = self.head(y.sum(1) / extents[:, :1, None])
        blank = logits.new_zeros(logits.shape[-1])
        blank[1:] = -BLANK_MARGIN
        return fill_padding(logits, extents[:, 1:], blank)

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles, see `Encoder.tile_stages`."""
        return TileStages(self.encoder.tile_stages(), pool=(0,), head=self.head)


NETWORKS: dict[str, type[EncoderNet]] = {  # by kind of task
    "classify": Classifier,
    "segment": Segmenter,
    "transcribe": TextRecognizer,
}
MODEL_NAMES: dict[Recurrence, tuple[str, str]] = {
    "grid": ("md", "MD_LSTM"),
    "rows": ("horizontal", "HORIZONTAL_SD_LSTM"),
    "flattened": ("snake", "SNAKE_SD_LSTM"),
}
for _kind, _network in NETWORKS.items():
    for _recurrence, _names in MODEL_NAMES.items():
        register(*_names, kind=_kind)(partial(_network, _recurrence))


@register("conv", kind="segment")
class ConvNet(HubModel):
    """Three 7×7 convolutions over windows of the grid, with a receptive field of 19×19 windows.

    Layer norm between the convolutions lets the network train at the learning rate of an LSTM.

    Args:
        channels: C of x.
        outputs: classes.
        hidden: features between the convolutions.
        windows: windows of the LSTM to compare with; the convolutions work on their combination.
        device: where the parameters are.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        windows: Sequence[Window] = ((1, 1),),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.window = combine_windows(windows)
        positions = prod(self.window)
        features = (channels * positions, hidden, hidden, outputs * positions)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 7, padding=3, **factory) for a, b in pairwise(features))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, **factory) for _ in features[1:-1])

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, H, W, C) to logits (N, H, W, classes)."""
        grid = x.shape[1:-1]
        if sizes is not None:
            sizes = as_sizes(sizes, x)
            x = fill_padding(x, sizes)
        y, sizes = space_to_depth(x, self.window), sizes_in_windows(sizes, self.window)
        for index, layer in enumerate(self.layers):
            if index:
                y = self.norms[index - 1](y).relu()
            if index and sizes is not None:
                y = fill_padding(y, sizes)
            y = layer(y.movedim(-1, 1)).movedim(1, -1)
        return depth_to_space(y, self.window, grid)

    def tile_stages(self) -> NoReturn:
        """Raises InputError: a convolution needs the positions around a tile."""
        raise InputError("ConvNet cannot run in tiles: its convolutions need positions of the tiles around")
