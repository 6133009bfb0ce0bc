"""The network that finds the lines of a page."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes
from mdlstm_tk.layer import MDLSTM, Directions
from mdlstm_tk.models.blocks import check_batched, depth_to_space
from mdlstm_tk.text.networks import stack_convolutions, standardise

CONVOLUTIONS = ((16, 2, 1), (32, 2, 1))  # features, stride, residual ones after it
COLUMNS = 2  # that a window of the first MD-LSTM joins: lines are longer than high
UPSAMPLING = (2, 4)  # positions of the maps under one of the MD-LSTMs


class LineFinder(nn.Module):
    """Predicts maps of the lines of a page, of any height and width, at half its resolution.

    Each page is standardised by its own mean and deviation. Convolutions make features of 4×4 pixels, and
    two MD-LSTMs in all directions join them over the whole page, so that a position knows the lines above
    and below and the other columns.

    Args:
        channels: C of x.
        outputs: maps, see `baseline_maps`.
        hidden: n, units of each direction of the MD-LSTMs.
        layers: number of MD-LSTMs.
        cell: as in `MDLSTM`.
        directions: as in `MDLSTM`.
        layer_norm: as in `MDLSTM`.
        dropout: probability of zeroing an input of the head in training.

    Attributes:
        stride: positions of x, along each axis, under a position of the maps.
    """

    stride = (2, 2)

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 20,
        layers: int = 2,
        cell: str = "stable",
        directions: Directions = "all",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.convolutions = stack_convolutions(channels, CONVOLUTIONS)
        features = CONVOLUTIONS[-1][0]
        self.grid = MDLSTM(
            features,
            hidden,
            num_layers=layers,
            directions=directions,
            window=(1, COLUMNS),
            cell=cell,
            layer_norm=layer_norm,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.grid.output_size, outputs * UPSAMPLING[0] * UPSAMPLING[1])

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, H, W, C) to logits (N, ⌈H / 2⌉, ⌈W / 2⌉, maps)."""
        check_batched(x, 2)
        valid = None if sizes is None else as_sizes(sizes, x)
        extents = [(extent + 1) // 2 for extent in x.shape[1:-1]]
        x = standardise(x, valid).permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x, valid = convolution(x, valid)
        y = self.grid(x.permute(0, 2, 3, 1), valid)
        maps = depth_to_space(self.head(self.dropout(y)), UPSAMPLING)
        for axis, extent in enumerate(extents, 1):  # exports lose a slice that is traced with all of it
            maps = maps.index_select(axis, torch.arange(extent, device=maps.device))
        return maps
