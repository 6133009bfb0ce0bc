"""The parts that networks are composed of: encoders, downward sweeps, windows and padding.

Shapes: N batch, (H, W) grid, P = H · W positions, C features. `sizes` (N, 2) int64 holds the valid extents
of each sample; None means that every sample fills the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from math import prod
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from mdlstm_tk._util import arguments
from mdlstm_tk._util.checks import fit_argument
from mdlstm_tk._util.masking import Sizes, as_sizes, valid_mask
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.tiling.stages import Stage

Window = tuple[int, ...]
Init = TypeVar("Init", bound=Callable[..., None])
OPTIONS: dict[str, Callable[[str, Any], Any]] = {  # of networks, and what they must be
    **dict.fromkeys(("channels", "outputs", "hidden", "layers", "ndim"), arguments.positive),
    "dropout": arguments.probability,
    "linear": arguments.flag,
    "windows": partial(fit_argument, hint=tuple[Any, ...]),
}
DOWNWARD = ((1, 1), (1, -1))  # directions


def checked_options(init: Init) -> Init:
    """Decorate the constructor of a network: check the arguments that are in `OPTIONS`, device and dtype.

    Raises:
        InputError: one of them is no such value; the message names it.
    """
    parameters = signature(init)

    @wraps(init)
    def check_and_init(*args: Any, **options: Any) -> None:
        bound = parameters.bind(*args, **options)
        given = bound.arguments
        given |= {name: OPTIONS[name](name, value) for name, value in given.items() if name in OPTIONS}
        arguments.check_factory(given.get("device"), given.get("dtype"))
        init(*bound.args, **bound.kwargs)

    return check_and_init  # type: ignore[return-value]


def check_batched(x: Any, ndim: int, channels: int | None = None) -> None:
    """Check that x is a tensor (N, *grid, C). A single layer takes a sample alone, too.

    Args:
        x: what `forward` got.
        ndim: D.
        channels: C, or None if the first layer checks it.
    """
    shape = tuple(arguments.tensor("x", x).shape)
    if len(shape) == ndim + 2 and channels in (None, shape[-1]):
        return
    expected = f"D = {ndim}" if channels is None else f"D = {ndim}, and C = {channels}"
    alone = "; a sample alone is x[None]" if len(shape) == ndim + 1 else ""
    raise InputError(f"x has shape {shape}, expected (N, *grid, C) where the grid has {expected}{alone}")


def fill_padding(x: Tensor, sizes: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """Replace x (N, *grid, C) outside `sizes` by a number, or by the features (C,)."""
    valid = valid_mask(x.shape[1:-1], sizes)[..., None]
    return x.where(valid, value) if isinstance(value, Tensor) else x.masked_fill(~valid, value)


def combine_windows(windows: Sequence[Window]) -> Window:
    """Return the positions of x under one output, if each level has a window over the level before."""
    return tuple(prod(extents) for extents in zip(*windows, strict=True))


def sizes_in_windows(sizes: Tensor | None, window: Window) -> Tensor | None:
    """Convert valid extents in positions to extents in windows, rounded up."""
    if sizes is None:
        return None
    extents = sizes.new_tensor(window)
    return (sizes + extents - 1) // extents


def depth_to_space(y: Tensor, window: Window, grid: Sequence[int] = ()) -> Tensor:
    """Give each position its share of the features of its window: the inverse of `space_to_depth`.

    Args:
        y: (N, *⌈grid / window⌉, ∏window · C).
        window: positions that an element of y covers, one extent for each axis.
        grid: the extents of the result; empty for those of all windows.

    Returns:
        (N, *grid, C).
    """
    ndim = len(window)
    if prod(window) > 1:
        y = y.unflatten(-1, (*window, -1))
        pairs = [axis for d in range(ndim) for axis in (1 + d, 1 + ndim + d)]
        y = y.permute(0, *pairs, 1 + 2 * ndim)
        for d in range(ndim):
            y = y.flatten(1 + d, 2 + d)
        for d, extent in enumerate(grid):
            y = y.narrow(1 + d, 0, extent)
    return y


def apply_flattened(run: Callable[..., Tensor], x: Tensor, sizes: Tensor | None) -> Tensor:
    """Join the rows of each sample to one sequence, without padding, and arrange the result as a grid.

    Args:
        run: maps a sequence (N, P, C), and its lengths (N, 1) if there are sizes, to (N, P, n).
        x: (N, H, W, C).
        sizes: (N, 2) or None.

    Returns:
        (N, H, W, n), undefined outside sizes.
    """
    sequence = x.flatten(1, 2)  # (N, P, C)
    if sizes is None:
        y = run(sequence)
        return y.reshape(*x.shape[:3], y.shape[-1])
    position_of_step, step_of_position = _flattening_indices(x.shape[1], x.shape[2], sizes)
    sequence = _gather_steps(sequence, position_of_step)
    y = _gather_steps(run(sequence, sizes.prod(dim=1, keepdim=True)), step_of_position)
    return y.reshape(*x.shape[:3], y.shape[-1])


def _flattening_indices(height: int, width: int, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return how the valid positions of padded samples form sequences.

    Returns:
        The flat position (N, P) that each step of a sequence is at, and the step (N, P) at which each flat
        position comes. Entries beyond the end of a sequence, or outside sizes, are valid indices without a
        meaning.
    """
    widths = sizes[:, 1:]  # (N, 1)
    steps = torch.arange(height * width, device=sizes.device)
    rows, columns = (torch.arange(extent, device=sizes.device) for extent in (height, width))
    position_of_step = steps // widths * width + steps % widths  # (N, P)
    step_of_position = (rows[:, None] * widths[..., None] + columns).flatten(1)  # (N, P)
    last = height * width - 1
    return position_of_step.clamp(max=last), step_of_position.clamp(max=last)


def _gather_steps(sequence: Tensor, indices: Tensor) -> Tensor:
    """Gather (N, P, C) at indices (N, P) along the sequence."""
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
        channels: C of x.
        hidden: n, units of each direction of the last level.
        windows: the window of each level.
        layers: stacked layers in each level.
        dropout: probability of zeroing an output of a level in training.
        device: where the parameters are.
        dtype: type of the parameters.
        **options: further options of the layers.

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
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.levels, self.merges = nn.ModuleList(), nn.ModuleList()
        self.dropout = nn.Dropout(dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options |= {"num_layers": layers, "dropout": dropout if layers > 1 else 0.0} | factory
        features = channels
        for index, window in enumerate(self.windows):
            units = max(hidden >> (len(self.windows) - 1 - index), min(hidden, 2))
            level: Any = make_level(features, units, window=window, **options)
            self.levels.append(level)
            features = level.output_size
            if index < len(self.windows) - 1:
                self.merges.append(nn.Linear(features, features := 2 * units, **factory))
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
        stages = []
        for index, level in enumerate(self.levels):
            if not isinstance(level, MDLSTM):
                raise InputError(
                    "a network that recurs along rows cannot run in tiles, which are for sweeps over the "
                    "axes of the grid"
                )
            before = nn.Tanh() if index else None
            merge = self.merges[index] if index < len(self.merges) else None
            stages.append(Stage(level, before, cast("nn.Linear | None", merge)))
        return stages
