"""The inputs of a file: example, random values, and the grids that the network takes."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.conditions import SMALL
from mdlstm_tk.export.network import (
    Network,
    OutputError,
    Outputs,
    find_layout,
    grid_of,
    mdlstm_layers,
)
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Bounds, Extents, FreeExtents

Examples = Tensor | Sequence[Tensor | None]
Function = Callable[[tuple[int, ...], torch.Generator], Tensor | Array]
ExampleRange = tuple[float, float] | Function
Cases = dict[str, dict[str, Array]]  # all inputs but `sizes` by name, x first; by the name of the case

# Odd, so that a network with strides does not take them by chance; and larger ones.
MAIN, ENLARGEMENTS = (17, 23, 19), (1, 3, 7)
MAX_POSITIONS = 2**14  # of a grid that is chosen here
MAX_TENSOR, QUICK = 2**25, 0.1  # numbers, seconds: of the largest grid


@dataclass(frozen=True)
class Draw:
    """Makes random values of a shape: in a range, by a function, or else standard normal ones.

    Attributes:
        range: the lowest and the highest value. Two integers: integers.
        function: see `ExampleRange`.
        dtype: of the values.
    """

    range: Bounds | None = None
    function: Function | None = None
    dtype: type = np.float32

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        values: Any
        if self.function is not None:
            values = self.function(shape, torch.Generator().manual_seed(int(rng.integers(2**31))))
        elif self.range is None:
            values = rng.standard_normal(shape)
        elif all(isinstance(bound, int) for bound in self.range):
            values = rng.integers(int(self.range[0]), int(self.range[1]), shape, endpoint=True)
        else:
            values = rng.uniform(*self.range, shape)
        return np.asarray(values).astype(self.dtype)


def draw_like(example_range: ExampleRange | None, example: Tensor | None, is_x: bool = False) -> Draw:
    """The random values of an input: those of `example_range`, else in the range of the example.

    Without an example, or if all its values are equal, they are standard normal, and integers 0 and 1; but
    an input after x keeps its only value, unless that is 0.
    """
    kind = "f" if example is None else example.numpy().dtype.kind
    dtype = np.float32 if is_x else {"f": np.float32, "b": np.bool_}.get(kind, np.int64)
    if callable(example_range):
        return Draw(None, example_range, dtype)
    if example_range is not None:
        low, high = example_range
    elif kind == "b":
        low, high = 0, 1
    elif example is None:
        return Draw(dtype=dtype)
    else:
        low, high = example.min().item(), example.max().item()
        if not isfinite(high - low) or (low == high and (is_x or low == 0)):
            if kind == "f":
                return Draw(dtype=dtype)
            low, high = 0, max(1, high)
    number = float if kind == "f" else int
    return Draw((number(low), number(high)), dtype=dtype)


@dataclass
class Inputs:
    """The inputs that the file of a network takes.

    Attributes:
        channels: C.
        channels_last: x is (N, *grid, C); otherwise it is (N, C, *grid).
        padded: `sizes` (N, D) is an input.
        further: an example batch of each further input, by name.
        grid_inputs: for those among them that have the grid of x, their first grid axis.
        multiple_of: for each axis, the number that its extent must be a multiple of.
        draws: the random values of each input but `sizes`, x first.
        grid: extents to export for, None where they are free.
        example: the example x, or None.
        min_grid: the least extents that the network takes.
        shapes: for each grid to verify on, the shapes of all outputs; the main grid first.
        small: small grids that are verified, too.
    """

    channels: int
    channels_last: bool
    padded: bool
    further: dict[str, Tensor]
    grid_inputs: Mapping[str, int]
    multiple_of: Extents
    draws: dict[str, Draw]
    grid: FreeExtents
    example: Array | None
    min_grid: Extents
    shapes: dict[Extents, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    small: list[Extents] = field(default_factory=list)

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.grid)

    @property
    def main(self) -> Extents:
        """The main grid to verify on: the grid to export for, or one of moderate size."""
        return next(iter(self.shapes))

    @property
    def free(self) -> list[int]:
        """The grid axes whose extents are free."""
        return [d for d, extent in enumerate(self.grid) if extent is None]

    @property
    def first_axes(self) -> dict[str, int]:
        """The first grid axis of each input that has a grid."""
        return {"x": 1 if self.channels_last else 2, **self.grid_inputs}

    def like(self, extents: Sequence[int]) -> Extents:
        """A grid with these extents along free axes, rounded up to multiples, or the least ones."""
        axes = zip(extents, self.multiple_of, self.min_grid, self.grid, strict=True)
        return tuple(fixed or -(-max(extent, least) // m) * m for extent, m, least, fixed in axes)

    def arrays(self, grid: Sequence[int], batch: int, seed: int = 0) -> dict[str, Array]:
        """Random inputs on a grid, but `sizes`; x comes first."""
        grid = tuple(grid)
        shapes = {"x": (*grid, self.channels) if self.channels_last else (self.channels, *grid)}
        for name, example in self.further.items():
            shapes[name] = tuple(example.shape[1:])
            if before := self.grid_inputs.get(name):
                shapes[name] = (*example.shape[1:before], *grid, *example.shape[before + self.ndim :])
        rng = np.random.default_rng(seed)
        return {name: self.draws[name]((batch, *shape), rng) for name, shape in shapes.items()}

    def tensors(self, grid: Extents) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on a grid, by name, in the order of the file."""
        x, *further = (torch.from_numpy(value) for value in self.arrays(grid, 2).values())
        sizes = {"sizes": torch.tensor([grid] * 2, device="cpu")} if self.padded else {}
        return {"x": x, **sizes, **dict(zip(self.further, further, strict=True))}

    def grids(self) -> list[Extents]:
        """The grids that a later verification draws inputs on, too, main grid first; of a network that
        takes padded samples also smaller ones."""
        units = [extent // m for extent, m in zip(self.main, self.multiple_of, strict=True)]
        parts = (0.8, 0.5, 0.2, 0) if self.padded else ()
        smaller = [np.maximum(1, np.multiply(part, units)).astype(int) * self.multiple_of for part in parts]
        return list(dict.fromkeys([*self.shapes, *(tuple(grid.tolist()) for grid in smaller)]))

    def cases(self, user: Mapping[str, Array]) -> Cases:
        """Random inputs on all grids, one more on the main grid, and zeros; then x of the user, by name."""
        cases = random_cases(self.arrays, [*self.grids(), *self.small], [0])
        cases |= random_cases(self.arrays, [self.main], [1])
        low, high = self.draws["x"].range or (0, 0)
        if low <= 0 <= high and self.draws["x"].function is None:  # what a blank image is
            blank = self.arrays(self.main, 1)
            cases["zeros"] = {**blank, "x": np.zeros_like(blank["x"])}
        for name, x in user.items():
            further = self.arrays(grid_of(x, self.channels_last), len(x))
            for key, example in self.further.items():
                if key not in self.grid_inputs:
                    further[key] = example.numpy()[np.arange(len(x)) % len(example)]
            cases[name] = {**further, "x": x}
        return cases


def random_cases(
    arrays: Callable[[Extents, int, int], dict[str, Array]],
    grids: Sequence[Extents],
    seeds: Sequence[int],
) -> Cases:
    """Random inputs on each grid, for even seeds in batches of 3 and for odd ones of 1."""
    pairs = [(grid, seed) for grid in grids for seed in seeds]
    return {f"{format_size(g)}, seed {seed}": arrays(g, 1 if seed % 2 else 3, seed) for g, seed in pairs}


def read_inputs(
    module: nn.Module,
    example_inputs: Examples | None = None,
    *,
    grid: FreeExtents | None = None,
    any_size: bool = False,
    padded: bool = False,
    extra_inputs: Mapping[str, Tensor] | None = None,
    grid_inputs: Sequence[str] = (),
    multiple_of: int | Sequence[int] | None = None,
    min_grid: int | Sequence[int] | None = None,
    output_names: Sequence[str] | None = None,
    channels: int | None = None,
    channels_last: bool | None = None,
    example_range: ExampleRange | None = None,
) -> tuple[Network, Inputs]:
    """The network and its inputs, from the arguments of `export_onnx`; `any_size`: extents are free but for
    those that `grid` fixes beside a free one.

    Raises:
        InputError: arguments are missing or contradict each other.
    """
    module = getattr(module, "_orig_mod", module)  # in the wrapper of `torch.compile`
    layer = next(mdlstm_layers(module), None)
    x, further = _read_examples(module, example_inputs, extra_inputs or {})
    padded = further.pop("sizes", None) is not None or padded
    says_channels = x is None or layer is None or channels is not None or channels_last is not None
    channel_axis = says_channels or x.dim() != layer.ndim + 1  # type: ignore[union-attr]
    if channels_last is None:
        channels_last = find_layout(module, x.shape if x is not None and channel_axis else None)
    if channels_last is None and x is None and channels:
        channels_last = True  # as the networks of this package have it
    if channels_last is None or (x is None and channels is None and layer is None):
        raise InputError(
            f"{type(module).__name__} has no MDLSTM layer that tells the layout of x; give an example, and "
            "channels_last=True for (N, *grid, C) or channels_last=False for (N, C, *grid)"
        )
    if padded and grid_inputs:
        raise InputError("padded=True is for networks of one grid; leave grid_inputs=... out")
    network = Network(
        module,
        [*(["sizes"] if padded else []), *further],
        output_names,
        integer=x is not None and not x.is_floating_point(),
        channel_axis=channel_axis,
        channels_last=channels_last,
    )
    draw = draw_like(example_range, x, is_x=True)
    own: FreeExtents | None = None
    if x is not None:
        x = x.float() if channel_axis else x.float().unsqueeze(-1 if channels_last else 1)
        own, channels = grid_of(x, channels_last), x.shape[-1 if channels_last else 1]
        if grid and len(grid) != len(own):
            raise InputError(f"grid={grid} does not fit the example of shape {tuple(x.shape)}")
    extents, ndim = grid or own, len(grid or own or (None,) * (layer.ndim if layer else 2))
    if any_size and not (grid and None in grid):
        extents = (None,) * ndim
    if extents is None or (None in extents and not any_size):
        raise InputError(
            f"form 'unrolled' needs a grid, such as grid=(8, 8) or an example, got grid={grid}; "
            'form="scan" (--form scan) takes free extents'
        )
    return network, Inputs(
        channels=channels or layer.input_size,  # type: ignore[union-attr]
        channels_last=channels_last,
        padded=padded,
        further=further,
        grid_inputs={
            name: _first_grid_axis(name, further, own or extents, channels_last) for name in grid_inputs
        },
        multiple_of=_per_axis("multiple_of", multiple_of, ndim),
        draws={"x": draw, **{name: draw_like(None, example) for name, example in further.items()}},
        grid=extents,
        example=None if x is None else x.numpy(),
        min_grid=_per_axis("min_grid", min_grid, ndim),
    )


def _per_axis(name: str, value: int | Sequence[int] | None, ndim: int) -> Extents:
    numbers = (value or 1,) * ndim if value is None or isinstance(value, int) else tuple(value)
    if len(numbers) != ndim or min(numbers) < 1:
        raise InputError(f"{name} must be one or {ndim} integers of at least 1, got {value}")
    return numbers


def _read_examples(
    module: nn.Module, example_inputs: Examples | None, extra_inputs: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The example x, or None, and the further examples by name, on the CPU; floats as float32, integers as
    int64."""
    is_one = example_inputs is None or isinstance(example_inputs, Tensor)
    examples: Any = [example_inputs] if is_one else example_inputs
    x, *further = inspect.signature(module.forward).bind_partial(*examples).arguments.items()

    def read(value: Tensor) -> Tensor:
        value = value.detach().cpu()
        if value.dtype is torch.bool:
            return value
        return value.float() if value.is_floating_point() else value.long()

    named = {name: value for name, value in further if value is not None} | dict(extra_inputs)
    return None if x[1] is None else read(x[1]), {name: read(value) for name, value in named.items()}


def _first_grid_axis(
    name: str, further: Mapping[str, Tensor], grid: FreeExtents, channels_last: bool
) -> int:
    """The first grid axis of an input with the grid of x: where its example has this grid, and where x has
    it if both axes would do."""
    shape, ndim = tuple(further[name].shape) if name in further else (), len(grid)
    for start in (1, 2) if channels_last else (2, 1):
        part = shape[start : start + ndim]
        if len(part) == ndim and all(e in (None, n) for e, n in zip(grid, part, strict=True)):
            return start
    raise InputError(
        f"grid_inputs must name further inputs with the grid axes of x, got '{name}' of shape {shape}"
    )


def find_grids(inputs: Inputs, exact: Network, is_one: bool) -> dict[str, Outputs]:
    """Run the network in float64 on grids, to find `shapes`, `small` and `min_grid` of its inputs, and the
    extents that it fixes.

    Args:
        is_one: the user named all extents of a grid, so that a file for that grid alone will do.

    Returns:
        The outputs by the names of cases.

    Raises:
        InputError: the network does not take the grid to export for, returns NaN there, or other things
            than outputs.
    """
    found: dict[Extents, Outputs | InputError] = {}

    def takes(grid: Extents) -> bool:
        if grid not in found:
            try:
                found[grid] = exact.finite(inputs.arrays(grid, 3))
            except OutputError:
                raise
            except InputError as error:
                found[grid] = error
        return isinstance(found[grid], dict)

    ndim, part = inputs.ndim, max(1, inputs.ndim - 1)  # shorter extents for many axes
    usual = [-(-extent // part) for extent in (*MAIN, *(8,) * ndim)[:ndim]]
    trials = [
        inputs.like([factor * -(-e // m) * m for e, m in zip(usual, inputs.multiple_of, strict=True)])
        for factor in ENLARGEMENTS
    ]
    main = next(filter(takes, trials), None) or _of_example(inputs, takes, is_one)
    if main is None:
        raise _refusal(inputs, trials[0], str(found[trials[0]]), takes)
    for axis, multiple in enumerate(inputs.multiple_of):
        if axis in inputs.free:
            least = main[axis]
            while least - multiple >= inputs.min_grid[axis] and takes(_at(main, axis, least - multiple)):
                least -= multiple
            inputs.min_grid = _at(inputs.min_grid, axis, least)
    for k in range(min(SMALL - 1, int(MAX_POSITIONS ** (1 / ndim))), 0, -1) if inputs.free else ():
        grid = inputs.like([k] * ndim)
        if not takes(grid):  # as of a deviation over the grid, which one position does not have
            inputs.min_grid = tuple(np.add(grid, inputs.multiple_of).tolist())
            break
        inputs.small = list(dict.fromkeys([grid, *inputs.small]))
    longer, row = (5, 8, 3, 2, *(1,) * ndim)[:ndim], (*(1,) * (ndim - 1), 7)
    odd = [
        inputs.like([unit * m for unit, m in zip(units, inputs.multiple_of, strict=True)])
        for units in (longer, longer[::-1], row, row[::-1], (1,) * ndim)
    ]
    for grid in [main, *filter(takes, odd if inputs.free else [])]:
        outputs: Any = found[grid]
        inputs.shapes[grid] = {name: y.shape for name, y in outputs.items()}
    inputs.small = [grid for grid in inputs.small if grid not in inputs.shapes]
    return {f"{format_size(grid)}, seed 0": y for grid, y in found.items() if isinstance(y, dict)}


def _at(grid: Sequence[int], axis: int, extent: int) -> Extents:
    return (*grid[:axis], extent, *grid[axis + 1 :])


def _of_example(inputs: Inputs, takes: Callable[[Extents], bool], is_one: bool) -> Extents | None:
    """For a network that takes no grid of ours: that of the example, with the extents that it fixes; None
    if it does not take that, or no free extent is left."""
    grid = None if inputs.example is None else grid_of(inputs.example, inputs.channels_last)
    if grid is None or not takes(grid):
        return None
    extents = list(inputs.grid)
    for d in inputs.free:
        extents[d] = None if takes(_at(grid, d, 3 * grid[d])) else grid[d]
    if any(not takes(_at(grid, d, grid[d] + inputs.multiple_of[d])) for d in inputs.free if not extents[d]):
        return None  # it takes multiples alone
    if None not in extents and not is_one:
        return None
    inputs.grid = tuple(extents)
    return inputs.like([max(e, 2 * m) for e, m in zip(grid, inputs.multiple_of, strict=True)])


def _refusal(inputs: Inputs, grid: Extents, reason: str, takes: Callable[[Extents], bool]) -> InputError:
    """The error for a network that does not take a grid."""
    even = (inputs.like([k, 2 * k, *(k,) * inputs.ndim][: inputs.ndim]) for k in (2, 4, 8, 16, 32))
    own = () if inputs.example is None else grid_of(inputs.example, inputs.channels_last)
    advice = (
        "give example_inputs=(x, …), other grid=..., channels=..., channels_last=... or example_range=..."
    )
    if inputs.free and (multiple := next(filter(takes, even), None)):
        advice = f"it takes {format_size(multiple)}, so give multiple_of={multiple[0]} (--multiple-of)"
    elif inputs.free and own and takes(own):
        advice = f"it takes {format_size(own)} only; name inputs with that grid as grid_inputs=..."
    return InputError(f"{reason}, on the grid {format_size(grid)}; {advice}")


def large_cases(inputs: Inputs, exact: Network) -> Iterator[tuple[Cases, dict[str, Outputs]]]:
    """Random x on 64 and, if that is quick and small, 256 positions along free axes, with its outputs:
    states that grow from one wavefront to the next do not show on small grids. None if the network does not
    take it."""
    before = 0
    for extent in (SMALL, 64, 256):
        grid = inputs.like([extent // m * m for m in inputs.multiple_of])
        growth = exact.largest / before if before else 1.0
        if prod(grid) > 4 * MAX_POSITIONS or (before and exact.largest * growth > MAX_TENSOR):
            return
        before, start = exact.largest, time.perf_counter()
        name, arrays = f"{format_size(grid)}, seed 0", inputs.arrays(grid, 1)
        try:
            outputs = exact.finite(arrays)
        except InputError:
            return
        if extent > SMALL:
            yield {name: arrays}, {name: outputs}
        if time.perf_counter() - start > QUICK:
            return
