"""The multi-dimensional LSTM as a density model, which draws an image in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk.density.network import DensityNet, neighbours
from mdlstm_tk.inputs import SweepInputs, state_dtype
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models.blocks import DOWNWARD, DownwardSweeps
from mdlstm_tk.sweep import sweep


class _PixelBody(DownwardSweeps):
    """Downward sweeps over the four neighbours that come before each position."""

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, 2n)."""
        if sizes is not None:
            sizes = sizes + sizes.new_tensor([0, 1])  # the further column of `neighbours`
        return super().forward(neighbours(x), sizes)[:, :, :-1]


class PixelNet(DensityNet):
    """A multi-dimensional LSTM in which a position depends on all that comes before it in reading order.

    Drawing keeps the states of the row above, so each layer computes each position once.

    Args:
        channels: C.
        outputs: K, levels of each channel, with one logit each; 1 for two levels with one logit.
        hidden: n, units of each of the two directions.
        layers: stacked layers.
        cell, layer_norm: as in `MDLSTM`.
        dropout: probability of zeroing a feature of the last layer in training.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 1,
        cell: str = "graves",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        options = {"cell": cell, "layer_norm": layer_norm}
        body = _PixelBody(4 * channels, hidden, layers, residual=True, **options)
        super().__init__(body, 2 * hidden, channels, outputs, dropout)
        self.body: _PixelBody

    def contexts(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """As `DensityNet.contexts`, but each layer computes each position once, unless the body has hooks,
        such as those of `torch.nn.utils.weight_norm`, or a layer a forward of its own. 16-bit networks
        compute in float32 here, and round the features."""
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in self.body.modules()]
        if any(hooks) or any(type(layer).forward is not MDLSTM.forward for layer in self.body.layers):
            yield from super().contexts(x)
            return
        n, height, width, channels = x.shape
        padded = x.new_zeros(n, height + 1, width + 3, channels, dtype=state_dtype(x))  # as in `neighbours`
        layers = [
            _DrawnLayer(layer, n, width + 1, residual=k > 0) for k, layer in enumerate(self.body.layers)
        ]
        for row in range(height):
            for column in range(width + 1):
                above = padded[:, row, column : column + 3].flatten(1)
                features = torch.cat([padded[:, row + 1, column], above], dim=-1)
                for layer in layers:
                    features = layer.step(column, features)
                if column < width:
                    yield row, column, features.to(x.dtype)
                    padded[:, row + 1, column + 1] = 2 * x[:, row, column] - 1
            for layer in layers:
                layer.end_row()


class _DrawnLayer:
    """A layer while a grid is drawn: sweeps over single positions, and over rows that are complete.

    Args:
        layer: a layer of `_PixelBody`.
        n: samples.
        width: positions in a row, W + 1.
        residual: whether the layer adds to its input.
    """

    def __init__(self, layer: MDLSTM, n: int, width: int, residual: bool) -> None:
        parameters: dict[str, Any] = {
            name: None if parameter is None else parameter.to(state_dtype(parameter))
            for name, parameter in layer._layer_parameters(0).items()
        }
        cell, weight = layer.definition, parameters["weight_ih"]
        self.residual = residual
        self.x = weight.new_zeros(n, 1, width, layer.input_size)
        # States (n, W + 2, dirs, 1 + S, units): above each position of a row, and where the row is entered.
        self.above = weight.new_zeros(n, width + 1, 2, 1 + len(cell.states), layer.hidden_size)
        signs = DOWNWARD[0] + DOWNWARD[1]
        others: Any = {"initial": self.above, "sizes": None, "signs": signs, "cell": cell}
        self.row = SweepInputs(x=self.x, **parameters, **others)
        of_left: Any = {name: None if each is None else each[:1] for name, each in parameters.items()}
        self.position = self.row._replace(**of_left, signs=DOWNWARD[0])
        self.left = self.above[:, -1:, :1]

    def step(self, column: int, features: Tensor) -> Tensor:
        """The layer's output (n, 2 · units) at the next position of the row, from its input (n, C)."""
        self.x[:, 0, column] = features
        above = self.above[:, column : column + 1]
        initial = torch.cat([above[:, :, :1], self.left], dim=1)
        h, final = sweep(self.position._replace(x=features[:, None, None], initial=initial))
        assert final is not None
        self.left = final[:, 1:]
        # The sweep from the right would see the rest of the row: a position gets its h of the row above.
        y = torch.cat([h.flatten(1), above[:, 0, 1, 0]], dim=-1)
        return features + y if self.residual else y

    def end_row(self) -> None:
        """Sweep the complete row in both directions, and go on to the next row."""
        _, final = sweep(self.row._replace(initial=self.above))
        assert final is not None
        final[:, -1] = 0  # nothing enters the next row from its ends
        self.above, self.left = final, final[:, -1:, :1]
