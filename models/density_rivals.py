"""Density models to compare the MD-LSTM with: one-dimensional LSTMs, the Row LSTM, and masked convolutions.

All have the head of `DensityNet` and, but for the convolutions, the input of `PixelNet`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.models.blocks import apply_flattened
from mdlstm_tk.models.density import DensityNet, neighbours
from mdlstm_tk.models.initial import init_torch_lstm_
from mdlstm_tk.models.registry import register

Place = torch.device | str | None
Type = torch.dtype | None
FIRST_KERNEL, KERNEL = 7, 3  # of masked convolutions
COLUMNS = 3  # that the input of a Row LSTM covers: a position and two to its left


class _SnakeBody(nn.Module):
    """`torch.nn.LSTM` along the rows, or along all rows joined to one sequence."""

    def __init__(self, channels: int, hidden: int, layers: int, flatten: bool, **factory: Any) -> None:
        super().__init__()
        self.flatten = flatten
        self.lstm = nn.LSTM(4 * channels, hidden, layers, batch_first=True, **factory)
        init_torch_lstm_(self.lstm, "default")

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        y = neighbours(x)
        if self.flatten:
            with_end = None if sizes is None else sizes + sizes.new_tensor([0, 1])
            return apply_flattened(self._run, y, with_end)[:, :, :-1]
        return self._run(y.flatten(0, 1)).reshape(*y.shape[:3], -1)[:, :, :-1]

    def _run(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        y: Tensor = self.lstm(sequence)[0]
        return y


class _LineDensity(DensityNet):
    """An LSTM along lines of the grid: its rows, or the flattened grid."""

    flatten: bool

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 1,
        dropout: float = 0.0,
        device: Place = None,
        dtype: Type = None,
    ) -> None:
        body = _SnakeBody(channels, hidden, layers, self.flatten, device=device, dtype=dtype)
        super().__init__(body, hidden, channels, outputs, dropout, device=device, dtype=dtype)


@register("snake", "SNAKE_SD_LSTM", kind="density")
class SnakeDensity(_LineDensity):
    """An LSTM along all rows joined to one sequence. The position above is W + 1 steps back.

    Args: as of `PixelNet`.
    """

    flatten = True


@register("horizontal", "HORIZONTAL_SD_LSTM", kind="density")
class HorizontalDensity(_LineDensity):
    """An LSTM along each row. Of the rows above, a position sees the neighbours of those in its row alone.

    Args: as of `PixelNet`.
    """

    flatten = False


class _RowLSTMLayer(nn.Module):
    """A Row LSTM: the state of a position comes from the three positions above it."""

    def __init__(self, features: int, hidden: int, **factory: Any) -> None:
        super().__init__()
        self.from_input = nn.Conv1d(features, 4 * hidden, COLUMNS, **factory)
        self.from_above = nn.Conv1d(hidden, 4 * hidden, 3, padding=1, bias=False, **factory)
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


class _RowBody(nn.Module):
    def __init__(self, channels: int, hidden: int, layers: int, **factory: Any) -> None:
        super().__init__()
        features = (4 * channels, *[hidden] * (layers - 1))
        self.layers = nn.ModuleList(_RowLSTMLayer(each, hidden, **factory) for each in features)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, n)."""
        y = neighbours(x)[:, :, :-1]
        valid = None if sizes is None else valid_mask(x.shape[1:3], sizes)[..., None].to(x.dtype)
        for k, layer in enumerate(self.layers):
            y = y + layer(y, valid) if k else layer(y, valid)
        return y


@register("row", kind="density")
class RowDensity(DensityNet):
    """The Row LSTM of van den Oord et al. 2016: a position sees a triangle above it, and two to its left.

    Args: as of `PixelNet`.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 1,
        dropout: float = 0.0,
        device: Place = None,
        dtype: Type = None,
    ) -> None:
        body = _RowBody(channels, hidden, layers, device=device, dtype=dtype)
        super().__init__(body, hidden, channels, outputs, dropout, device=device, dtype=dtype)


class _MaskedConv(nn.Module):
    """A convolution that sees what comes before a position in reading order, and perhaps the position.

    Only the weights that it uses are parameters.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, sees_itself: bool, **factory: Any) -> None:
        super().__init__()
        self.kernel = kernel
        used = kernel * kernel // 2 + sees_itself
        bound = (inputs * used) ** -0.5  # as torch.nn.Conv2d starts
        self.weight = nn.Parameter(torch.empty(outputs, inputs, used, **factory))
        self.bias = nn.Parameter(torch.empty(outputs, **factory))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, inputs, H, W) to (N, outputs, H, W)."""
        k = self.kernel
        weight = nn.functional.pad(self.weight, (0, k * k - self.weight.shape[-1])).unflatten(-1, (k, k))
        return nn.functional.conv2d(x, weight, self.bias, padding=k // 2)


class _ConvBody(nn.Module):
    def __init__(self, channels: int, hidden: int, layers: int, **factory: Any) -> None:
        super().__init__()
        self.first = _MaskedConv(channels, hidden, FIRST_KERNEL, sees_itself=False, **factory)
        self.inner = nn.ModuleList(
            _MaskedConv(hidden, hidden, KERNEL, sees_itself=True, **factory) for _ in range(2 * layers)
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
class PixelCNN(DensityNet):
    """Masked convolutions (van den Oord et al. 2016): 7×7, then pairs of 3×3 that add to their input.

    Args: as of `PixelNet`; `layers` is the number of pairs.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 2,
        dropout: float = 0.0,
        device: Place = None,
        dtype: Type = None,
    ) -> None:
        body = _ConvBody(channels, hidden, layers, device=device, dtype=dtype)
        super().__init__(body, hidden, channels, outputs, dropout, device=device, dtype=dtype)
