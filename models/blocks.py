"""The parts that networks are composed of: encoders, downward sweeps, windows and padding.

Shapes: N batch, (H, W) grid, P = H · W positions, C features. `sizes` (N, 2) int64 holds the valid extents
of each sample; None means that every sample fills the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes, valid_mask
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.tiling.stages import Stage

Window = tuple[int, ...]
DOWNWARD = ((1, 1), (1, -1))  # directions


def check_batched(x: Tensor, ndim: int) -> None:
    """Check that x is (N, *grid, C). A single layer takes a sample alone, too.

    Raises:
        InputError: it has more axes, or fewer.
    """
    if x.dim() != ndim + 2:
        expected = f"(N, *grid, C) where the grid has D = {ndim}; a sample alone is x[None]"
        raise InputError(f"x has shape {tuple(x.shape)}, expected {expected}")


def fill_padding(x: Tensor, sizes: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """Replace x (N, *grid, C) outside `sizes` by a number, or by the features (C,)."""
    valid = valid_mask(x.shape[1:-1], sizes)[..., None]
    return x.where(valid, value) if isinstance(value, Tensor) else x.masked_fill(~valid, value)


def combine_windows(windows: Sequence[Window]) -> Window:
    """The positions of x under one output, if each level has a window over the level before."""
    return tuple(prod(extents) for extents in zip(*windows, strict=True))


def sizes_in_windows(sizes: Tensor | None, window: Window) -> Tensor | None:
    """Valid extents in windows, rounded up, from those in positions."""
    if sizes is None:
        return None
    extents = sizes.new_tensor(window)
    return (sizes + extents - 1) // extents


def depth_to_space(y: Tensor, window: Window, grid: Sequence[int] = ()) -> Tensor:
    """Give each position its share of the features of its window: the inverse of `space_to_depth`.

    Args:
        y: (N, *⌈grid / window⌉, ∏window · C).
        window: positions that an element of y covers, one extent for each axis.
        grid: the extents of the result (N, *grid, C); empty for those of all windows.
    """
    ndim = len(window)
    if prod(window) > 1:
        pairs = [axis for d in range(ndim) for axis in (1 + d, 1 + ndim + d)]
        y = y.unflatten(-1, (*window, -1)).permute(0, *pairs, 1 + 2 * ndim)
        for d in range(ndim):
            y = y.flatten(1 + d, 2 + d)
        for d, extent in enumerate(grid):
            y = y.narrow(1 + d, 0, extent)
    return y


def apply_flattened(run: Callable[..., Tensor], x: Tensor, sizes: Tensor | None) -> Tensor:
    """Join the rows of each sample of x (N, H, W, C) to one sequence, without padding, and arrange the
    result as a grid (N, H, W, n), undefined outside sizes. `run` maps a sequence (N, P, C), and its lengths
    (N, 1) if there are sizes, to (N, P, n)."""
    sequence = x.flatten(1, 2)  # (N, P, C)
    if sizes is None:
        y = run(sequence)
    else:
        height, width, widths = x.shape[1], x.shape[2], sizes[:, 1:]
        steps = torch.arange(height * width, device=x.device)
        rows, columns = (torch.arange(extent, device=x.device) for extent in (height, width))
        position_of_step = steps // widths * width + steps % widths  # (N, P), as flat indices of the grid
        step_of_position = (rows[:, None] * widths[..., None] + columns).flatten(1)
        # Indices beyond the end of a sequence, or outside sizes, are valid ones without a meaning.
        sequence = _gather(sequence, position_of_step.clamp(max=height * width - 1))
        y = run(sequence, sizes.prod(dim=1, keepdim=True))
        y = _gather(y, step_of_position.clamp(max=height * width - 1))
    return y.reshape(*x.shape[:3], y.shape[-1])


def _gather(sequence: Tensor, indices: Tensor) -> Tensor:
    """(N, P, C) at the indices (N, P) along the sequence."""
    return sequence.gather(1, indices[..., None].expand(-1, -1, sequence.shape[-1]))


class DownwardSweeps(nn.Module):
    """Layers of two downward sweeps, in which a position sees all that comes before it in reading order.

    The sweep from the right would see the rest of the row, so its output is shifted down one row: a
    position gets what it says of the row above (the diagonal BiLSTM of van den Oord et al. 2016).

    Args:
        channels: C of x.
        hidden: n, units of each of the two directions.
        layers: their number.
        residual: from the second layer on, a layer adds to its input.
        **options: further options of `MDLSTM`.
    """

    def __init__(self, channels: int, hidden: int, layers: int, residual: bool, **options: Any) -> None:
        super().__init__()
        self.residual = residual
        features = (channels, *[2 * hidden] * (layers - 1))
        self.layers: Sequence[MDLSTM] = nn.ModuleList(  # type: ignore[assignment]
            MDLSTM(c, hidden, directions=DOWNWARD, **options) for c in features
        )

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map x (N, H, W, C) to (N, H, W, 2n)."""
        for k, layer in enumerate(self.layers):
            from_left, from_right = layer(x, sizes).chunk(2, dim=-1)
            from_right = nn.functional.pad(from_right, (0, 0, 0, 0, 1, 0))[:, :-1]
            y = torch.cat([from_left, from_right], dim=-1)
            x = x + y if k and self.residual else y
        return x


class Encoder(nn.Module):
    """Levels of recurrent layers, each over windows of the level before (Graves & Schmidhuber 2009).

    A linear map with tanh between two levels merges the directions. Each level has twice the units of the
    level before, but none has fewer than 2 unless the last has.

    Args:
        make_level: `MDLSTM`, or a module with its arguments and its `output_size`.
        channels, hidden, windows, layers, dropout: as of `mdlstm_tk.models.heads.EncoderNet`.
        **options: of the levels.

    Attributes:
        output_size: features of y.
    """

    def __init__(
        self,
        make_level: Callable[..., nn.Module],
        channels: int,
        hidden: int,
        windows: Sequence[Window],
        layers: int,
        dropout: float,
        **options: Any,
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.levels, self.merges = nn.ModuleList(), nn.ModuleList()
        self.dropout = nn.Dropout(dropout)
        options |= {"num_layers": layers, "dropout": dropout if layers > 1 else 0.0}
        features, last = channels, len(self.windows) - 1
        for index, window in enumerate(self.windows):
            units = max(hidden >> (last - index), min(hidden, 2))
            level: Any = make_level(features, units, window=window, **options)
            self.levels.append(level)
            features = level.output_size
            if index < last:
                self.merges.append(nn.Linear(features, features := 2 * units))
        self.output_size = features

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> tuple[Tensor, Tensor | None]:
        """Map x (N, H, W, C) to y (N, h, w, output_size), 0 outside its sizes, and to these sizes."""
        check_batched(x, len(self.windows[0]))
        sizes = None if sizes is None else as_sizes(sizes, x)
        for index, (level, window) in enumerate(zip(self.levels, self.windows, strict=True)):
            if index:
                x = self.merges[index - 1](x).tanh()
            x, sizes = self.dropout(level(x, sizes)), sizes_in_windows(sizes, window)
        return x, sizes

    def tile_stages(self) -> list[Stage]:
        """The levels as stages of a network that runs in tiles.

        Raises:
            InputError: the levels recur along something else than the grid.
        """
        if not all(isinstance(level, MDLSTM) for level in self.levels):
            raise InputError(
                "tiles are for sweeps over the axes of the grid, and these levels recur along rows"
            )
        merges: list[Any] = [*self.merges, None]
        return [
            Stage(level, nn.Tanh() if index else None, merge)  # type: ignore[arg-type]
            for index, (level, merge) in enumerate(zip(self.levels, merges, strict=True))
        ]
