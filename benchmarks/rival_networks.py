"""Networks that the pages compare the multi-dimensional LSTM with, by name.

    mdlstm --import benchmarks/rival_networks.py compare --task digits

On images: one-dimensional LSTMs along rows, `horizontal` and `snake`, to classify, segment and transcribe,
and convolutions, `conv`, to segment. On lines of handwriting, with the convolutions of `LineRecognizer`:
LSTMs along rows, `line-rows`, and along columns alone, `line-blstm`. As density models: `snake`, the Row
LSTM, `row`, and masked convolutions, `conv`; all have the head of `DensityNet` and, but for the
convolutions, the input of `PixelNet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes, valid_mask
from mdlstm_tk.density import DensityNet
from mdlstm_tk.density.network import neighbours
from mdlstm_tk.layer import MDLSTM, space_to_depth
from mdlstm_tk.models import register
from mdlstm_tk.models.blocks import (
    Window,
    apply_flattened,
    combine_windows,
    depth_to_space,
    fill_padding,
    sizes_in_windows,
)
from mdlstm_tk.models.grids import init_torch_lstm_
from mdlstm_tk.models.heads import Classifier, Segmenter
from mdlstm_tk.text.networks import CONVOLUTIONS, ROWS, LineRecognizer, TextRecognizer

FIRST_KERNEL, KERNEL = 7, 3  # of masked convolutions
COLUMNS = 3  # that the input of a Row LSTM covers: a position and two to its left


class RowLSTM(nn.Module):
    """A one-dimensional LSTM along the rows of a grid, or along all rows joined to one sequence.

    Args:
        channels: C of x.
        hidden: n, units of each direction.
        flatten: join the rows.
        window: positions whose features are joined before the LSTM, as in `MDLSTM`.
        **options: further options of `MDLSTM`.

    Attributes:
        output_size: features of y.
    """

    def __init__(
        self, channels: int, hidden: int, *, flatten: bool, window: Window = (1, 1), **options: Any
    ) -> None:
        super().__init__()
        self.flatten, self.window = flatten, window
        self.lstm = MDLSTM(channels * prod(window), hidden, ndim=1, **options)
        self.output_size = self.lstm.output_size

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to y (N, ⌈H / window⌉, ⌈W / window⌉, output_size), 0 outside sizes."""
        if sizes is not None:
            x = fill_padding(x, sizes)
        x, sizes = space_to_depth(x, self.window), sizes_in_windows(sizes, self.window)
        if self.flatten:
            y = apply_flattened(self.lstm, x, sizes)
        else:
            lengths = None if sizes is None else sizes[:, 1:].repeat_interleave(x.shape[1], dim=0)
            y = self.lstm(x.flatten(0, 1), lengths).reshape(*x.shape[:3], -1)
        return y if sizes is None else fill_padding(y, sizes)


_NETWORKS = {"classify": Classifier, "segment": Segmenter, "transcribe": TextRecognizer}
for _kind, _network in _NETWORKS.items():
    for _name, _flatten in (("horizontal", False), ("snake", True)):
        _level = staticmethod(partial(RowLSTM, flatten=_flatten))
        register(_name, kind=_kind)(
            type(f"{_name.title()}{_network.__name__}", (_network,), {"make_level": _level})
        )


class RowMaximum(nn.Module):
    """The maximum of each feature over windows of rows, as large as those of an MD-LSTM in its place."""

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C), 0 outside sizes and not negative, to y (N, ⌈H / ROWS⌉, W, C)."""
        y: Tensor = space_to_depth(x, (ROWS, 1)).unflatten(-1, (ROWS, -1)).amax(-2)
        return y


class LineRival(LineRecognizer):
    """`LineRecognizer` with another module in place of its MD-LSTM, and `LAYERS` along columns after it.

    Args:
        channels: C of x.
        outputs: the blank and the characters.
        hidden: n, units of each direction along rows; the layers along columns have twice as many.
        dropout: as in `LineRecognizer`.
    """

    LAYERS: ClassVar[int]

    def __init__(self, channels: int, outputs: int, *, hidden: int = 64, dropout: float = 0.0) -> None:
        super().__init__(channels, outputs, hidden=hidden, layers=self.LAYERS, dropout=dropout)
        features = CONVOLUTIONS[-1][0]
        grid, size = self.make_grid(features, hidden)
        self.add_module("grid", grid)
        self.columns = MDLSTM(
            *(size, 2 * hidden),
            ndim=1,
            num_layers=self.LAYERS,
            cell="stable",
            directions="all",
            dropout=dropout,
        )

    def make_grid(self, features: int, hidden: int) -> tuple[nn.Module, int]:
        """Return the module, and the number of features of its output."""
        raise NotImplementedError


@register("line-rows", kind="transcribe")
class LineRows(LineRival):
    """LSTMs along rows, in both directions, in place of the MD-LSTM."""

    LAYERS = 1

    def make_grid(self, features: int, hidden: int) -> tuple[nn.Module, int]:
        lstm = RowLSTM(features, hidden, flatten=False, window=(ROWS, 1), cell="stable", directions="all")
        return lstm, lstm.output_size


@register("line-blstm", kind="transcribe")
class LineColumns(LineRival):
    """The maximum over rows in place of the MD-LSTM, and two bidirectional LSTMs along columns."""

    LAYERS = 2

    def make_grid(self, features: int, hidden: int) -> tuple[nn.Module, int]:
        return RowMaximum(), features


@register("conv", kind="segment")
class ConvNet(nn.Module):
    """Three 7×7 convolutions over windows of the grid, with a receptive field of 19×19 windows.

    Layer norm between the convolutions lets the network train at the learning rate of an LSTM.

    Args:
        channels: C of x.
        outputs: classes.
        hidden: features between the convolutions.
        windows: windows of the LSTM to compare with; the convolutions work on their combination.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        windows: Sequence[Window] = ((1, 1),),
    ) -> None:
        super().__init__()
        self.window = combine_windows(windows)
        positions = prod(self.window)
        features = (channels * positions, hidden, hidden, outputs * positions)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 7, padding=3) for a, b in pairwise(features))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in features[1:-1])

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


class _RivalDensity(DensityNet):
    """A density model around `make_body(channels, hidden, layers)`, of n features.

    Args: as of `PixelNet`.
    """

    make_body: ClassVar[Callable[..., nn.Module]]

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        body = self.make_body(channels, hidden, layers)
        super().__init__(body, hidden, channels, outputs, dropout)


class _SnakeBody(nn.Module):
    """`torch.nn.LSTM` along all rows joined to one sequence."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4 * channels, hidden, layers, batch_first=True)
        init_torch_lstm_(self.lstm)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        with_end = None if sizes is None else sizes + sizes.new_tensor([0, 1])
        return apply_flattened(self._run, neighbours(x), with_end)[:, :, :-1]

    def _run(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        y: Tensor = self.lstm(sequence)[0]
        return y


@register("snake", kind="density")
class SnakeDensity(_RivalDensity):
    """An LSTM along all rows joined to one sequence. The position above is W + 1 steps back."""

    make_body = _SnakeBody


class _RowLSTMLayer(nn.Module):
    """A Row LSTM: the state of a position comes from the three positions above it."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.from_input = nn.Conv1d(features, 4 * hidden, COLUMNS)
        self.from_above = nn.Conv1d(hidden, 4 * hidden, 3, padding=1, bias=False)
        self.hidden = hidden

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Map x (N, H, W, features) to (N, H, W, n); `valid` (N, H, W, 1) is None without padding."""
        n, height, width, _ = x.shape
        padded = nn.functional.pad(x, (0, 0, COLUMNS - 1, 0)).flatten(0, 1).movedim(-1, 1)
        gates = self.from_input(padded).movedim(1, -1).unflatten(0, (n, height))  # (N, H, W, 4n)
        h = c = x.new_zeros(n, width, self.hidden)
        rows = []
        for row in range(height):
            a = gates[:, row] + self.from_above(h.movedim(-1, 1)).movedim(1, -1)
            i, f, o, g = a.chunk(4, dim=-1)
            c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            if valid is not None:
                h, c = h * valid[:, row], c * valid[:, row]
            rows.append(h)
        return torch.stack(rows, dim=1)


class _RowLSTMBody(nn.Module):
    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        features = (4 * channels, *[hidden] * (layers - 1))
        self.layers = nn.ModuleList(_RowLSTMLayer(each, hidden) for each in features)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        y = neighbours(x)[:, :, :-1]
        valid = None if sizes is None else valid_mask(x.shape[1:3], sizes)[..., None].to(x.dtype)
        for k, layer in enumerate(self.layers):
            y = y + layer(y, valid) if k else layer(y, valid)
        return y


@register("row", kind="density")
class RowDensity(_RivalDensity):
    """The Row LSTM (van den Oord et al. 2016): a position sees a triangle above it, and two to its left."""

    make_body = _RowLSTMBody


class _MaskedConv(nn.Module):
    """A convolution that sees what comes before a position in reading order, and perhaps the position.

    Only the weights that it uses are parameters.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, sees_itself: bool) -> None:
        super().__init__()
        self.kernel = kernel
        used = kernel * kernel // 2 + sees_itself
        bound = (inputs * used) ** -0.5  # as torch.nn.Conv2d starts
        self.weight = nn.Parameter(torch.empty(outputs, inputs, used))
        self.bias = nn.Parameter(torch.empty(outputs))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, inputs, H, W) to (N, outputs, H, W)."""
        k = self.kernel
        weight = nn.functional.pad(self.weight, (0, k * k - self.weight.shape[-1])).unflatten(-1, (k, k))
        return nn.functional.conv2d(x, weight, self.bias, padding=k // 2)


class _ConvBody(nn.Module):
    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.first = _MaskedConv(channels, hidden, FIRST_KERNEL, sees_itself=False)
        self.inner = nn.ModuleList(
            _MaskedConv(hidden, hidden, KERNEL, sees_itself=True) for _ in range(2 * layers)
        )

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        valid = None if sizes is None else valid_mask(x.shape[1:3], sizes)[:, None]

        def inside(y: Tensor) -> Tensor:
            return y if valid is None else y.masked_fill(~valid, 0)

        y = inside(self.first(x.movedim(-1, 1)))
        convolutions = list(self.inner)
        for first, second in zip(convolutions[::2], convolutions[1::2], strict=True):
            y = y + inside(second(inside(first(y.relu()).relu())))
        return y.movedim(1, -1)


@register("conv", kind="density")
class PixelCNN(_RivalDensity):
    """Masked convolutions (van den Oord et al. 2016): 7×7, then pairs of 3×3 that add to their input.

    Args: as of `PixelNet`; `layers` is the number of pairs.
    """

    make_body = _ConvBody
