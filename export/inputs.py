"""The inputs of a file: example, random values, and the grids that the network takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.conditions import SMALL
from mdlstm_tk.export.network import (
    Network,
    OutputError,
    Outputs,
    find_layout,
    grid_of,
    mdlstm_layers,
    parameters_of,
)
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.io.metadata import are_bounds

Extents = tuple[int | None, ...]
Examples = Tensor | Sequence[Tensor | None]
ExampleRange = tuple[float, float] | Callable[[tuple[int, ...], torch.Generator], Tensor | Array]

MAIN, ENLARGEMENTS = (
    (17, 23, 19),
    (1, 3, 7),
)  # odd, so that a network with strides does not take them by chance
MAX_POSITIONS = 2**14  # of a grid that is chosen here
MAX_TENSOR, QUICK = 2**25, 0.1  # numbers, seconds: of the largest grid


class Case(NamedTuple):
    """One input that a model and its network are compared on.

    Attributes:
        name: identifies the case, for example "8x8, seed 0".
        group: the cases that are summarised together.
        inputs: all inputs but `sizes`, by name; x comes first.
        parts: numbers of samples in the batches that a runtime gets.
    """

    name: str
    group: str
    inputs: dict[str, Array]
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """Makes random values of a shape.

    Attributes:
        range: the lowest and the highest value; None: standard normal numbers. Two integers: integers.
        function: makes the values in place of `range`, given a shape and a `torch.Generator`.
        dtype: of the values.
    """

    range: tuple[float, float] | None = None
    function: Callable[[tuple[int, ...], torch.Generator], Tensor | Array] | None = None
    dtype: type = np.float32

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if self.function is not None:
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            values = np.asanyarray(self.function(shape, generator))
            if values.dtype.kind not in "buif" or values.shape != shape:
                got = f"{values.dtype} of shape {values.shape}"
                raise InputError(f"example_range returned {got}, expected real numbers of shape {shape}")
        elif self.range is None:
            values = rng.standard_normal(shape)
        elif all(isinstance(bound, int) for bound in self.range):
            values = rng.integers(int(self.range[0]), int(self.range[1]) + 1, shape)
        else:
            values = rng.uniform(*self.range, shape)
        return values.astype(self.dtype)


def draw_like(
    name: str, example_range: ExampleRange | None, example: Tensor | None, network: nn.Module | None = None
) -> Draw:
    """The random values for an input.

    Args:
        name: the input.
        example_range: (low, high), or a function, as for `export_onnx`. None: the range of the example. If
            all its values are equal, or there is none, the values are standard normal, and integers the
            indices of the network's first table of embeddings; an input after x keeps its only value,
            unless that is 0.
        example, network: an example of the input and the network, or None.
    """
    kind = "f" if example is None else example.numpy().dtype.kind
    dtype = {"f": np.float32, "b": np.bool_}.get(kind, np.float32 if name == "x" else np.int64)
    if callable(example_range):
        return Draw(None, example_range, dtype)
    if example_range is not None:
        try:
            bounds = tuple(map(float if kind == "f" else int, example_range))
            if not are_bounds(bounds):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                "example_range must be (low, high) with low <= high, or a function of a shape and a "
                f"generator, got {example_range!r}"
            ) from None
        return Draw(bounds, dtype=dtype)  # type: ignore[arg-type]
    if kind == "b":
        return Draw((0, 1), dtype=dtype)
    if example is None or not example.numel():
        return Draw(dtype=dtype)
    low, high = example.min().item(), example.max().item()
    if low == high and kind != "f" and (low == 0 or name == "x"):
        tables = [m for m in network.modules() if isinstance(m, nn.Embedding)] if network else []
        low, high = (0, tables[0].num_embeddings - 1) if tables else (0, max(1, int(high)))
    elif not np.isfinite([low, high]).all() or (low == high and (low == 0 or name == "x")):
        return Draw(dtype=dtype)
    return Draw((low, high), dtype=dtype)


@dataclass
class Inputs:
    """What the file of a network takes.

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
        shapes: for each grid to verify on, the shapes of all outputs for a batch of 2; the main grid first.
        small: small grids that are verified, too.
    """

    channels: int
    channels_last: bool
    padded: bool
    further: dict[str, Tensor]
    grid_inputs: Mapping[str, int]
    multiple_of: Grid
    draws: dict[str, Draw]
    grid: Extents
    example: Array | None
    min_grid: Grid
    shapes: dict[Grid, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    small: list[Grid] = field(default_factory=list)

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.grid)

    @property
    def main(self) -> Grid:
        """The main grid to verify on: the grid to export for, or one of moderate size."""
        return next(iter(self.shapes))

    @property
    def example_grid(self) -> Grid | None:
        """The grid of the example."""
        if self.example is None:
            return None
        return grid_of(self.example, self.channels_last)

    @property
    def free(self) -> list[int]:
        """The grid axes whose extents are free."""
        return [d for d, extent in enumerate(self.grid) if extent is None]

    @property
    def first_axes(self) -> dict[str, int]:
        """The first grid axis of each input that has a grid."""
        return {"x": 1 if self.channels_last else 2, **self.grid_inputs}

    def like(self, units: Sequence[int]) -> Grid:
        """A grid of so many multiples along free axes, at least the least extents."""
        axes = zip(units, self.multiple_of, self.min_grid, self.grid, strict=True)
        return tuple(fixed or max(unit, -(-least // m)) * m for unit, m, least, fixed in axes)

    def arrays(self, grid: Grid, batch: int, seed: int = 0) -> dict[str, Array]:
        """Random inputs on a grid, but `sizes`; x comes first."""
        shapes = {"x": (*grid, self.channels) if self.channels_last else (self.channels, *grid)}
        for name, example in self.further.items():
            shapes[name] = tuple(example.shape[1:])
            if before := self.grid_inputs.get(name):
                shapes[name] = (*example.shape[1:before], *grid, *example.shape[before + self.ndim :])
        rng = np.random.default_rng(seed)
        return {name: self.draws[name]((batch, *shape), rng) for name, shape in shapes.items()}

    def tensors(self, grid: Grid) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on a grid, by name, in the order of the file."""
        x, *further = (torch.from_numpy(value) for value in self.arrays(grid, 2).values())
        sizes = {"sizes": torch.tensor([grid] * 2, device="cpu")} if self.padded else {}
        return {"x": x, **sizes, **dict(zip(self.further, further, strict=True))}

    def grids(self) -> list[Grid]:
        """The grids to verify on, main grid first; of a network that takes padded samples also smaller
        ones. A later verification draws the same."""
        grids = list(self.shapes)
        if self.padded:
            units = [extent // m for extent, m in zip(self.main, self.multiple_of, strict=True)]
            drawn = np.random.default_rng(0).integers(1, np.add(units, 1), (3, self.ndim)).tolist()
            grids += [tuple(np.multiply(unit, self.multiple_of).tolist()) for unit in drawn]
            grids.append(self.multiple_of)
        return list(dict.fromkeys(grids))

    def cases(self, user: Mapping[str, Array]) -> Iterator[Case]:
        """Random inputs on the grids and the small ones, then x of the user, by name."""
        yield from random_cases(self.arrays, self.grids())
        for grid in self.small:
            yield from random_cases(self.arrays, [grid], [0], "small grids")
        for name, x in user.items():
            further = self.arrays(grid_of(x, self.channels_last), len(x))
            for key, example in self.further.items():
                if key not in self.grid_inputs:
                    further[key] = example.numpy()[np.arange(len(x)) % len(example)]
            yield Case(name, name, {**further, "x": x}, (len(x),))


def random_cases(
    arrays: Callable[[Grid, int, int], dict[str, Array]],
    grids: Sequence[Grid],
    seeds: Sequence[int] = (0, 1),
    group: str = "",
) -> Iterator[Case]:
    """Random inputs in batches of 1 and 3 on each grid, for each seed."""
    for grid in grids:
        size = format_size(grid)
        for seed in seeds:
            yield Case(f"{size}, seed {seed}", group or size, arrays(grid, 4, seed), (1, 3))


def read_inputs(
    module: nn.Module,
    example_inputs: Examples | None = None,
    *,
    grid: Extents | None = None,
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
    """The network and its inputs, from the arguments of `export_onnx`, which documents them.

    Args:
        any_size: extents are free, but for those that `grid` fixes.

    Raises:
        InputError: arguments are missing or contradict each other.
    """
    name, layer = type(module).__name__, next(mdlstm_layers(module), None)
    x, further = _read_examples(module, example_inputs, extra_inputs or {})
    padded = further.pop("sizes", None) is not None or padded
    names = [*(["sizes"] if padded else []), *further]
    _check_names(module, names)
    says_channels = channels is not None or channels_last is not None
    channel_axis = x is None or layer is None or says_channels or x.dim() != layer.ndim + 1
    if channels_last is None:
        found = find_layout(module, x.shape if x is not None and channel_axis else None)
        if found is None and x is not None:
            raise InputError(
                f"{name} has no MDLSTM layer that tells which axis of x holds the channels; give "
                "channels_last=True for (N, *grid, C), or channels_last=False for (N, C, *grid)"
            )
        channels_last = found is not False
    network = Network(
        module,
        names,
        output_names,
        integer=x is not None and not x.is_floating_point(),
        channel_axis=channel_axis,
        channels_last=channels_last,
    )
    example_grid = None
    if x is not None:
        x = x.float() if channel_axis else x.float().unsqueeze(-1 if channels_last else 1)
        example_grid, features = grid_of(x, channels_last), x.shape[-1 if channels_last else 1]
        fits = grid is None or len(grid) == len(example_grid)
        fits = fits and all(a in (None, b) for a, b in zip(grid or (), example_grid, strict=False))
        if not example_grid or not fits or channels not in (None, features):
            raise InputError(
                f"example_inputs must begin with x, a batch (N, *grid, C) or (N, C, *grid), that fits grid="
                f"{grid} and channels={channels}, got shape {tuple(x.shape)}"
            )
        channels = features
    elif channels is None:
        if layer is None:
            raise InputError(f"{name} has no MDLSTM layer that tells the channels of x; give channels=...")
        channels = layer.input_size
    extents_of = grid or example_grid
    if any_size:
        ndim = len(extents_of or (layer.ndim if layer else 2) * (1,))
        extents_of = grid if grid and None in grid else (None,) * ndim
    if not extents_of or (not any_size and None in extents_of) or any(e == 0 for e in extents_of):
        raise InputError(
            f"form 'unrolled' needs a grid, such as grid=(8, 8) or an example, got grid={grid}; "
            'form="scan" (--form scan) takes free extents'
        )
    ndim = len(extents_of)
    multiples = (1,) * ndim if multiple_of is None else _per_axis("multiple_of", multiple_of, ndim)
    if any(e and e % m for e, m in zip(extents_of, multiples, strict=True)):
        raise InputError(
            f"grid {format_size(extents_of)} is not a multiple of {format_size(multiples)}, which "
            "multiple_of=... (--multiple-of) asks for; change one of them"
        )
    draws = {"x": draw_like("x", example_range, None if x is None else x.to(_kind(network)), module)}
    return network, Inputs(
        channels=channels,
        channels_last=channels_last,
        padded=padded,
        further=further,
        grid_inputs=_first_grid_axes(grid_inputs, further, example_grid or extents_of, channels_last),
        multiple_of=multiples,
        draws={**draws, **{k: draw_like(k, None, example) for k, example in further.items()}},
        grid=extents_of,
        example=None if x is None else x.numpy(),
        min_grid=(1,) * ndim if min_grid is None else _per_axis("min_grid", min_grid, ndim),
    )


def _per_axis(name: str, value: int | Sequence[int], ndim: int) -> Grid:
    """A number for each axis."""
    numbers = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(numbers) != ndim or min(numbers) < 1:
        raise InputError(f"{name} must be one or {ndim} integers of at least 1, got {value}")
    return numbers


def _kind(network: Network) -> torch.dtype:
    return torch.int64 if network.integer else torch.float32


def _read_examples(
    module: nn.Module, example_inputs: Examples | None, extra_inputs: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The example x, or None, and the further examples by name, on the CPU; floats as float32, integers as
    int64."""
    examples = (
        [example_inputs]
        if example_inputs is None or isinstance(example_inputs, Tensor)
        else [*example_inputs]
    )
    accepted = [p.name for p in parameters_of(module).values() if p.kind.value in (0, 1)]
    if not examples or len(examples) > max(len(accepted), 1):
        raise InputError(
            f"example_inputs holds {counted(len(examples), 'input')}, but {type(module).__name__}.forward "
            f"takes {', '.join(accepted) or 'one'} by position; give others as extra_inputs=..."
        )
    further = {k: value for k, value in zip(accepted[1:], examples[1:], strict=False) if value is not None}
    if twice := sorted(further.keys() & extra_inputs.keys()):
        raise InputError(f"{', '.join(twice)} is in both example_inputs and extra_inputs; give it once")

    def read(name: str, value: Tensor) -> Tensor:
        if value.is_complex() or value.is_meta or value.dim() == 0 or len(value) == 0:
            got = f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
            raise InputError(f"the example '{name}' must hold real numbers (N, …), got {got}")
        value = value.detach().cpu()
        if value.dtype is torch.bool and name != "x":
            return value
        return value.float() if value.is_floating_point() else value.long()

    x = None if examples[0] is None else read("x", examples[0])
    return x, {name: read(name, value) for name, value in {**further, **extra_inputs}.items()}


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    """Check that forward takes the inputs after x, and needs no others."""
    network, parameters = type(module).__name__, parameters_of(module).values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    accepted = [p.name for p in named[1:]]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in names:
        if name == "x" or (name not in accepted and not takes_any):
            raise InputError(
                f"{network}.forward takes no input '{name}' after x, but {', '.join(accepted) or 'none'}; "
                f"change {'padded=True (--padded)' if name == 'sizes' else 'extra_inputs=...'}"
            )
    if missing := [p.name for p in named[1:] if p.default is p.empty and p.name not in names]:
        advice = "padded=True" if missing == ["sizes"] else "them as example_inputs=(x, …)"
        raise InputError(f"{network}.forward also needs {', '.join(missing)}; give {advice}")


def _first_grid_axes(
    names: Sequence[str], further: Mapping[str, Tensor], grid: Extents, channels_last: bool
) -> dict[str, int]:
    """The first grid axis of each input that has the grid of x: where its example has this grid, and where
    x has it if both axes would do."""
    axes = {}
    for name in names:
        shape = tuple(further[name].shape) if name in further else ()
        starts: tuple[int, ...] = (1, 2) if channels_last else (2, 1)
        starts = (1,) if len(shape) == len(grid) + 1 else starts
        fitting = [
            k
            for k in starts
            if len(grid) + 1 <= len(shape) <= len(grid) + 2
            and all(e in (None, n) for e, n in zip(grid, shape[k:], strict=False))
        ]
        if not fitting:
            raise InputError(
                f"grid_inputs must name further inputs with the grid axes of x, got '{name}' of shape "
                f"{shape}; the further inputs are {', '.join(further) or 'none'}"
            )
        axes[name] = fitting[0]
    return axes


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
    found: dict[Grid, Outputs | str] = {}

    def takes(grid: Sequence[int]) -> bool:
        grid = tuple(grid)
        if grid not in found:
            found[grid] = _outputs(exact, next(random_cases(inputs.arrays, [grid])).inputs)
        return not isinstance(found[grid], str)

    trials = [inputs.like([k * unit for unit in _units(inputs, MAIN)]) for k in ENLARGEMENTS]
    main = next(filter(takes, trials), None) or _from_example(inputs, takes, is_one)
    if main is None:
        raise _refusal(inputs, trials[0], str(found[trials[0]]), takes)
    given = inputs.min_grid
    for axis in inputs.free:
        least = _least(takes, main, axis, inputs.multiple_of[axis])
        least = max(least, given[axis])
        inputs.min_grid = (*inputs.min_grid[:axis], least, *inputs.min_grid[axis + 1 :])
    most = min(SMALL - 1, int(MAX_POSITIONS ** (1 / inputs.ndim)))
    for k in range(most, 0, -1) if inputs.free else ():
        grid = inputs.like([-(-k // m) for m in inputs.multiple_of])
        if not takes(grid):  # as of a deviation over the grid, which one position does not have
            inputs.min_grid = tuple(np.add(grid, inputs.multiple_of).tolist())
            break
        inputs.small = list(dict.fromkeys([grid, *inputs.small]))
    ndim = inputs.ndim
    longer, row = (5, 8, 3, 2, *(1,) * ndim)[:ndim], (*(1,) * (ndim - 1), 7)
    odd = [inputs.like(units) for units in (longer, longer[::-1], row, row[::-1], (1,) * ndim)]
    for grid in [main, *filter(takes, odd if inputs.free else [])]:
        outputs: Any = found[grid]
        inputs.shapes[grid] = {name: y.shape for name, y in outputs.items()}
    if same := sorted({"x", *exact.names} & inputs.shapes[main].keys()):
        raise InputError(f"{exact.name} has an input and an output called {same[0]}; give output_names=...")
    inputs.small = [grid for grid in inputs.small if grid not in inputs.shapes]
    return {f"{format_size(grid)}, seed 0": y for grid, y in found.items() if not isinstance(y, str)}


def _units(inputs: Inputs, extents: Sequence[int]) -> Grid:
    """Extents for all axes, in multiples; shorter ones for many axes."""
    longer, part = (*extents, *(8,) * inputs.ndim)[: inputs.ndim], max(1, inputs.ndim - 1)
    return tuple(-(-e // (part * m)) for e, m in zip(longer, inputs.multiple_of, strict=True))


def _outputs(exact: Network, arrays: dict[str, Array]) -> Outputs | str:
    """The outputs for a batch, or why the network does not take it."""
    try:
        outputs = exact.run(arrays)
    except OutputError:
        raise
    except InputError as error:
        return str(error)
    for name, y in outputs.items():
        if not y.ndim or len(y) != len(arrays["x"]):
            raise OutputError(
                f"{exact.name} returns '{name}' of shape {y.shape} for {len(arrays['x'])} samples"
            )
        if not y.size or (y.dtype.kind == "f" and not np.isfinite(y).all()):
            value = "NaN" if y.size and np.isnan(y).any() else "infinity" if y.size else "nothing"
            return f"{exact.name} returns {value} as '{name}'"
    return outputs


def _least(takes: Callable[[Sequence[int]], bool], grid: Grid, axis: int, multiple: int) -> int:
    """The least extent along an axis of a grid, from which on the network takes it."""

    def fits(extent: int) -> bool:
        return takes((*grid[:axis], extent, *grid[axis + 1 :]))

    least = grid[axis]
    if least > multiple and fits(multiple):  # as of most networks
        return multiple
    while least > multiple and fits(least - multiple):
        least -= multiple
    return least


def _from_example(inputs: Inputs, takes: Callable[[Sequence[int]], bool], is_one: bool) -> Grid | None:
    """For a network that takes no grid of ours: that of the example, with the extents that it fixes; None
    if it does not take that, or multiples alone, or no free extent is left."""
    grid, extents = inputs.example_grid, list(inputs.grid)
    if grid is None or not takes(grid):
        return None
    main = list(grid)
    for d in inputs.free:
        m = inputs.multiple_of[d]
        if not takes((*grid[:d], 3 * grid[d], *grid[d + 1 :])):
            extents[d] = grid[d]
        elif takes((*grid[:d], grid[d] + m, *grid[d + 1 :])):
            main[d] = max(grid[d], 2 * m)
        else:
            return None
    if (None not in extents and not is_one) or not takes(main):
        return None
    inputs.grid = tuple(extents)
    return tuple(main)


def _refusal(inputs: Inputs, grid: Grid, reason: str, takes: Callable[[Sequence[int]], bool]) -> InputError:
    """The error for a network that does not take a grid."""
    even = (
        inputs.like([k * u for u in (1, 2, *(1,) * inputs.ndim)[: inputs.ndim]]) for k in (2, 4, 8, 16, 32)
    )
    if "index out of range" in reason:
        advice = "x holds indices of a table, so give example_range=(0, entries - 1)"
    elif "NaN" in reason or "infinity" in reason:
        advice = "give example_range=(low, high), the values that it is made for"
    elif inputs.free and inputs.example_grid and takes(inputs.example_grid):
        own = format_size(inputs.example_grid)
        advice = (
            f"it takes {own} only; name inputs with that grid as grid_inputs=..., or export it for one grid"
        )
    else:
        advice = (
            "give example_inputs=(x, …), or other grid=... as (48, None), channels=... or channels_last=..."
        )
    if inputs.free and (multiple := next(filter(takes, even), None)):
        advice = f"it takes {format_size(multiple)}, so give multiple_of={multiple[0]} (--multiple-of)"
    return InputError(f"{reason}, on the grid {format_size(grid)}; {advice}")


def large_case(inputs: Inputs, exact: Network) -> tuple[Case, Outputs] | None:
    """Random x on 64 or, if that is quick and small, 256 positions along free axes, with its outputs:
    states that grow from one wavefront to the next do not show on small grids. None if the network does not
    take it."""
    found, before = None, 0
    for extent in (SMALL, 64, 256):
        grid = inputs.like([extent // m for m in inputs.multiple_of])
        growth = exact.largest / before if before else 1.0
        if prod(grid) > 4 * MAX_POSITIONS or (before and exact.largest * growth > MAX_TENSOR):
            break
        before, start = exact.largest, time.perf_counter()
        case = next(random_cases(inputs.arrays, [grid]))
        case = case._replace(inputs={name: value[:1] for name, value in case.inputs.items()}, parts=(1,))
        outputs = _outputs(exact, case.inputs)
        if not isinstance(outputs, str) and extent > SMALL:
            found = case, outputs
        if time.perf_counter() - start > QUICK:
            break
    return found
