"""Networks that predict numbers at every position of a grid, each with another view of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM, Directions
from mdlstm_tk.models.blocks import DownwardSweeps, apply_flattened, check_batched, fill_padding
from mdlstm_tk.tiling.stages import Stage, TileStages

SHORT_MEMORY = {"forget": -2.0, "leak": 2.0}  # where the biases of gates with these roles start


class GridNet(nn.Module):
    """Base of the networks: a recurrent body, then the same linear map and sigmoid at every position.

    Args:
        body: maps x (N, *grid, C) and sizes to (N, *grid, features).
        features: features of the body's output.
        outputs: outputs of the network.
        linear: leave out the sigmoid, for targets outside (0, 1).
    """

    def __init__(
        self,
        body: nn.Module,
        features: int,
        outputs: int,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.body, self.linear = body, linear
        self.head = nn.Linear(features, outputs)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def set_initial_prediction(self, mean: Sequence[float]) -> None:
        """Let the untrained network predict about `mean` everywhere, one number for each output, in (0, 1)
        unless `linear`, instead of 1/2 or 0."""
        numbers = torch.tensor(mean, dtype=torch.float64)
        self.head.bias.copy_(numbers if self.linear else numbers.logit())

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, *grid, C) to (N, *grid, outputs), in (0, 1) unless `linear`.

        With sizes (N, D), as `MDLSTM` takes them, the result inside a sample's valid extents equals that of
        the sample without padding. Outside them it is undefined.
        """
        check_batched(x, getattr(self.body, "ndim", 2))
        y: Tensor = self.head(self.body(x, None if sizes is None else as_sizes(sizes, x)))
        return y if self.linear else y.sigmoid()

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles.

        Raises:
            InputError: its body is no `MDLSTM`.
        """
        if not isinstance(self.body, MDLSTM):
            raise InputError(f"{type(self).__name__} cannot run in tiles, since its body is no MDLSTM")
        return TileStages([Stage(self.body, after=self.head)], head=None if self.linear else nn.Sigmoid())


class MDNet(GridNet):
    """The multi-dimensional LSTM. With one direction, a position sees all that is above and to the left.

    It starts with forget gates nearly closed and weak recurrence, so that its state settles within a few
    positions of the border. What it learns on a small grid then holds on a large one.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 16,
        layers: int = 1,
        cell: str = "graves",
        directions: Directions = 1,
        layer_norm: bool = False,
        linear: bool = False,
        ndim: int = 2,
    ) -> None:
        options: dict[str, Any] = {"cell": cell, "directions": directions, "layer_norm": layer_norm}
        body = MDLSTM(channels, hidden, ndim=ndim, num_layers=layers, **options)
        super().__init__(body, body.output_size, outputs, linear)
        init_short_memory_(body)


@torch.no_grad()
def init_short_memory_(layer: MDLSTM) -> None:
    """Let the state of a layer depend on few positions at first, by `SHORT_MEMORY` and recurrent weights at
    a quarter of their default."""
    n, cell = layer.hidden_size, layer.definition
    for k in range(layer.num_layers):
        if cell.recurrent:
            getattr(layer, f"weight_hh_l{k}").div_(4)
        bias = getattr(layer, f"norm_bias_l{k}" if layer.layer_norm else f"bias_l{k}")
        for row, gate in enumerate(cell.gates(layer.ndim)):
            if gate.role in SHORT_MEMORY:
                rows = row if layer.layer_norm else slice(row * n, (row + 1) * n)
                bias[:, rows].fill_(SHORT_MEMORY[gate.role])


@torch.no_grad()
def init_torch_lstm_(lstm: nn.LSTM) -> None:
    """Start a `torch.nn.LSTM` like an `MDLSTM`, so that the two are compared on equal terms."""
    like = MDLSTM(lstm.input_size, lstm.hidden_size, ndim=1, num_layers=lstm.num_layers)
    for k in range(lstm.num_layers):
        getattr(lstm, f"weight_ih_l{k}").copy_(getattr(like, f"weight_ih_l{k}")[0])
        getattr(lstm, f"weight_hh_l{k}").copy_(getattr(like, f"weight_hh_l{k}")[0, 0])
        getattr(lstm, f"bias_ih_l{k}").copy_(getattr(like, f"bias_l{k}")[0])
        nn.init.zeros_(getattr(lstm, f"bias_hh_l{k}"))  # nn.LSTM adds its two biases: one of them is enough


class _TorchRowLSTM(nn.Module):
    """`torch.nn.LSTM` along the rows of a grid, or along all rows joined to one sequence."""

    def __init__(self, channels: int, hidden: int, layers: int, flatten: bool) -> None:
        super().__init__()
        self.flatten = flatten
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True)
        init_torch_lstm_(self.lstm)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        if sizes is not None:  # products of 0 and NaN would be a part of the weights' gradient
            x = fill_padding(x, sizes)
        if self.flatten:
            return apply_flattened(lambda sequence, _=None: self.lstm(sequence)[0], x, sizes)
        # Sizes do not matter: padding lies to the right of a row, where it comes too late to be seen.
        y: Tensor = self.lstm(x.flatten(0, 1))[0]
        return y.reshape(*x.shape[:3], y.shape[-1])


class _LineNet(GridNet):
    """An LSTM along lines of the grid: its rows, or the flattened grid."""

    flatten: bool

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 16,
        layers: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__(_TorchRowLSTM(channels, hidden, layers, self.flatten), hidden, outputs, linear)


class HorizontalNet(_LineNet):
    """An LSTM along each row. A position sees what is to the left of it in its row."""

    flatten = False


class SnakeNet(_LineNet):
    """An LSTM along the flattened grid. The position above is W steps back in the sequence."""

    flatten = True


class RasterNet(GridNet):
    """A multi-dimensional LSTM in which a position sees all that comes before it in reading order; see
    `DownwardSweeps`."""

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
        body = DownwardSweeps(channels, hidden, layers, False, cell=cell, layer_norm=layer_norm)
        super().__init__(body, 2 * hidden, outputs, linear)
