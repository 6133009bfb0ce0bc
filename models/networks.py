"""The three networks of the random-diagonal task: one sees the grid, one its rows, one a long line."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from mdlstm_tk.cells import get_cell
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models.registry import register
from mdlstm_tk.op import sweep
from mdlstm_tk.wavefront import Direction

Init = Literal["default", "seed"]


class CellwiseNet(nn.Module):
    """A probability at every position: a recurrent body, then the same linear map and sigmoid everywhere.

    Args:
        body: (N, H, W, C) and sizes (N, 2) or None → (N, H, W, features).
        features: of the body's output.
        outputs: of this network's.
        init: "default" keeps the body as it is; "seed" starts all weights as the seed's TensorFlow code
            does (Glorot uniform, biases 0).

    Attributes:
        any_size: is the network meant for grids of other sizes than it was trained on? Then
            training chooses the best checkpoint by larger grids as well.
    """

    any_size = False

    def __init__(self, body: nn.Module, features: int, outputs: int, init: Init = "default") -> None:
        super().__init__()
        self.body = body
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
        """x (N, H, W, C) → (N, H, W, outputs) in (0, 1).

        With sizes (N, 2) int64, the valid extent of each sample, the result there is that of the sample
        unpadded; outside it means nothing.
        """
        y: Tensor = self.head(self.body(x, sizes)).sigmoid()
        return y


@register("md", "MD_LSTM")
class MDNet(CellwiseNet):
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
        super().__init__(body, body.output_size, outputs, init)
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
        _, height, width, _ = x.shape
        if not self.joined:  # what is right of a row's end comes too late to matter
            return self._run(x.flatten(0, 1)).reshape(-1, height, width, self.lstm.hidden_size)
        lines = x.flatten(1, 2)  # (N, P, C)
        if sizes is None:
            y = self._run(lines)
        else:
            place, step = _closed_up(height, width, sizes)
            y = _take(self._run(_take(lines, place)), step)
        return y.reshape(-1, height, width, self.lstm.hidden_size)

    def _run(self, lines: Tensor) -> Tensor:
        """(N, T, C) → (N, T, n)."""
        if torch.compiler.is_exporting():  # which would write nn.LSTM out step by step, for one length
            for w_ih, w_hh, b_ih, b_hh in self.lstm.all_weights:
                bias = (b_ih + b_hh)[None]
                one_axis = (lines, w_ih[None], w_hh[None, None], bias, None, None, None, None, [(1,)])
                lines = sweep(*one_axis, "graves").flatten(-2)
            return lines
        y: Tensor = self.lstm(lines)[0]
        return y


def _closed_up(height: int, width: int, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """How the rows of padded samples join to lines without the padding.

    Returns:
        (N, P) the flat position that each step of the line comes from, and (N, P) the step at which each
        flat position comes; whatever lies in the grid for the rest.
    """
    own = sizes[:, 1:]  # (N, 1) widths
    steps = torch.arange(height * width, device=sizes.device)
    rows, columns = (torch.arange(extent, device=sizes.device) for extent in (height, width))
    place = steps // own * width + steps % own
    step = (rows[:, None] * own[..., None] + columns).flatten(1)
    return place.clamp(max=height * width - 1), step.clamp(max=height * width - 1)


def _take(lines: Tensor, places: Tensor) -> Tensor:
    """(N, P, C) at (N, P) places along each line."""
    return lines.gather(1, places[..., None].expand(-1, -1, lines.shape[-1]))


@register("horizontal", "HORIZONTAL_SD_LSTM")
class HorizontalNet(CellwiseNet):
    """An LSTM along each row: it cannot know what stands in another row."""

    def __init__(
        self, channels: int, outputs: int, *, hidden: int = 16, layers: int = 1, init: Init = "default"
    ) -> None:
        super().__init__(_Rows(channels, hidden, layers, False, init), hidden, outputs, init)


@register("snake", "SNAKE_SD_LSTM")
class SnakeNet(CellwiseNet):
    """An LSTM along the flattened matrix: the cell above lies W steps back."""

    def __init__(
        self, channels: int, outputs: int, *, hidden: int = 16, layers: int = 1, init: Init = "default"
    ) -> None:
        super().__init__(_Rows(channels, hidden, layers, True, init), hidden, outputs, init)


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
