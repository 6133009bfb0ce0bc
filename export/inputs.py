"""The inputs of a file: example, random values, and the grids that the network takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
    Outputs,
    find_layout,
    grid_of,
    mdlstm_layers,
)
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Bounds, Extents, Form, FreeExtents

Examples = Tensor | Sequence[Tensor | None]
Function = Callable[[tuple[int, ...], torch.Generator], Tensor | Array]
ExampleRange = tuple[float, float] | Function
Cases = dict[str, dict[str, Array]]  # all inputs but `sizes` by name, x first; by the name of the case

# Odd, so that a network with strides does not take them by chance; and larger ones.
MAIN, ENLARGEMENTS = (17, 23, 19), (1, 3, 7)
MAX_POSITIONS = 2**14  # of a grid that is chosen here
LARGE, LARGEST = 64, 2**16  # extents, and positions, of the largest grid


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
        named: those of a grid that the user has named; of a network that takes no other the file is for
            that one.
        example: the example x, or None.
        min_grid: the least extents that the network takes.
        shapes: for each grid that the network was run on, the shapes of all outputs.
        grids: those that a later verification runs on, too, the main one first: the grid to export for, or
            one of moderate size.
    """

    channels: int
    channels_last: bool
    padded: bool
    further: dict[str, Tensor]
    grid_inputs: Mapping[str, int]
    multiple_of: Extents
    draws: dict[str, Draw]
    grid: FreeExtents
    named: Extents | None
    example: Array | None
    min_grid: Extents
    shapes: dict[Extents, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    grids: list[Extents] = field(default_factory=list)

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.grid)

    @property
    def main(self) -> Extents:
        """The main grid to verify on."""
        return self.grids[0]

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
        shapes: dict[str, FreeExtents] = {
            "x": (*grid, self.channels) if self.channels_last else (self.channels, *grid)
        }
        for name, example in self.further.items():
            shapes[name] = tuple(example.shape[1:])
            if before := self.grid_inputs.get(name):
                shapes[name] = (*example.shape[1:before], *grid, *example.shape[before + self.ndim :])
        return drawn(self.draws, shapes, (), batch, seed)

    def tensors(self, grid: Extents) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on a grid, by name, in the order of the file."""
        x, *further = (torch.from_numpy(value) for value in self.arrays(grid, 2).values())
        sizes = {"sizes": torch.tensor([grid] * 2, device="cpu")} if self.padded else {}
        return {"x": x, **sizes, **dict(zip(self.further, further, strict=True))}

    def cases(self) -> Cases:
        """Random inputs on `grids`, one more on the main grid, and the example."""
        cases = random_cases(self.arrays, self.grids, [0])
        cases |= random_cases(self.arrays, [self.main], [1])
        x = self.example
        if x is not None and self.like(grid_of(x, self.channels_last)) == grid_of(x, self.channels_last):
            example = self.arrays(grid_of(x, self.channels_last), len(x))
            own = {name: self.further[name].numpy() for name in {*self.further} - {*self.grid_inputs}}
            cases["example_inputs"] = {**example, **own, "x": x}
        return cases


def drawn(
    draws: Mapping[str, Draw], shapes: Mapping[str, FreeExtents], free: Sequence[int], batch: int, seed: int
) -> dict[str, Array]:
    """Random inputs of shapes (batch, *shape), in which None stands for the extents `free`, in order."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, shape in shapes.items():
        extents = iter(free)
        known = [next(extents, 1) if extent is None else extent for extent in shape]
        result[name] = draws[name]((batch, *known), rng)
    return result


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
    example_inputs: Examples | None,
    grid: FreeExtents | None,
    form: Form,
    padded: bool,
    grid_inputs: Sequence[str],
    multiple_of: int | Sequence[int] | None,
    min_grid: int | Sequence[int] | None,
    output_names: Sequence[str] | None,
    channels: int | None,
    channels_last: bool | None,
    example_range: ExampleRange | None,
) -> tuple[Network, Inputs]:
    """The network and its inputs, from the arguments of `export_onnx`.

    Raises:
        InputError: arguments are missing or contradict each other.
    """
    module = getattr(module, "_orig_mod", module)  # in the wrapper of `torch.compile`
    layer = next(mdlstm_layers(module), None)
    x, further = _read_examples(module, example_inputs)
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
    draws = {"x": draw_like(example_range, x, is_x=True)}
    draws |= {name: draw_like(None, example) for name, example in further.items()}
    network = Network(
        module,
        [*(["sizes"] if padded else []), *further],
        output_names,
        integer=x is not None and not x.is_floating_point(),
        channel_axis=channel_axis,
        channels_last=channels_last,
    )
    own: FreeExtents | None = None
    if x is not None:
        x = x.float() if channel_axis else x.float().unsqueeze(-1 if channels_last else 1)
        own, channels = grid_of(x, channels_last), x.shape[-1 if channels_last else 1]
    extents, ndim = grid or own, len(own or grid or (None,) * (layer.ndim if layer else 2))
    named = tuple(extent for extent in grid or () if extent is not None)
    if form != "unrolled" and not (grid and None in grid):
        extents = (None,) * ndim
    if extents is None or len(extents) != ndim or (None in extents and form == "unrolled"):
        raise InputError(
            f"form '{form}' needs an example or a grid of {ndim} axes, as grid=(8, 8), got grid={grid}; "
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
        draws=draws,
        grid=extents,
        named=named if len(named) == ndim else None,
        example=None if x is None else x.numpy(),
        min_grid=_per_axis("min_grid", min_grid, ndim),
    )


def _per_axis(name: str, value: int | Sequence[int] | None, ndim: int) -> Extents:
    numbers = (value or 1,) * ndim if value is None or isinstance(value, int) else tuple(value)
    if len(numbers) != ndim or min(numbers) < 1:
        raise InputError(f"{name} must be one or {ndim} integers of at least 1, got {value}")
    return numbers


def _read_examples(
    module: nn.Module, example_inputs: Examples | None
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The example x, or None, and the further examples by name, on the CPU; floats as float32, integers as
    int64."""
    is_one = example_inputs is None or isinstance(example_inputs, Tensor)
    examples: Any = [example_inputs] if is_one else example_inputs

    def read(value: Tensor) -> Tensor:
        value = value.detach().cpu()
        if value.dtype is torch.bool:
            return value
        return value.float() if value.is_floating_point() else value.long()

    named = inspect.signature(module.forward).bind_partial(*examples).arguments.items()
    x, *further = [(name, None if value is None else read(value)) for name, value in named]
    return x[1], {name: value for name, value in further if value is not None}


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


def find_grids(inputs: Inputs, exact: Network) -> dict[str, Outputs]:
    """Run the network in float64 on grids, to find `grids`, `shapes` and `min_grid` of its inputs.

    Returns:
        The outputs by the names of cases.

    Raises:
        InputError: the network does not take the grid to export for, returns NaN there, or other things
            than outputs.
    """
    found: dict[Extents, Outputs] = {}
    refused: dict[Extents, InputError] = {}

    def takes(grid: Extents) -> bool:
        if grid not in found and grid not in refused:
            try:
                found[grid] = exact.run(inputs.arrays(grid, 3))
            except InputError as error:
                refused[grid] = error
        return grid in found

    ndim, part = inputs.ndim, max(1, inputs.ndim - 1)  # shorter extents for many axes
    usual = [-(-extent // part) for extent in (*MAIN, *(8,) * ndim)[:ndim]]
    units = [-(-e // m) * m for e, m in zip(usual, inputs.multiple_of, strict=True)]
    trials = [inputs.like([factor * unit for unit in units]) for factor in ENLARGEMENTS]
    if inputs.example is not None:  # a network may need grids as large as that
        own = grid_of(inputs.example, inputs.channels_last)
        trials.append(inputs.like([2 * extent + 1 for extent in own]))
    main = next(filter(takes, trials), None)
    if main is None and inputs.named and takes(inputs.named):
        inputs.grid = main = inputs.named
    if main is None:
        raise InputError(
            f"{refused[trials[0]]}, on the grid {format_size(trials[0])}; give example_inputs=(x, …), the "
            "extents that it fixes as grid=(8, None), multiple_of=... (--multiple-of) for strides, "
            "grid_inputs=... for further inputs with that grid, channels=... or example_range=..."
        )
    for axis in inputs.free:
        first, multiple = inputs.like([1] * ndim)[axis], inputs.multiple_of[axis]
        along = (_at(main, axis, extent) for extent in range(first, main[axis] + 1, multiple))
        inputs.min_grid = _at(inputs.min_grid, axis, next(filter(takes, along))[axis])
    for k in range(min(SMALL - 1, int(MAX_POSITIONS ** (1 / ndim))), 0, -1) if inputs.free else ():
        grid = inputs.like([k] * ndim)
        if not takes(grid):  # as of a deviation over the grid, which one position does not have
            inputs.min_grid = tuple(np.add(grid, inputs.multiple_of).tolist())
            break
    longer, row = (5, 8, 3, 2, *(1,) * ndim)[:ndim], (*(1,) * (ndim - 1), 7)
    odd = [
        inputs.like([unit * m for unit, m in zip(units, inputs.multiple_of, strict=True)])
        for units in (longer, longer[::-1], row, row[::-1], (1,) * ndim)
    ]
    padded = [
        tuple(max(1, int(share * e / m)) * m for e, m in zip(main, inputs.multiple_of, strict=True))
        for share in ((0.8, 0.5, 0.2, 0) if inputs.padded else ())
    ]
    inputs.grids = list(dict.fromkeys([main, *filter(takes, odd if inputs.free else []), *padded]))
    for grid in padded:
        if not takes(grid):
            raise refused[grid]
    found = {grid: y for grid, y in found.items() if grid in inputs.grids or inputs.like(grid) == grid}
    inputs.shapes = {grid: {name: v.shape for name, v in y.items()} for grid, y in found.items()}
    return {f"{format_size(grid)}, seed 0": y for grid, y in found.items()}


def _at(grid: Sequence[int], axis: int, extent: int) -> Extents:
    return (*grid[:axis], extent, *grid[axis + 1 :])


def large_case(inputs: Inputs, exact: Network) -> dict[str, tuple[dict[str, Array], Outputs]]:
    """Random x on `LARGE` positions along each free axis, and its outputs, by the name of the case: states
    that grow from one wavefront to the next do not show on small grids. Nothing if the network does not
    take such a grid."""
    grid = inputs.like([LARGE // m * m for m in inputs.multiple_of])
    arrays = inputs.arrays(grid, 1)
    with suppress(InputError):
        return (
            {f"{format_size(grid)}, seed 0": (arrays, exact.run(arrays))} if prod(grid) <= LARGEST else {}
        )
    return {}
