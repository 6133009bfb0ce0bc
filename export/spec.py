"""The network to export, and the inputs that it takes: the arguments of `export_onnx`, completed by the "
"network."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.modules.conv import _ConvNd

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.verification.cases import Array, Draw, ExampleRange, odd_grids, sampler
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.metadata import Dtype, Form, layout_of

Grid = tuple[int, ...]
Extents = tuple[int | None, ...]
Shape = tuple[int, ...]
Examples = Tensor | Sequence[Tensor | None]

MAX_POSITIONS = 2**14  # of a grid to verify on; the float64 reference takes seconds for so many
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of inputs, by networks
ENLARGEMENTS = (1, 3, 7, 15)  # odd, so that a network with strides does not accept them by chance


class Interface(nn.Module):
    """A network with the inputs and outputs of its file: floats are float32, and x has an axis of channels.

    Args:
        network: the network; it is copied to the CPU, in eval mode and without the wrappers of
            `torch.compile`.
        names: the inputs after x of a call by position.
        output_names: as for `named_outputs`.
        integer: x holds integers.
        channel_axis: the network's x has an axis of channels.
        channels_last: it is the last axis.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str] = (),
        output_names: Sequence[str] | None = None,
        *,
        integer: bool = False,
        channel_axis: bool = True,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.module, self.names, self.output_names = eval_copy(network), names, output_names
        self.integer, self.channel_axis, self.channels_last = integer, channel_axis, channels_last

    @property
    def name(self) -> str:
        """The name of the network's class."""
        return type(self.module).__name__

    @property
    def dtype(self) -> torch.dtype:
        """The type that floating-point inputs are cast to: that of the first parameter."""
        parameter = next(self.module.parameters(), None)
        return torch.float32 if parameter is None else parameter.dtype

    def call(self, x: Tensor, **further: Tensor) -> dict[str, Tensor]:
        """The outputs by name, in the precision of the network."""

        def cast(value: Tensor) -> Tensor:
            return value.to(self.dtype) if value.is_floating_point() else value

        x = x.long() if self.integer else cast(x)
        if not self.channel_axis:
            x = x.squeeze(-1 if self.channels_last else 1)
        result = self.module(x, **{name: cast(value) for name, value in further.items()})
        return named_outputs(result, self.name, self.output_names)

    def forward(self, x: Tensor, *further: Tensor) -> tuple[Tensor, ...]:
        """The outputs, floats as float32."""
        outputs = self.call(x, **dict(zip(self.names, further, strict=True)))
        return tuple(y.float() if y.is_floating_point() else y for y in outputs.values())

    def in_float64(self) -> Interface:
        """A copy in float64 whose MDLSTM layers are computed position by position."""
        exact = copy.deepcopy(self).double()
        for layer in mdlstm_layers(exact):
            layer.backend = "reference"
        return exact

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for arrays: x without padding, and further inputs. A network that needs `sizes` gets
        the whole grid.

        Raises:
            InputError: the network raises an exception.
        """
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        parameter = inspect.signature(self.module.forward).parameters.get("sizes")
        if parameter is not None and parameter.default is parameter.empty and "sizes" not in inputs:
            shape = tensors["x"].shape
            grid = shape[1:-1] if self.channels_last else shape[2:]
            tensors["sizes"] = torch.tensor([tuple(grid)] * len(tensors["x"]))
        try:
            return {name: y.numpy() for name, y in self.call(**tensors).items()}
        except REFUSALS as error:
            raise InputError(f"{self.name} does not take {_shapes(inputs)}: {first_line(error)}") from error


@dataclass(frozen=True)
class ExportSpec:
    """A network and the inputs that it is exported with.

    Attributes:
        interface: a copy of the network in float32, with the inputs of the file.
        grid: extents to export for, None where they are free.
        channels: C.
        channels_last: x is (N, *grid, C); otherwise it is (N, C, *grid).
        padded: `sizes` (N, D) is an input.
        extra_inputs: an example batch of each further input, by name.
        grid_inputs: the names of those among them that have the grid of x.
        multiple_of: for each axis, the number that its extent must be a multiple of.
        draw: makes a random x of a shape.
        example: the example x, float32; None if there is none.
        shapes: for each grid to verify on, the shapes of all outputs for a batch of 2; the main grid comes
            first.
    """

    interface: Interface
    grid: Extents
    channels: int
    channels_last: bool
    padded: bool
    extra_inputs: dict[str, Tensor]
    grid_inputs: tuple[str, ...]
    multiple_of: Grid
    draw: Draw
    example: Tensor | None
    shapes: dict[Grid, dict[str, Shape]]

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.grid)

    @property
    def example_grid(self) -> Grid:
        """The main grid to verify on: the grid to export for, or a small one."""
        return next(iter(self.shapes))

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return tuple(self.shapes[self.example_grid])

    @property
    def grid_axes(self) -> range:
        """The axes of x that are grid axes."""
        return range(1, self.ndim + 1) if self.channels_last else range(2, self.ndim + 2)

    def free_axes(self) -> dict[str, dict[int, int]]:
        """For each input with the grid of x: its free axes, and the number that each is a multiple of."""
        free = [d for d, extent in enumerate(self.grid) if extent is None]
        first = {"x": self.grid_axes[0]}
        first |= {name: self._first_grid_axis(self.extra_inputs[name]) for name in self.grid_inputs}
        return {name: {axis + d: self.multiple_of[d] for d in free} for name, axis in first.items()}

    def inputs(self, grid: Grid, batch: int, seed: int = 0) -> dict[str, Array]:
        """Random inputs on a grid, but `sizes`; x comes first."""
        shape = (*grid, self.channels) if self.channels_last else (self.channels, *grid)
        x = self.draw((batch, *shape), np.random.default_rng(seed))
        return {"x": x, **self.extra_batch(batch, grid, seed)}

    def extra_batch(self, batch: int, grid: Grid, seed: int = 0) -> dict[str, Array]:
        """The further inputs: the samples of their examples, repeated as often as needed, or random numbers
        on the grid of x."""
        rng, inputs = np.random.default_rng(seed + 1), dict[str, Array]()
        for name, example in self.extra_inputs.items():
            if name in self.grid_inputs:
                before = self._first_grid_axis(example)
                extents = (*example.shape[1:before], *grid, *example.shape[before + self.ndim :])
                inputs[name] = sampler(name, None, example)((batch, *extents), rng)
            else:
                inputs[name] = example[torch.arange(batch) % len(example)].numpy()
        return inputs

    def _first_grid_axis(self, value: Tensor) -> int:
        """The first grid axis of an input that has the grid of x, with or without channels."""
        return 2 if not self.channels_last and value.dim() == self.ndim + 2 else 1

    def examples(self, grid: Grid) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on a grid, by name, in the order of the file."""
        x, *further = (torch.from_numpy(value) for value in self.inputs(grid, 2).values())
        sizes = {"sizes": torch.tensor([grid] * 2)} if self.padded else {}
        return {"x": x, **sizes, **dict(zip(self.extra_inputs, further, strict=True))}

    def capture_grids(self) -> list[Grid]:
        """The grids to capture the network with; the first one that torch can trace is right.

        torch takes an extent of 1 for a constant, in the middle of a network as well. Free extents are
        therefore traced, which takes no computation, so large that strides and convolutions without padding
        leave more than 1.
        """
        extents = list(zip(self.example_grid, self.grid, strict=True))
        return [tuple(e * (factor if free is None else 1) for e, free in extents) for factor in (8, 1)]

    def metadata(self, form: Form, dtype: Dtype, fields: Mapping[str, Any]) -> Metadata:
        """The metadata of the exported file; `fields` are the ones that the network does not tell.

        Raises:
            InputError: the file could not be read again, such as for the name of a class.
        """
        name, *further_names = self.output_names
        y_shape = self.shapes[self.example_grid][name]
        feature_axis = 1 if not self.channels_last and len(y_shape) == self.ndim + 2 else -1
        interface = self.interface
        metadata = Metadata(
            version=__version__,
            grid=None if set(self.grid) == {None} else self.grid,
            form=form,
            layout=layout_of(self.ndim, self.channels_last),
            channels=self.channels,
            outputs=y_shape[feature_axis] if len(y_shape) > 1 else 1,
            inputs=tuple(self.examples(self.example_grid)),
            window=self._window(name),
            output_names=self.output_names,
            further_windows=tuple(map(self._window, further_names)),
            multiple_of=self.multiple_of if max(self.multiple_of) > 1 else None,
            dtype=dtype,
            example_range=self.draw.range,
            integer=interface.integer,
            channel_axis=interface.channel_axis,
            **fields,
        )
        metadata.check()
        return metadata

    def _window(self, output: str) -> Grid | None:
        """The extents of x that one position of an output stands for; None if the output has no grid.

        The product of the layers' windows is tried first, because several windows may give the same
        extents.
        """
        layers = [layer for layer in mdlstm_layers(self.interface) if layer.ndim == self.ndim]
        window = []
        for d, axis in enumerate(self.grid_axes):
            shapes = [(grid[d], of_grid[output]) for grid, of_grid in self.shapes.items()]
            if any(len(shape) != self.ndim + 2 for _, shape in shapes):
                return None
            candidates = (prod(layer.window[d] for layer in layers), *range(1, self.example_grid[d] + 1))
            fitting = [size for size in candidates if all(-(-x // size) == y[axis] for x, y in shapes)]
            if not fitting:
                return None
            window.append(fitting[0])
        return tuple(window)


def read_spec(
    module: nn.Module,
    example_inputs: Examples | None = None,
    *,
    grid: Sequence[int | None] | None = None,
    any_size: bool = False,
    padded: bool = False,
    extra_inputs: Mapping[str, Tensor] | None = None,
    grid_inputs: Sequence[str] = (),
    multiple_of: int | Sequence[int] | None = None,
    channels: int | None = None,
    channels_last: bool | None = None,
    example_range: ExampleRange | None = None,
    output_names: Sequence[str] | None = None,
) -> ExportSpec:
    """Complete the arguments of `export_onnx`, which documents them, from the network, and run it.

    Args:
        any_size: extents are free, but for those that `grid` fixes.

    Raises:
        InputError: arguments are missing or contradict each other, or the network does not accept such
            inputs, or its weights hold NaN, or it returns something other than tensors (N, …).
    """
    name, network = type(module).__name__, eval_copy(module).float()
    _check_weights(network, name)
    x, further = _read_examples(module, example_inputs, extra_inputs or {})
    padded = padded or further.pop("sizes", None) is not None
    _check_names(module, [*(["sizes"] if padded else []), *further])
    layer = next(mdlstm_layers(network), None)
    says_channels = channels is not None or channels_last is not None
    arguments = {"grid": grid, "channels": channels, "channels_last": channels_last}
    channel_axis = x is None or layer is None or says_channels or x.dim() != layer.ndim + 1
    if x is not None and x.dim() < 2 + channel_axis:
        raise InputError(
            f"example_inputs must begin with x, a batch (N, *grid, C) or (N, C, *grid), got shape "
            f"{tuple(x.shape)}"
        )
    if channels_last is None:
        channels_last = _layout(network, x if channel_axis else None, name)
    if x is not None and not channel_axis:
        x = x.unsqueeze(-1 if channels_last else 1)
    if x is not None:
        _check_example(tuple(x.shape), channels_last, arguments)
        channels = x.shape[-1 if channels_last else 1]
    elif channels is None:
        if layer is None:
            raise InputError(
                f"{name} has no MDLSTM layer to take the channels of x from; give channels=..., or "
                "example_inputs=(x, …)"
            )
        channels = layer.input_size
    of_example = None if x is None else tuple(x.shape[1:-1] if channels_last else x.shape[2:])
    ndim = len(of_example or grid or (layer.ndim if layer else 2) * (1,))
    integer = x is not None and not x.is_floating_point()
    grids = _Grids(
        ExportSpec(
            interface=Interface(
                network,
                [*(["sizes"] if padded else []), *further],
                output_names,
                integer=integer,
                channel_axis=channel_axis,
                channels_last=channels_last,
            ),
            grid=_extents(grid, of_example, ndim, any_size),
            channels=channels,
            channels_last=channels_last,
            padded=padded,
            extra_inputs=further,
            grid_inputs=_check_grid_inputs(grid_inputs, further, ndim, padded),
            multiple_of=_multiples(multiple_of, ndim),
            draw=sampler("x", example_range, x, network),
            example=None if x is None else x.float(),
            shapes={},
        ),
        of_example or (tuple(e for e in grid if e) if grid and None not in grid else None),
        grid is not None,
    )
    return grids.completed()


@dataclass(frozen=True)
class _Grids:
    """Runs a network to find the grids that it takes, and the shapes of its outputs.

    Attributes:
        spec: without `shapes`.
        example: the grid of the example, or `grid` if all its extents are given.
        is_explicit: `grid` is given.
    """

    spec: ExportSpec
    example: Grid | None
    is_explicit: bool

    def completed(self) -> ExportSpec:
        """The specification with `shapes`, and the free extents that the network fixes."""
        spec = self.spec
        if any(extent and extent % m for extent, m in zip(spec.grid, spec.multiple_of, strict=True)):
            raise InputError(
                f"grid {format_size(spec.grid)} is not a multiple of {format_size(spec.multiple_of)}, "
                "which multiple_of=... asks for; change one of them"
            )
        if None not in spec.grid:
            grid = tuple(extent or 1 for extent in spec.grid)
            return replace(spec, shapes={grid: self._shapes(grid)})
        tried = list(self._small_grids())
        grid = next((grid for grid in tried if self._accepts(grid)), ())
        if not grid:
            spec, grid = self._around_the_example(tried[-1])
        shapes = {grid: self._shapes(grid)}
        multiples = [tuple(map(int, np.multiply(odd, spec.multiple_of))) for odd in odd_grids(spec.ndim)]
        # On small grids alone, a convolution without padding could be taken for a window.
        for other in (tuple(3 * extent for extent in grid), *multiples):
            other = self._fixed(other, spec.grid)
            if prod(other) <= MAX_POSITIONS and self._accepts(other):
                shapes[other] = self._shapes(other)
        return replace(spec, shapes=shapes)

    def _small_grids(self) -> Iterator[Grid]:
        """Grids for a network that takes any, from small to large."""
        base, lowest = (5, 7, *(3,) * self.spec.ndim), (2, 3, *(1,) * self.spec.ndim)
        for factor in ENLARGEMENTS:
            grid = tuple(
                max(-(-factor * b // m), unit) * m
                for b, unit, m in zip(base, lowest, self.spec.multiple_of, strict=False)
            )
            yield self._fixed(grid, self.spec.grid)

    def _around_the_example(self, refused: Grid) -> tuple[ExportSpec, Grid]:
        """For a network that takes no small grid: the extents that its forward fixes, and the main grid.

        Raises:
            InputError: it does not take the example either, or any multiple of a number only.
        """
        spec, example = self.spec, self.example
        if example is None or not self._accepts(example):
            raise self._refusal(refused)
        extents, grid = list(spec.grid), list(example)
        for d, m in enumerate(spec.multiple_of):
            next_grid, triple = (
                (*example[:d], extent, *example[d + 1 :]) for extent in (example[d] + m, 3 * example[d])
            )
            if not self._accepts(triple):
                extents[d] = example[d]
            elif self._accepts(next_grid):
                grid[d] = max(grid[d], 2 * m)  # torch takes an extent of 1 for a constant
            elif extents[d] is None:
                raise self._refusal(next_grid)
        main = tuple(grid)
        if not self._accepts(main):
            raise self._refusal(main)
        if None not in extents and not self.is_explicit:
            raise InputError(
                f"{spec.interface.name} takes the grid {format_size(main)} only, with these inputs; if "
                "further inputs have the grid of x, name them as grid_inputs=...; or export it for this "
                f"grid, with grid={main}"
            )
        return replace(spec, grid=tuple(extents)), main

    @staticmethod
    def _fixed(grid: Grid, extents: Extents) -> Grid:
        """A grid with the extents that are fixed."""
        return tuple(fixed or extent for extent, fixed in zip(grid, extents, strict=True))

    @torch.no_grad()
    def _run(self, grid: Grid) -> dict[str, Tensor]:
        return self.spec.interface.call(**self.spec.examples(grid))

    def _shapes(self, grid: Grid) -> dict[str, Shape]:
        """The shapes of the outputs for a batch of 2, by name."""
        try:
            outputs = self._run(grid)
        except REFUSALS:
            raise self._refusal(grid) from None
        for name, y in outputs.items():
            if y.dim() == 0 or len(y) != 2:
                raise InputError(
                    f"{self.spec.interface.name} returns '{name}' of shape {tuple(y.shape)} for a batch of "
                    "2, expected (N, …)"
                )
        return {name: tuple(y.shape) for name, y in outputs.items()}

    def _accepts(self, grid: Grid) -> bool:
        try:
            self._run(grid)
        except REFUSALS:
            return False
        return True

    def _refusal(self, grid: Grid) -> InputError:
        """The error for a grid that the network does not take."""
        spec, name, reason = self.spec, self.spec.interface.name, ""
        try:
            self._run(grid)
        except REFUSALS as error:
            reason = first_line(error)
        for factor in (2, 4, 8, 16, 32) if None in spec.grid else ():
            base = (2, 3, *(1,) * spec.ndim)[: spec.ndim]
            multiple = self._fixed(tuple(factor * unit for unit in base), spec.grid)
            if self._accepts(multiple):
                return InputError(
                    f"{name} accepts the grid {format_size(multiple)} but not {format_size(grid)} "
                    f"({reason}); if its strides need such extents, give multiple_of={factor}"
                )
        if "index out of range" in reason:
            advice = "x holds indices of a table, so give example_range=(0, entries - 1)"
        else:
            advice = "give example_inputs=(x, …), or other grid=..., channels=... and channels_last=..."
        if None in spec.grid:
            advice += "; if forward fixes an extent, name it, as in grid=(48, None)"
        shape = spec.examples(grid)["x"].shape
        return InputError(
            f"{name} does not accept the grid {format_size(grid)} with {spec.channels} channels, an x of "
            f"shape {tuple(shape)}: {reason}; {advice}"
        )


def eval_copy(module: nn.Module) -> nn.Module:
    """A copy of a network on the CPU in eval mode, without the wrappers of `torch.compile`: compiling it
    for each grid of a verification would take far longer than running it."""

    def unwrapped(module: nn.Module) -> nn.Module:
        wrapped: nn.Module = module._orig_mod if isinstance(module, OptimizedModule) else module
        return wrapped

    network = unwrapped(copy.deepcopy(module)).cpu().eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, OptimizedModule):
                setattr(parent, name, unwrapped(child))
    return network


def mdlstm_layers(network: nn.Module) -> Iterator[MDLSTM]:
    """The MDLSTM layers of a network, in order."""
    return (module for module in network.modules() if isinstance(module, MDLSTM))


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def named_outputs(result: Any, network: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors that a network returned, by name.

    Args:
        result: a tensor, or a tuple, list or dict of tensors.
        network: the name of the network for error messages.
        names: names of the outputs. None: the keys of a dict, the fields of a named tuple, else "y", "y1",
            "y2", …

    Raises:
        InputError: `result` is of another type, or `names` has another length, or two names are equal.
    """
    if isinstance(result, Mapping):
        result_names, values = [str(key) for key in result], list(result.values())
    else:
        values = list(result) if isinstance(result, tuple | list) else [result]
        numbered = [f"y{k}" if k else "y" for k in range(len(values))]
        result_names = list(getattr(result, "_fields", numbered))
    names = result_names if names is None else list(names)
    if len(names) != len(values):
        raise InputError(
            f"{network} returns {len(values)} outputs ({', '.join(result_names)}), but output_names has "
            f"{len(names)}: {', '.join(names)}"
        )
    if len(set(names)) < len(names) or not all(names):
        raise InputError(
            f"the outputs of {network} need different names, got {', '.join(map(repr, names))}; "
            "give them as output_names=..."
        )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor):
            raise InputError(
                f"{network} returns a {type(value).__name__} as output '{name}', expected a tensor, or a "
                "tuple, list or dict of tensors; wrap it in a module that returns that"
            )
    if not values:
        raise InputError(f"{network} returns no output, expected at least one tensor")
    return dict(zip(names, values, strict=True))


def _shapes(inputs: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} of shape {value.shape}" for name, value in inputs.items())


def _check_weights(network: nn.Module, name: str) -> None:
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise InputError(
                f"the weights of {name} hold NaN, first in {key}; export a network without NaN"
            )


def _read_examples(
    module: nn.Module, example_inputs: Examples | None, extra_inputs: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The example x, or None, and the further examples by name, as float32 or int64."""
    accepted = [
        p.name for p in inspect.signature(module.forward).parameters.values() if p.kind.value in (0, 1)
    ]
    examples = [example_inputs] if isinstance(example_inputs, Tensor) else example_inputs
    if examples is None:
        examples = [None]
    elif (
        not isinstance(examples, tuple | list)
        or not all(example is None or isinstance(example, Tensor) for example in examples)
        or not examples
        or examples[0] is None
    ):
        raise InputError(
            "example_inputs must be x, a tensor (N, *grid, C) or (N, C, *grid), or a tuple of tensors that "
            f"begins with it, got {type(example_inputs).__name__}; give inputs by name as extra_inputs=..."
        )
    if len(examples) > max(len(accepted), 1):
        raise InputError(
            f"example_inputs has {len(examples)} tensors, but {type(module).__name__}.forward takes "
            f"{', '.join(accepted)}; give inputs by name as extra_inputs=..."
        )
    further = {
        name: value for name, value in zip(accepted[1:], examples[1:], strict=False) if value is not None
    }
    if twice := sorted(further.keys() & extra_inputs.keys()):
        raise InputError(f"{', '.join(twice)} is in both example_inputs and extra_inputs; give it once")
    x = examples[0]
    return (
        None if x is None else _converted("x", x),
        {name: _converted(name, value) for name, value in {**further, **extra_inputs}.items()},
    )


def _converted(name: str, value: Tensor) -> Tensor:
    """An example as float32 or int64, the types that a session passes on."""
    value = value.detach().cpu()
    if value.is_floating_point():
        return value.float()
    if value.dtype == torch.bool or value.is_complex() or value.dim() == 0:
        raise InputError(
            f"the input '{name}' must be a batch (N, …) of floats or integers, "
            f"got {value.dtype} of shape {tuple(value.shape)}"
        )
    return value.long()


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    """Check that forward takes the inputs after x, and needs no others."""
    network, parameters = type(module).__name__, inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = [p.name for p in named]
    for name in names:
        if name not in accepted and not takes_any:
            raise InputError(
                f"{network}.forward has no argument '{name}', it has {', '.join(accepted)}; "
                f"change {'padded' if name == 'sizes' else 'extra_inputs'}=..."
            )
    if missing := [p.name for p in named[1:] if p.default is p.empty and p.name not in names]:
        advice = "give padded=True" if missing == ["sizes"] else "give them as example_inputs=(x, …)"
        raise InputError(f"{network}.forward also needs {', '.join(missing)}; {advice}")


def _layout(network: nn.Module, x: Tensor | None, name: str) -> bool:
    """True if x is channels-last: the layout of the first MDLSTM layer, unless the example has the channels
    of a convolution before that layer on the other axis."""
    kinds = (MDLSTM, _ConvNd)
    first = next((module for module in network.modules() if isinstance(module, kinds)), None)
    if isinstance(first, _ConvNd) and x is not None:
        fitting = [last for last in (True, False) if x.shape[-1 if last else 1] == first.in_channels]
        if len(fitting) == 1:
            return fitting[0]
    layer = next(mdlstm_layers(network), None)
    if layer is None and x is not None:
        raise InputError(
            f"{name} has no MDLSTM layer that tells which axis of x holds the channels; give "
            "channels_last=True for (N, *grid, C), or channels_last=False for (N, C, *grid)"
        )
    return layer is None or layer.channels_last


def _check_example(shape: Shape, channels_last: bool, arguments: Mapping[str, Any]) -> None:
    """Check that the example agrees with the arguments grid, channels and channels_last."""
    grid, channels = arguments["grid"], arguments["channels"]
    extents, features = (shape[1:-1], shape[-1]) if channels_last else (shape[2:], shape[1])
    wrong_grid = grid is not None and (
        len(grid) != len(extents)
        or any(given not in (None, extent) for given, extent in zip(grid, extents, strict=True))
    )
    if wrong_grid or channels not in (None, features):
        described = ", ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
        raise InputError(
            f"example_inputs has an x of shape {shape}, which contradicts {described}; "
            "leave those out, or change one of them"
        )


def _extents(
    grid: Sequence[int | None] | None, of_example: Grid | None, ndim: int, any_size: bool
) -> Extents:
    """The extents to export for."""
    if grid is not None and any(
        extent is not None and (not isinstance(extent, int) or extent < 1) for extent in grid
    ):
        raise InputError(f"grid must hold extents of at least 1, or None for a free one, got {tuple(grid)}")
    if any_size:
        return tuple(grid) if grid and None in grid else (None,) * ndim
    extents: Extents = tuple(grid or of_example or ())
    if not extents:
        raise InputError(
            "form 'unrolled' needs a grid; give grid=... or example_inputs=..., or form=\"scan\" for any "
            "size"
        )
    if None in extents:
        raise InputError(
            f"form 'unrolled' needs a fixed grid, got grid={extents}; give form=\"scan\" for free extents"
        )
    return extents


def _multiples(multiple_of: int | Sequence[int] | None, ndim: int) -> Grid:
    """`multiple_of` for each axis; 1 where any extent will do."""
    multiple = 1 if multiple_of is None else multiple_of
    multiples = (multiple,) * ndim if isinstance(multiple, int) else tuple(multiple)
    if len(multiples) != ndim or any(not isinstance(m, int) or m < 1 for m in multiples):
        raise InputError(
            f"multiple_of must be one number, or {ndim} numbers, of at least 1, got {multiple_of!r}"
        )
    return multiples


def _check_grid_inputs(
    names: Sequence[str], extra_inputs: Mapping[str, Tensor], ndim: int, padded: bool
) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in extra_inputs or extra_inputs[name].dim() not in (ndim + 1, ndim + 2):
            raise InputError(
                f"grid_inputs must name further inputs with the {ndim} grid axes of x, got '{name}'; the "
                f"further inputs are {', '.join(extra_inputs) or 'none'}"
            )
    if names and padded:
        raise InputError("padded=True is for x alone; leave out grid_inputs=...")
    return names


def float64_reference(module: nn.Module, output_names: Sequence[str] | None = None) -> Callable[..., Any]:
    """The ground truth: the network in float64, its MDLSTM layers computed position by position.

    Args:
        module: the network; it is copied.
        output_names: names of its outputs, if it has several; None: as for `export_onnx`.

    Returns:
        A function of x, and of further inputs by name, all NumPy arrays. Like a `Session`, it returns an
        array, or a dict of arrays if the network has several outputs.
    """
    exact = Interface(module, (), output_names).in_float64()

    def run(x: Array, **inputs: Array) -> Any:
        outputs = exact.run({"x": x, **inputs})
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    return run
