"""The network to export, and the inputs that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.arguments import Grid, InputArguments, layout_of_example
from mdlstm_tk.export.copies import eval_copy
from mdlstm_tk.export.outputs import named_outputs
from mdlstm_tk.export.verification.inputs import odd_grids
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.metadata import layout_of

MAX_POSITIONS = 2**14  # of a grid to verify on; the float64 reference takes seconds for so many
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of inputs, by networks
ENLARGEMENTS = (1, 3, 7, 15)  # odd, so that a network with strides does not accept them by chance

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ExportSpec:
    """A network and the inputs that it is exported with.

    Attributes:
        module: a copy of the network in eval mode, on the CPU, in float32.
        grid: extents to export for; None stands for any.
        ndim: D, the number of grid axes.
        channels: C.
        channels_last: whether x is (N, *grid, C); otherwise it is (N, C, *grid).
        padded: whether `sizes` (N, D) is an input.
        extra_inputs: an example batch of each further input, by name.
        multiple_of: for each axis, what its extent must be a multiple of.
        output_names: names of the outputs, in order.
        shapes: for each grid to verify on, the shapes of all outputs for a batch of 2; the main grid comes
            first.
    """

    module: nn.Module
    grid: Grid | None
    ndim: int
    channels: int
    channels_last: bool
    padded: bool
    extra_inputs: dict[str, Tensor]
    multiple_of: Grid
    output_names: tuple[str, ...] = ()
    shapes: tuple[tuple[Grid, tuple[Shape, ...]], ...] = ()

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        arguments: InputArguments,
        any_grid: bool = False,
        output_names: Sequence[str] | None = None,
    ) -> ExportSpec:
        """Complete the arguments of `export_onnx` from the network itself, and run it.

        Args:
            module: the network; it is copied.
            arguments: the arguments.
            any_grid: export for any grid, even if there is an example x.
            output_names: names of the outputs; None: see `named_outputs`.

        Raises:
            InputError: the network does not accept such inputs, or their layout is unknown, or it returns
                something other than tensors (N, …).
        """
        network = eval_copy(module).float()
        refused: list[tuple[ExportSpec, _RefusedError]] = []
        for grid, channels, channels_last in _layouts(network, arguments):
            layer = next(_mdlstm_layers(network), None)
            ndim = len(grid) if grid else layer.ndim if layer else 2
            spec = cls(
                module=network,
                grid=None if any_grid else grid,
                ndim=ndim,
                channels=channels,
                channels_last=channels_last,
                padded=arguments.padded,
                extra_inputs=arguments.extra_inputs,
                multiple_of=arguments.multiples(ndim),
            )
            try:
                return spec._tried(output_names)
            except _RefusedError as error:
                refused.append((spec, error))
        likeliest, reason = refused[0]
        raise InputError(likeliest._refusal(reason)) from reason

    @property
    def example_grid(self) -> Grid:
        """The main grid to verify on: the grid to export for, or a small one."""
        return self.shapes[0][0]

    @property
    def grid_axes(self) -> range:
        """The axes of x that are grid axes."""
        return range(1, self.ndim + 1) if self.channels_last else range(2, self.ndim + 2)

    def x_shape(self, grid: Grid, batch: int) -> Shape:
        """The shape of x on a grid."""
        return (batch, *grid, self.channels) if self.channels_last else (batch, self.channels, *grid)

    def extra_batch(self, batch: int) -> dict[str, Tensor]:
        """The extra inputs for a batch: the samples of their examples, repeated as often as needed."""
        return {name: value[torch.arange(batch) % len(value)] for name, value in self.extra_inputs.items()}

    def examples(self, grid: Grid) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on a grid, by name; x comes first."""
        examples = {"x": torch.zeros(self.x_shape(grid, 2))}
        if self.padded:
            examples["sizes"] = torch.tensor([grid] * 2)
        return examples | self.extra_batch(2)

    def capture_grids(self) -> list[Grid]:
        """The grids to capture the network with; the first one that torch can trace is right.

        torch takes an extent of 1 for a constant, in the middle of a network as well. A network for any
        grid is therefore traced, which takes no computation, with a grid so large that strides and
        convolutions without padding leave more than 1.
        """
        if self.grid:
            return [self.grid]
        return [tuple(extent * factor for extent in self.example_grid) for factor in (8, 1)]

    def windows(self) -> list[Grid | None]:
        """For each output, the extents of x that one of its positions stands for; None if the output has no
        grid.

        The product of the layers' windows is tried first, because several windows may give the same
        extents.
        """
        return [self._window(k) for k in range(len(self.output_names))]

    def metadata(self, form: str, dtype: str, fields: Mapping[str, Any]) -> Metadata:
        """The metadata of the exported file; `fields` are the ones that the network does not tell.

        Raises:
            InputError: the file could not be read again, such as for the name of a class.
        """
        window, *further_windows = self.windows()
        y_shape = self.shapes[0][1][0]
        feature_axis = 1 if not self.channels_last and len(y_shape) == self.ndim + 2 else -1
        metadata = Metadata(
            version=__version__,
            grid=self.grid,
            form=form,
            layout=layout_of(self.ndim, self.channels_last),
            channels=self.channels,
            outputs=y_shape[feature_axis] if len(y_shape) > 1 else 1,
            inputs=tuple(self.examples(self.example_grid)),
            window=window,
            output_names=self.output_names,
            further_windows=tuple(further_windows),
            multiple_of=self.multiple_of if max(self.multiple_of) > 1 else None,
            dtype=dtype,
            **fields,
        )
        metadata.check()
        return metadata

    def _window(self, output: int) -> Grid | None:
        layers = [layer for layer in _mdlstm_layers(self.module) if layer.ndim == self.ndim]
        window = []
        for d, axis in enumerate(self.grid_axes):
            extents = []
            for grid, shapes in self.shapes:
                if len(shapes[output]) != self.ndim + 2:
                    return None
                extents.append((grid[d], shapes[output][axis]))
            candidates = (prod(layer.window[d] for layer in layers), *range(1, self.example_grid[d] + 1))
            fitting = [size for size in candidates if all(-(-x // size) == y for x, y in extents)]
            if not fitting:
                return None
            window.append(fitting[0])
        return tuple(window)

    def _tried(self, output_names: Sequence[str] | None) -> ExportSpec:
        """The spec with the names of the outputs, and with their shapes for the grids to verify on.

        Raises:
            _RefusedError: the network does not run on the main grid.
            InputError: the network returns something other than tensors (N, …).
        """
        main_grids = [self.grid] if self.grid else list(self._main_grids())
        for k, grid in enumerate(main_grids):
            try:
                outputs = self._run(grid, output_names)
            except _RefusedError:
                if k + 1 < len(main_grids):
                    continue
                raise
            break
        shapes = {grid: _checked_shapes(outputs, type(self.module).__name__)}
        if not self.grid:
            odd = [
                tuple(extent * m for extent, m in zip(odd_grid, self.multiple_of, strict=True))
                for odd_grid in odd_grids(self.ndim)
            ]
            # On small grids alone, a convolution without padding could be taken for a window.
            for other in (tuple(3 * extent for extent in grid), *odd):
                if prod(other) <= MAX_POSITIONS and self._accepts(other):
                    shapes[other] = tuple(tuple(y.shape) for y in self._run(other, output_names).values())
        return replace(self, output_names=tuple(outputs), shapes=tuple(shapes.items()))

    def _main_grids(self) -> Iterator[Grid]:
        """Grids for a network that takes any, from small to large."""
        base, least = (5, 7, *(3,) * self.ndim), (2, 3, *(1,) * self.ndim)
        for factor in ENLARGEMENTS:
            yield tuple(
                max(-(-factor * b // m), unit) * m
                for b, unit, m in zip(base, least, self.multiple_of, strict=False)
            )

    def _run(self, grid: Grid, output_names: Sequence[str] | None) -> dict[str, Tensor]:
        """The outputs on a grid by name."""
        result = _run_network(self.module, self.examples(grid))
        return named_outputs(result, type(self.module).__name__, output_names)

    def _accepts(self, grid: Grid) -> bool:
        try:
            _run_network(self.module, self.examples(grid))
        except _RefusedError:
            return False
        return True

    def _refusal(self, error: Exception) -> str:
        """What to tell the user if the network does not run."""
        name = type(self.module).__name__
        grid = self.grid or list(self._main_grids())[-1]  # the error is that of the last one
        shape = self.x_shape(grid, 2)
        for factor in () if self.grid else (2, 4, 8, 16, 32):
            multiple = tuple(factor * unit for unit in (2, 3, *(1,) * self.ndim)[: self.ndim])
            if self._accepts(multiple):
                return (
                    f"{name} accepts the grid {format_size(multiple)} but not {format_size(grid)} "
                    f"({error}); if its strides need such extents, give multiple_of={factor}"
                )
        return (
            f"{name} does not accept the grid {format_size(grid)} with {self.channels} channels, an x of "
            f"shape {shape}: {error}; give example_inputs=(x, …), or other values of grid=, channels= and "
            "channels_last="
        )


class _RefusedError(Exception):
    """A network raised an exception for its inputs; the message is the first line of it."""


def _layouts(network: nn.Module, arguments: InputArguments) -> list[tuple[Grid | None, int, bool]]:
    """The possible grids, channels and layouts (is it channels-last?) of x, the likeliest first."""
    name = type(network).__name__
    layer = next(_mdlstm_layers(network), None)
    x = arguments.x
    if x is not None:

        def accepts(other_x: Tensor, channels_last: bool) -> bool:
            inputs = {"x": other_x}
            if arguments.padded:
                grid = other_x.shape[1:-1] if channels_last else other_x.shape[2:]
                inputs["sizes"] = torch.tensor([grid] * len(other_x))
            batch = torch.arange(len(other_x))
            extra = {key: value[batch % len(value)] for key, value in arguments.extra_inputs.items()}
            try:
                _run_network(network, inputs | extra)
            except _RefusedError:
                return False
            return True

        if layout_of_example(arguments, network, accepts):
            return [(tuple(x.shape[1:-1]), x.shape[-1], True)]
        return [(tuple(x.shape[2:]), x.shape[1], False)]
    channels = arguments.channels
    if channels is None:
        if layer is None:
            raise InputError(
                f"{name} has no MDLSTM layer to take the channels of x from; give channels=, or "
                "example_inputs=(x, …)"
            )
        channels = layer.input_size
    likely = layer is None or layer.channels_last
    layouts = [likely, not likely] if arguments.channels_last is None else [arguments.channels_last]
    return [(arguments.grid, channels, channels_last) for channels_last in layouts]


def _mdlstm_layers(network: nn.Module) -> Iterator[MDLSTM]:
    return (module for module in network.modules() if isinstance(module, MDLSTM))


@torch.no_grad()
def _run_network(network: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """What the network returns for x, by position, and further inputs, by name."""
    x, *further = inputs.values()
    try:
        return network(x, **dict(zip(list(inputs)[1:], further, strict=True)))
    except REFUSALS as error:
        text = str(error).strip()
        raise _RefusedError(text.splitlines()[0] if text else type(error).__name__) from error


def _checked_shapes(outputs: Mapping[str, Tensor], network: str) -> tuple[Shape, ...]:
    """The shapes of the outputs for a batch of 2."""
    for name, y in outputs.items():
        if y.dim() == 0 or len(y) != 2:
            raise InputError(
                f"{network} returns '{name}' of shape {tuple(y.shape)} for a batch of 2, expected (N, …)"
            )
    return tuple(tuple(y.shape) for y in outputs.values())
