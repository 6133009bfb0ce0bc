"""Networks from a grid to a grid of numbers: one sees the grid, one its rows, one a long line."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any, Literal

import torch
from mdlstm_tk.cells.equations import get_cell
from torch import Tensor, nn

from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models.blocks import along_line
from mdlstm_tk.models.registry import register
from mdlstm_tk.operator import sweep
from mdlstm_tk.wavefront import Direction

Init = Literal["default", "seed"]


class GridNet(nn.Module):
    """Numbers at every position: a recurrent body, then the same linear map and sigmoid everywhere.

    Args:
        body: (N, H, W, C) and sizes → (N, H, W, features).
        features: of the body's output.
        outputs: of this network's.
        linear: without the sigmoid: numbers of any size.
        init: "default" keeps the body as it is; "seed" starts all weights as the seed's TensorFlow code
            does (Glorot uniform, biases 0).

    Attributes:
        any_size: is the network meant for grids of other sizes than it was trained on? Then
            training chooses the best checkpoint by larger grids as well.
    """

    any_size = False

    def __init__(
        self, body: nn.Module, features: int, outputs: int, linear: bool = False, init: Init = "default"
    ) -> None:
        super().__init__()
        self.body = body
        self.linear = linear
        self.head = nn.Linear(features, outputs)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.init = init

    @torch.no_grad()
    def start_at(self, mean: float) -> None:
        """Let the untrained network predict about `mean` everywhere, not 1/2. (Not with init "seed".)"""
        if self.init == "default":
            nn.init.constant_(self.head.bias, log(mean / (1 - mean)))

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → (N, H, W, outputs), in (0, 1) if not linear.

        With sizes (N, 2) int64, the valid extent of each sample, the result there is that of the sample
        unpadded; outside it means nothing.
        """
        y: Tensor = self.head(self.body(x, sizes))
        return y if self.linear else y.sigmoid()


@register("md", "MD_LSTM", kind="grid")
class MDNet(GridNet):
    """The multi-dimensional LSTM: a cell sees all that is above and to the left of it.

    It starts forgetful, with forget gates nearly closed and weak recurrence, so that its state
    settles within a few cells of the border. What it learns on a small grid then holds on a large one.
    """

    any_size = True

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 16,
        layers: int = 1,
        cell: str = "graves",
        directions: int | Literal["all"] | Sequence[Direction] = 1,
        layer_norm: bool = False,
        linear: bool = False,
        init: Init = "default",
    ) -> None:
        body = MDLSTM(
            channels,
            hidden,
            num_layers=layers,
            cell=cell,
            directions=directions,
            layer_norm=layer_norm,
        )
        super().__init__(body, body.output_size, outputs, linear, init)
        if init == "seed":
            _glorot(body)
        else:
            _forgetful(body)


class _Rows(nn.Module):
    """torch.nn.LSTM along lines of a grid: rows, or all rows joined to one."""

    def __init__(self, channels: int, hidden: int, layers: int, joined: bool, init: Init) -> None:
        super().__init__()
        self.joined = joined
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True)
        _start_lstm(self.lstm, init)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → (N, H, W, n)."""
        if self.joined:
            return along_line(self._run, x, sizes)
        # what is right of a row's end comes too late to matter
        return self._run(x.flatten(0, 1)).reshape(*x.shape[:3], -1)

    def _run(self, lines: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(N, T, C) → (N, T, n)."""
        if torch.compiler.is_exporting():  # which would write nn.LSTM out step by step, for one length
            for w_ih, w_hh, b_ih, b_hh in self.lstm.all_weights:
                bias = (b_ih + b_hh)[None]
                one_axis = (lines, w_ih[None], w_hh[None, None], bias, None, None, None, None, [(1,)])
                lines = sweep(*one_axis, "graves").flatten(-2)
            return lines
        y: Tensor = self.lstm(lines)[0]
        return y


@register("horizontal", "HORIZONTAL_SD_LSTM", kind="grid")
class HorizontalNet(GridNet):
    """An LSTM along each row: it cannot know what stands in another row."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 16,
        layers: int = 1,
        linear: bool = False,
        init: Init = "default",
    ) -> None:
        super().__init__(_Rows(channels, hidden, layers, False, init), hidden, outputs, linear, init)


@register("snake", "SNAKE_SD_LSTM", kind="grid")
class SnakeNet(GridNet):
    """An LSTM along the flattened matrix: the cell above lies W steps back."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 16,
        layers: int = 1,
        linear: bool = False,
        init: Init = "default",
    ) -> None:
        super().__init__(_Rows(channels, hidden, layers, True, init), hidden, outputs, linear, init)


class _Raster(nn.Module):
    """Layers of two sweeps down a grid, from its left and from its right, the second a row late."""

    def __init__(self, channels: int, hidden: int, layers: int, **options: Any) -> None:
        super().__init__()
        widths = (channels, *[2 * hidden] * (layers - 1))
        down = [(1, 1), (1, -1)]
        self.layers = nn.ModuleList(MDLSTM(width, hidden, directions=down, **options) for width in widths)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → (N, H, W, 2n)."""
        for layer in self.layers:
            left, right = layer(x, sizes).chunk(2, dim=-1)
            x = torch.cat([left, nn.functional.pad(right, (0, 0, 0, 0, 1, 0))[:, :-1]], dim=-1)
        return x


@register("raster", kind="grid")
class RasterNet(GridNet):
    """A multi-dimensional LSTM that sees all that comes earlier in reading order, and nothing later.

    The sweep from the right would see what follows in the row, so that it comes a row late: the
    diagonal BiLSTM of van den Oord et al. 2016.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 16,
        layers: int = 1,
        cell: str = "graves",
        layer_norm: bool = False,
        linear: bool = False,
    ) -> None:
        body = _Raster(channels, hidden, layers, cell=cell, layer_norm=layer_norm)
        super().__init__(body, 2 * hidden, outputs, linear)


@torch.no_grad()
def _start_lstm(lstm: nn.LSTM, init: Init) -> None:
    """torch.nn.LSTM started with the care that `MDLSTM.reset_parameters` gives to its own weights."""
    n = lstm.hidden_size
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):  # the two biases of nn.LSTM only ever act as their sum
                nn.init.ones_(parameter[n : 2 * n])
                if init == "default":
                    nn.init.uniform_(parameter[2 * n : 3 * n], -(n**-0.5), n**-0.5)
        elif init == "seed":
            fan_in = (lstm.input_size if name.endswith("l0") else n) + n
            bound = (6 / (fan_in + 4 * n)) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
        elif name.startswith("weight_ih"):
            bound = (3 / parameter.shape[1]) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
        else:
            for gate in parameter.unflatten(0, (4, n)):
                nn.init.orthogonal_(gate)


@torch.no_grad()
def _forgetful(layer: MDLSTM) -> None:
    """Start forget gates at bias −2 (the leak at 2), and divide recurrent weights by 4."""
    n, gates = layer.hidden_size, get_cell(layer.cell).gates(layer.ndim)
    for k in range(layer.num_layers):
        getattr(layer, f"weight_hh_l{k}").div_(4)
        shifts = getattr(layer, f"norm_bias_l{k}") if layer.layer_norm else getattr(layer, f"bias_l{k}")
        for row, gate in enumerate(gates):
            part = shifts[:, row] if layer.layer_norm else shifts[:, row * n : (row + 1) * n]
            if gate.startswith("f"):
                part.fill_(-2)
            elif gate == "leak":
                part.fill_(2)


@torch.no_grad()
def _glorot(layer: MDLSTM) -> None:
    """Glorot uniform over the joint product of input and states, biases 0, as the seed's `linear`."""
    for k in range(layer.num_layers):
        weight_ih, weight_hh = getattr(layer, f"weight_ih_l{k}"), getattr(layer, f"weight_hh_l{k}")
        fan_in = weight_ih.shape[-1] + layer.ndim * layer.hidden_size
        bound = (6 / (fan_in + weight_ih.shape[1])) ** 0.5
        nn.init.uniform_(weight_ih, -bound, bound)
        nn.init.uniform_(weight_hh, -bound, bound)
        nn.init.zeros_(getattr(layer, f"norm_bias_l{k}" if layer.layer_norm else f"bias_l{k}"))
