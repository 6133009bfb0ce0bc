"""The multi-dimensional LSTM as a density model, which draws an image in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk.backends.torch import evaluate
from mdlstm_tk.cells.graph import Kernel
from mdlstm_tk.cells.step import pass_kernel
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
        """As `DensityNet.contexts`, but each layer computes each position once, unless its body has hooks,
        or a layer a forward of its own. 16-bit networks compute in float32 here, and round the features."""
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in self.body.modules()]
        if any(hooks) or any(type(layer).forward is not MDLSTM.forward for layer in self.body.layers):
            yield from super().contexts(x)
            return
        n, height, width, channels = x.shape
        shape = n, height + 1, width + 3, channels
        padded = x.new_zeros(shape, dtype=state_dtype(x))  # as in `neighbours`
        layers = [
            _LayerStates(layer, n, width + 1, residual=k > 0) for k, layer in enumerate(self.body.layers)
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


class _LayerStates:
    """States of a layer while a grid is drawn: of the row above, and of the position to the left.

    Args:
        layer: a layer of `_PixelBody`.
        n: samples.
        width: positions in a row, W + 1.
        residual: whether the layer adds to its input.
    """

    def __init__(self, layer: MDLSTM, n: int, width: int, residual: bool) -> None:
        self.units, self.residual = layer.hidden_size, residual
        left: dict[str, Any] = {}  # the parameters of the sweep from the left, and of that from the right
        right: dict[str, Any] = {}
        for name, parameter in layer._layer_parameters(0).items():
            both = (None, None) if parameter is None else parameter.to(state_dtype(parameter))
            left[name], right[name] = both

        weight_ih, weight_hh, bias = left["weight_ih"], left["weight_hh"], left["bias"]
        if weight_hh is None:  # the cell is not recurrent
            weight_hh = weight_ih.new_zeros(2, len(weight_ih), self.units)
        self.u_above = weight_hh[0].T  # (n, G·n)
        self.weight = torch.cat([weight_ih, weight_hh[1]], dim=1).T  # (C + n, G·n)
        self.bias = weight_ih.new_zeros(len(weight_ih)) if bias is None else bias
        self.x = weight_ih.new_zeros(n, 1, width, layer.input_size)
        tensors: Any = {name: None if p is None else p[None] for name, p in right.items()}
        states = 1 + len(layer.definition.states)
        right_states = weight_ih.new_zeros(n, width + 1, 1, states, self.units)  # above, and to the right
        self.from_right = SweepInputs(
            x=self.x,
            **tensors,
            initial=right_states,
            sizes=None,
            signs=DOWNWARD[1],
            cell=layer.definition,
        )
        present = self.from_right.present
        self.kernel = Kernel(pass_kernel("forward", layer.definition, 2, present).stores[:states])
        self.parameters = [row for name in present for row in left[name].unbind()]
        self.zero = weight_ih.new_zeros(n, states, self.units)
        # h and the other states of this row and of the row above, (n, W + 1, 1 + S, units)
        self.here, self.above = (self.zero[:, None].repeat(1, width, 1, 1) for _ in range(2))
        self._begin_row()

    def _begin_row(self) -> None:
        self.here, self.above = self.above, self.here
        self.entering = self.above[:, :, 0] @ self.u_above + self.bias  # (n, W + 1, G·n)
        self.left = self.zero

    def step(self, column: int, features: Tensor) -> Tensor:
        """The layer's output (n, 2 · units) at the next position of the row, from its input (n, C)."""
        self.x[:, 0, column] = features
        operand = torch.cat([features, self.left[:, 0]], dim=-1)
        a = torch.addmm(self.entering[:, column], operand, self.weight)
        previous = [self.above[:, column], self.left]
        slots = {
            "a": a.unflatten(-1, (-1, self.units)).unbind(-2),
            "h_prev": [states[:, 0] for states in previous],
            "state_prev": [row for states in previous for row in states[:, 1:].unbind(1)],
            "parameter": self.parameters,
        }
        rows = evaluate(self.kernel, slots, self.zero[:, 0])
        self.left = torch.stack(rows, dim=1)
        self.here[:, column] = self.left
        assert self.from_right.initial is not None
        y = torch.cat([rows[0], self.from_right.initial[:, column, 0, 0]], dim=-1)
        return features + y if self.residual else y

    def end_row(self) -> None:
        """Sweep the finished row from the right, and go on to the next row."""
        _, final = sweep(self.from_right)
        assert final is not None
        final[:, -1] = 0  # nothing enters the next row from the right
        self.from_right = self.from_right._replace(initial=final)
        self._begin_row()
