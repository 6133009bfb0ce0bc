"""What networks are built of: layers that see a grid, its rows or one line, and a hierarchy of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mdlstm_tk.backends.tables import valid_mask
from mdlstm_tk.layer import MDLSTM, blocks

Window = tuple[int, ...]
Sight = Literal["grid", "rows", "line"]


class Lines(nn.Module):
    """A one-dimensional LSTM along the rows of a grid, or along all of its rows joined to one line.

    Args:
        channels: C of x.
        hidden: n, units of each direction.
        joined: one line, not rows.
        window: blocks of this many cells are features, as in `MDLSTM`.
        **options: of `MDLSTM`.

    Attributes:
        output_size: features of y.
    """

    def __init__(
        self, channels: int, hidden: int, *, joined: bool, window: Window = (1, 1), **options: Any
    ) -> None:
        super().__init__()
        self.joined, self.window = joined, window
        self.lstm = MDLSTM(channels * prod(window), hidden, ndim=1, **options)
        self.output_size = self.lstm.output_size

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """x (N, H, W, C) → y (N, ⌈H / window⌉, ⌈W / window⌉, output_size), 0 outside sizes."""
        if sizes is not None:
            x = x.masked_fill(~valid_mask(x.shape[1:-1], sizes)[..., None], 0)
        x, sizes = blocks(x, self.window), shrink(sizes, self.window)
        if self.joined:
            y = along_line(self.lstm, x, sizes)
        else:
            widths = None if sizes is None else sizes[:, 1:].repeat_interleave(x.shape[1], dim=0)
            y = self.lstm(x.flatten(0, 1), widths).reshape(*x.shape[:3], -1)
        return y if sizes is None else y.masked_fill(~valid_mask(y.shape[1:-1], sizes)[..., None], 0)


def along_line(run: Callable[..., Tensor], x: Tensor, sizes: Tensor | None) -> Tensor:
    """All rows of each sample joined to one line, and back to a grid.

    Args:
        run: what runs along a line: from (N, T, C), and lengths (N, 1) if there are sizes, to (N, T, n).
        x: (N, H, W, C).
        sizes: (N, 2), or None if all samples fill the grid.

    Returns:
        (N, H, W, n), which outside sizes means nothing.
    """
    lines = x.flatten(1, 2)  # (N, P, C)
    if sizes is None:
        return run(lines).reshape(*x.shape[:3], -1)
    place, step = _closed_up(x.shape[1], x.shape[2], sizes)
    y = _take(run(_take(lines, place), sizes.prod(dim=1, keepdim=True)), step)
    return y.reshape(*x.shape[:3], -1)


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


def sweep(
    sight: Sight, channels: int, hidden: int, window: Window, directions: Any, **options: Any
) -> MDLSTM | Lines:
    """A layer from x (N, H, W, C) and sizes to y (N, ⌈H / window⌉, ⌈W / window⌉, output_size)."""
    options |= {"window": window, "directions": directions}
    if sight == "grid":
        return MDLSTM(channels, hidden, **options)
    return Lines(channels, hidden, joined=sight == "line", **options)


class Hierarchy(nn.Module):
    """Levels of sweeps, each over blocks of what the one below makes (Graves & Schmidhuber 2009).

    Between two levels lies a linear map with tanh, which merges the directions. Each level has twice
    the units of the one below.

    Args:
        sight: "grid" for `MDLSTM`, "rows" or "line" for `Lines`.
        channels: C of x.
        hidden: n of the top level.
        windows: of each level.
        layers: stacked in each level.
        dropout: probability of zeroing an output of a level, while training.
        **options: of the layers.

    Attributes:
        output_size: features of y.
    """

    def __init__(
        self,
        sight: Sight,
        channels: int,
        hidden: int,
        windows: Sequence[Window],
        layers: int = 1,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.sweeps, self.joints = nn.ModuleList(), nn.ModuleList()
        self.dropout = nn.Dropout(dropout)
        features = channels
        for level, window in enumerate(self.windows):
            units = max(hidden >> (len(self.windows) - 1 - level), 2)
            layer = sweep(sight, features, units, window, num_layers=layers, dropout=dropout, **options)
            self.sweeps.append(layer)
            features = layer.output_size
            if level < len(self.windows) - 1:
                self.joints.append(nn.Linear(features, features := 2 * units))
        self.output_size = features

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (N, H, W, C) → y (N, h, w, output_size), 0 outside its sizes, and these."""
        for level, (layer, window) in enumerate(zip(self.sweeps, self.windows, strict=True)):
            if level:
                x = self.joints[level - 1](x).tanh()
            x, sizes = self.dropout(layer(x, sizes)), shrink(sizes, window)
        return x, sizes


def shrink(sizes: Tensor | None, window: Window) -> Tensor | None:
    """The extents in blocks."""
    if sizes is None:
        return None
    block = sizes.new_tensor(window)
    return (sizes + block - 1) // block
