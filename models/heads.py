"""Networks that classify and segment: an encoder and a linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import state_dtype
from mdlstm_tk.layer import MDLSTM, Directions
from mdlstm_tk.models.blocks import Encoder, Window, combine_windows, depth_to_space
from mdlstm_tk.tiling.stages import TileStages


class EncoderNet(nn.Module):
    """Base of the networks: an encoder with all directions, then a linear head.

    Args:
        channels: C of x.
        outputs: classes.
        hidden: n, units of each direction of the last level.
        layers: stacked layers in each level.
        windows: the window of each level, see `Encoder`, one extent or one for each axis; empty for the
            default of the network.
        cell, directions, layer_norm: as in `MDLSTM`.
        dropout: probability of zeroing an output of a level in training.
        ndim: D, axes of the grid.

    Attributes:
        make_level: makes the levels of the encoder.
        per_position: the head predicts each position of x, and not each of the encoder's output.
        stride: positions of x, along each axis, per position of the encoder's output.
    """

    default_windows: ClassVar[Sequence[Window]] = ((1, 1),)
    make_level: ClassVar[Callable[..., nn.Module]] = MDLSTM
    per_position: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 1,
        windows: Sequence[int | Window] = (),
        cell: str = "graves",
        directions: Directions = "all",
        layer_norm: bool = False,
        dropout: float = 0.0,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"cell": cell, "directions": directions, "layer_norm": layer_norm}
        if ndim != 2:
            if self.make_level is not MDLSTM or len(self.default_windows) > 1:
                raise InputError(f"this network is for grids of two axes, got {ndim}; choose the model md")
            windows, options["ndim"] = windows or (1,), ndim
        given = windows or self.default_windows
        extents = [(each,) * ndim if isinstance(each, int) else tuple(each) for each in given]
        self.encoder = Encoder(self.make_level, channels, hidden, extents, layers, dropout, **options)
        self.stride = combine_windows(extents)
        features = outputs * (prod(self.stride) if self.per_position else 1)
        self.head = nn.Linear(self.encoder.output_size, features)


class Classifier(EncoderNet):
    """Predicts one class per sample, from the mean of the encoder's output over the valid positions."""

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, *grid, C) to logits (N, classes)."""
        y, extents = self.encoder(x, sizes)
        axes = tuple(range(1, y.dim() - 1))
        if extents is None:
            pooled = y.mean(axes)
        else:  # in float32 at least, as the number of positions may exceed the range of float16
            sums = y.to(state_dtype(y)).sum(axes)
            pooled = (sums / extents.prod(dim=1, keepdim=True)).to(y.dtype)
        logits: Tensor = self.head(pooled)
        return logits

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles, see `Encoder.tile_stages`."""
        return TileStages(self.encoder.tile_stages(), pool=tuple(range(len(self.stride))), head=self.head)


class Segmenter(EncoderNet):
    """Predicts one class per position.

    With windows, each position of the encoder's output predicts every position of x that it covers.
    """

    per_position = True

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, *grid, C) to logits (N, *grid, classes)."""
        y, _ = self.encoder(x, sizes)
        return depth_to_space(self.head(y), self.stride, x.shape[1:-1])

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles, see `Encoder.tile_stages`."""
        *stages, last = self.encoder.tile_stages()
        return TileStages([*stages, replace(last, after=self.head)], upsample=self.stride)
