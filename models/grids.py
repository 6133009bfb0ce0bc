"""Networks that predict numbers at every position of a grid, each with another view of the grid."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.cells.step import CELL_PARAMETERS
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM, Directions
from mdlstm_tk.models.blocks import apply_flattened
from mdlstm_tk.models.hub import HubModel
from mdlstm_tk.models.initial import Init, init_original_, init_short_memory_, init_torch_lstm_
from mdlstm_tk.models.registry import register
from mdlstm_tk.sweep import sweep
from mdlstm_tk.tiling.stages import Stage, TileStages


class GridNet(HubModel):
    """Base of the networks: a recurrent body, then the same linear map and sigmoid at every position.

    Args:
        body: maps x (N, *grid, C) and sizes to (N, *grid, features).
        features: features of the body's output.
        outputs: outputs of the network.
        linear: leave out the sigmoid, for targets outside (0, 1).
        init: which initial weights the body has; with "original", `set_initial_prediction` does nothing.
        device: where the head is, as in `torch.nn.Linear`; the networks put all their layers there.
        dtype: type of the head's parameters; the networks give it to all their layers.

    Attributes:
        any_size: whether the network is meant for other grid sizes than it is trained on. If so, training
            chooses the best checkpoint by larger grids as well.
    """

    any_size = False

    def __init__(
        self,
        body: nn.Module,
        features: int,
        outputs: int,
        linear: bool = False,
        init: Init = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.linear = linear
        self.head = nn.Linear(features, outputs, device=device, dtype=dtype)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.init = init

    @torch.no_grad()
    def set_initial_prediction(self, mean: float) -> None:
        """Let the untrained network predict about `mean` in (0, 1) everywhere, instead of 1/2."""
        if self.init == "default":
            nn.init.constant_(self.head.bias, log(mean / (1 - mean)))

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, *grid, C) to (N, *grid, outputs), in (0, 1) unless `linear`.

        With sizes (N, D), as `MDLSTM` takes them, the result inside a sample's valid extents equals that of
        the sample without padding. Outside them it is undefined.
        """
        y: Tensor = self.head(self.body(x, None if sizes is None else as_sizes(sizes, x)))
        return y if self.linear else y.sigmoid()

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles.

        Raises:
            InputError: its body is no `MDLSTM`.
        """
        if not isinstance(self.body, MDLSTM):
            raise InputError(f"{type(self).__name__} cannot run in tiles: {self.body.untiled}")
        return TileStages([Stage(self.body, after=self.head)], head=None if self.linear else nn.Sigmoid())


@register("md", "MD_LSTM", kind="grid")
class MDNet(GridNet):
    """The multi-dimensional LSTM. With one direction, a position sees all that is above and to the left.

    By default it starts with forget gates nearly closed and weak recurrence, so that its state settles
    within a few positions of the border. What it learns on a small grid then holds on a large one.
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
        directions: Directions = 1,
        layer_norm: bool = False,
        linear: bool = False,
        init: Init = "default",
        ndim: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        body = MDLSTM(
            channels,
            hidden,
            ndim=ndim,
            num_layers=layers,
            cell=cell,
            directions=directions,
            layer_norm=layer_norm,
            device=device,
            dtype=dtype,
        )
        super().__init__(body, body.output_size, outputs, linear, init, device, dtype)
        if init == "original":
            init_original_(body)
        else:
            init_short_memory_(body)


class _TorchRowLSTM(nn.Module):
    """`torch.nn.LSTM` along the rows of a grid, or along all rows joined to one sequence."""

    untiled = "its LSTM recurs along rows, and tiles are for sweeps over the axes of the grid"

    def __init__(
        self, channels: int, hidden: int, layers: int, flatten: bool, init: Init, **factory: Any
    ) -> None:
        super().__init__()
        self.flatten = flatten
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True, **factory)
        init_torch_lstm_(self.lstm, init)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        if self.flatten:
            return apply_flattened(self._run, x, sizes)
        # Sizes do not matter: padding lies to the right of a row, where it comes too late to be seen.
        return self._run(x.flatten(0, 1)).reshape(*x.shape[:3], -1)

    def _run(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map a sequence (N, T, C) to (N, T, n)."""
        if torch.compiler.is_exporting():  # the exporter would unroll nn.LSTM for one length
            for w_ih, w_hh, b_ih, b_hh in self.lstm.all_weights:
                bias = (b_ih + b_hh)[None]
                nothing: Any = dict.fromkeys((*CELL_PARAMETERS, "initial", "sizes"))
                weights = {"weight_ih": w_ih[None], "weight_hh": w_hh[None, None], "bias": bias}
                y, _ = sweep(SweepInputs(x=sequence, **weights, **nothing, signs=(1,), cell="graves"))
                sequence = y.flatten(-2)
            return sequence
        result: Tensor = self.lstm(sequence)[0]
        return result


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
        init: Init = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        body = _TorchRowLSTM(channels, hidden, layers, flatten=self.flatten, init=init, **factory)
        super().__init__(body, hidden, outputs, linear, init, **factory)


@register("horizontal", "HORIZONTAL_SD_LSTM", kind="grid")
class HorizontalNet(_LineNet):
    """An LSTM along each row. A position sees what is to the left of it in its row."""

    flatten = False


@register("snake", "SNAKE_SD_LSTM", kind="grid")
class SnakeNet(_LineNet):
    """An LSTM along the flattened grid. The position above is W steps back in the sequence."""

    flatten = True


class _RasterBody(nn.Module):
    """Layers of two downward sweeps: one from the left, and one from the right, shifted down one row."""

    untiled = "it shifts the output of one direction by a row, and so takes it from other tiles"

    def __init__(self, channels: int, hidden: int, layers: int, **options: Any) -> None:
        super().__init__()
        features = (channels, *[2 * hidden] * (layers - 1))
        downward = [(1, 1), (1, -1)]
        self.layers = nn.ModuleList(MDLSTM(c, hidden, directions=downward, **options) for c in features)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, 2n)."""
        for layer in self.layers:
            from_left, from_right = layer(x, sizes).chunk(2, dim=-1)
            from_right = nn.functional.pad(from_right, (0, 0, 0, 0, 1, 0))[:, :-1]
            x = torch.cat([from_left, from_right], dim=-1)
        return x


@register("raster", kind="grid")
class RasterNet(GridNet):
    """A multi-dimensional LSTM in which a position sees all that comes before it in reading order.

    The sweep from the right would see the rest of the row, so it is shifted down one row: the diagonal
    BiLSTM of van den Oord et al. 2016.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        body = _RasterBody(channels, hidden, layers, cell=cell, layer_norm=layer_norm, **factory)
        super().__init__(body, 2 * hidden, outputs, linear, **factory)
