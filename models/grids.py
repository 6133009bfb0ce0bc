"""Networks that predict numbers at every position of a grid, each with another view of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes
from mdlstm_tk._util.text import counted, one_line
from mdlstm_tk.backends.inputs import state_dtype
from mdlstm_tk.cells import get_cell
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM, Directions
from mdlstm_tk.models.blocks import (
    DownwardSweeps,
    apply_flattened,
    check_batched,
    checked_options,
    fill_padding,
)
from mdlstm_tk.tiling.stages import Stage, TileStages


class GridNet(nn.Module):
    """Base of the networks: a recurrent body, then the same linear map and sigmoid at every position.

    Args:
        body: maps x (N, *grid, C) and sizes to (N, *grid, features).
        features: features of the body's output.
        outputs: outputs of the network.
        linear: leave out the sigmoid, for targets outside (0, 1).
        device: where the head is, as in `torch.nn.Linear`; the networks put all their layers there.
        dtype: type of the head's parameters; the networks give it to all their layers.
    """

    def __init__(
        self,
        body: nn.Module,
        features: int,
        outputs: int,
        linear: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.linear = linear
        self.head = nn.Linear(features, outputs, device=device, dtype=dtype)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def set_initial_prediction(self, mean: Sequence[float]) -> None:
        """Let the untrained network predict about `mean` everywhere, one number for each output, in (0, 1)
        unless `linear`, instead of 1/2 or 0.

        Raises:
            InputError: these are other numbers, or not as many.
        """
        low, high = (-inf, inf) if self.linear else (0, 1)
        is_inside = all(low < float(number) < high for number in mean)
        if len(mean) != len(self.head.bias) or not is_inside:
            range_of = "" if self.linear else " in (0, 1)"
            raise InputError(
                f"mean must be {counted(len(self.head.bias), 'number')}{range_of}, got {one_line(mean)}"
            )
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
            raise InputError(
                f"{type(self).__name__} cannot run in tiles, since its body is no MDLSTM; "
                "docs/tiled_networks.md says which networks can"
            )
        return TileStages([Stage(self.body, after=self.head)], head=None if self.linear else nn.Sigmoid())


class MDNet(GridNet):
    """The multi-dimensional LSTM. With one direction, a position sees all that is above and to the left.

    It starts with forget gates nearly closed and weak recurrence, so that its state settles within a few
    positions of the border. What it learns on a small grid then holds on a large one.
    """

    @checked_options
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
        super().__init__(body, body.output_size, outputs, linear, device, dtype)
        init_short_memory_(body)


@torch.no_grad()
def init_short_memory_(layer: MDLSTM) -> None:
    """Let the state of a layer depend on few positions at first.

    Gates with the role "forget" start at bias −2, those with "leak" at 2, recurrent weights at a quarter
    of their default.
    """
    n, cell = layer.hidden_size, get_cell(layer.cell)
    starts = {"forget": -2.0, "leak": 2.0}
    for k in range(layer.num_layers):
        if cell.recurrent:
            getattr(layer, f"weight_hh_l{k}").div_(4)
        bias = getattr(layer, f"norm_bias_l{k}" if layer.layer_norm else f"bias_l{k}")
        for row, gate in enumerate(cell.gates(layer.ndim)):
            if gate.role in starts:
                rows = row if layer.layer_norm else slice(row * n, (row + 1) * n)
                bias[:, rows].fill_(starts[gate.role])


class _TorchRowLSTM(nn.Module):
    """`torch.nn.LSTM` along the rows of a grid, or along all rows joined to one sequence."""

    def __init__(self, channels: int, hidden: int, layers: int, flatten: bool, **factory: Any) -> None:
        super().__init__()
        self.flatten = flatten
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True, **factory)
        init_torch_lstm_(self.lstm)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        check_batched(x, 2, self.lstm.input_size)
        if not x.is_floating_point():
            raise InputError(f"x holds {x.dtype}, expected floating-point numbers; give x.float()")
        if sizes is not None:  # products of 0 and NaN would be a part of the weights' gradient
            x = fill_padding(x, sizes)
        if self.flatten:
            return apply_flattened(self._run, x, sizes)
        # Sizes do not matter: padding lies to the right of a row, where it comes too late to be seen.
        y = self._run(x.flatten(0, 1))
        return y.reshape(*x.shape[:3], y.shape[-1])

    def _run(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map a sequence (N, T, C) to (N, T, n)."""
        result: Tensor = self.lstm(sequence)[0]
        return result


@torch.no_grad()
def init_torch_lstm_(lstm: nn.LSTM) -> None:
    """Start a `torch.nn.LSTM` like an `MDLSTM`, so that the two are compared on equal terms."""
    n = lstm.hidden_size
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):  # nn.LSTM adds its two biases: one of them is enough
                nn.init.ones_(parameter[n : 2 * n])
                nn.init.uniform_(parameter[2 * n : 3 * n], -(n**-0.5), n**-0.5)
        elif name.startswith("weight_ih"):
            bound = (3 / parameter.shape[1]) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
        else:
            for gate in parameter.unflatten(0, (4, n)):
                # float32 for 16-bit parameters, which the decomposition does not support
                gate.copy_(nn.init.orthogonal_(torch.empty_like(gate, dtype=state_dtype(gate))))


class _LineNet(GridNet):
    """An LSTM along lines of the grid: its rows, or the flattened grid."""

    flatten: bool

    @checked_options
    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 16,
        layers: int = 1,
        linear: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        body = _TorchRowLSTM(channels, hidden, layers, flatten=self.flatten, **factory)
        super().__init__(body, hidden, outputs, linear, **factory)


class HorizontalNet(_LineNet):
    """An LSTM along each row. A position sees what is to the left of it in its row."""

    flatten = False


class SnakeNet(_LineNet):
    """An LSTM along the flattened grid. The position above is W steps back in the sequence."""

    flatten = True


class RasterNet(GridNet):
    """A multi-dimensional LSTM in which a position sees all that comes before it in reading order; see
    `DownwardSweeps`."""

    @checked_options
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
        body = DownwardSweeps(
            channels, hidden, layers, residual=False, cell=cell, layer_norm=layer_norm, **factory
        )
        super().__init__(body, 2 * hidden, outputs, linear, **factory)
