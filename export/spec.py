"""The network to export with its inputs, and the grids that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import Argument, InputError
from mdlstm_tk.export.interface import REFUSALS, Interface, OutputError, first_line, mdlstm_layers
from mdlstm_tk.export.verification.cases import MAX_POSITIONS, Draw, draw_inputs, odd_grids, sampler
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.choices import Dtype, Form
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.metadata import layout_of
from mdlstm_tk.runtime.shapes import Grid

Extents = tuple[int | None, ...]
Shape = tuple[int, ...]
Examples = Tensor | Sequence[Tensor | None]

PADDED_SAMPLES = 3  # of random sizes
ENLARGEMENTS = (1, 3, 7, 15)  # odd, so that a network with strides does not accept them by chance


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
    shapes: dict[Grid, dict[str, Shape]] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.grid)

    @property
    def example_grid(self) -> Grid:
        """The main grid to verify on: the grid to export for, or a small one."""
        return next(iter(self.shapes))

    @property
    def draws(self) -> dict[str, Draw]:
        """The random values of each input but `sizes`."""
        return {"x": self.draw, **{name: sampler(name, None, e) for name, e in self.extra_inputs.items()}}

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids to verify on; of a network that takes padded samples also smaller ones."""
        grids = list(self.shapes)
        if self.padded:
            units = [extent // m for extent, m in zip(self.example_grid, self.multiple_of, strict=True)]
            smaller = np.random.default_rng(0).integers(1, np.add(units, 1), (PADDED_SAMPLES, self.ndim))
            for unit in [*smaller, np.ones(self.ndim, int)]:
                grids.append(tuple((unit * self.multiple_of).tolist()))
        return tuple(dict.fromkeys(grids))

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

    def fits(self, grid: Grid) -> bool:
        """True if a grid has the fixed extents, and multiples of `multiple_of` along the free axes."""
        axes = zip(grid, self.grid, self.multiple_of, strict=True)
        return all(extent == fixed if fixed else extent % m == 0 for extent, fixed, m in axes)

    def inputs(self, grid: Grid, batch: int, seed: int = 0) -> dict[str, Array]:
        """Random inputs on a grid, but `sizes`; x comes first."""
        shape = (*grid, self.channels) if self.channels_last else (self.channels, *grid)
        shapes = {"x": shape}
        for name, example in self.extra_inputs.items():
            shapes[name] = tuple(example.shape[1:])
            if name in self.grid_inputs:
                before = self._first_grid_axis(example)
                shapes[name] = (*example.shape[1:before], *grid, *example.shape[before + self.ndim :])
        return draw_inputs(self.draws, shapes, batch, seed)

    def extra_batch(self, batch: int, grid: Grid) -> dict[str, Array]:
        """The further inputs: the samples of their examples, repeated as often as needed, or random numbers
        on the grid of x."""
        drawn = self.inputs(grid, batch)
        return {
            name: drawn[name] if name in self.grid_inputs else value.numpy()[np.arange(batch) % len(value)]
            for name, value in self.extra_inputs.items()
        }

    def _first_grid_axis(self, value: Tensor) -> int:
        """The first grid axis of an input that has the grid of x, with or without channels."""
        return 2 if not self.channels_last and value.dim() == self.ndim + 2 else 1

    def examples(self, grid: Grid) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on a grid, by name, in the order of the file."""
        x, *further = (torch.from_numpy(value) for value in self.inputs(grid, 2).values())
        sizes = {"sizes": torch.tensor([grid] * 2, device="cpu")} if self.padded else {}
        return {"x": x, **sizes, **dict(zip(self.extra_inputs, further, strict=True))}

    def metadata(self, form: Form, dtype: Dtype, fields: Mapping[str, Any]) -> Metadata:
        """The metadata of the exported file; `fields` are those that do not follow from the network.

        Raises:
            InputError: a field is unknown, or could not be read again, such as the name of a class.
        """
        name, *further_names = self.output_names
        y_shape = self.shapes[self.example_grid][name]
        feature_axis = 1 if not self.channels_last and len(y_shape) == self.ndim + 2 else -1
        example_range, x = self.draw.range, self.inputs(self.example_grid, 4)["x"]
        if self.draw.function is not None:  # a file cannot hold it
            as_number = int if not (x % 1).any() else float
            example_range = as_number(x.min()), as_number(x.max())
        try:
            metadata = Metadata(
                version=__version__,
                grid=None if set(self.grid) == {None} else self.grid,
                form=form,
                layout=layout_of(self.ndim, self.channels_last),
                channels=self.channels,
                outputs=y_shape[feature_axis] if len(y_shape) > 1 else 1,
                inputs=("x", *self.interface.names),
                window=self._window(name),
                output_names=self.output_names,
                further_windows=tuple(map(self._window, further_names)),
                multiple_of=self.multiple_of if max(self.multiple_of) > 1 else None,
                dtype=dtype,
                example_range=example_range,
                input_ranges={k: d.range for k, d in self.draws.items() if d.range and k != "x"},
                grids=self.grids,
                integer=self.interface.integer,
                channel_axis=self.interface.channel_axis,
                **fields,
            )
            metadata.check()
        except TypeError as error:  # a name or a value in `fields`
            raise InputError(f"metadata=... cannot be written into the file: {error}") from None
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

    def completed(self, example: Grid | None, is_explicit: bool) -> ExportSpec:
        """The specification with `shapes`, and the free extents that the network fixes.

        `example` is a grid that the network should take, and `is_explicit` says that the user gave `grid`.
        """
        if any(extent and extent % m for extent, m in zip(self.grid, self.multiple_of, strict=True)):
            raise InputError(
                f"grid {format_size(self.grid)} is not a multiple of {format_size(self.multiple_of)}, "
                "which ",
                *(Argument("multiple_of"), " asks for; change one of them"),
            )
        if None not in self.grid:
            grid = self._with_fixed_extents((1,) * self.ndim)
            return replace(self, shapes={grid: self._output_shapes(grid)})
        base, lowest = (5, 7, *(3,) * self.ndim), (2, 3, *(1,) * self.ndim)
        for factor in ENLARGEMENTS:
            axes = zip(base, lowest, self.multiple_of, strict=False)
            grid = self._with_fixed_extents([max(-(-factor * b // m), unit) * m for b, unit, m in axes])
            if self._accepts(grid):
                spec = self
                break
        else:
            spec, grid = self._from_example(example, is_explicit, grid)
        shapes = {grid: self._output_shapes(grid)}
        # On small grids alone, a convolution without padding could be taken for a window.
        for other in (
            3 * np.array(grid),
            *(np.multiply(odd, self.multiple_of) for odd in odd_grids(self.ndim)),
        ):
            larger = spec._with_fixed_extents(other.tolist())
            if prod(larger) <= MAX_POSITIONS and self._accepts(larger):
                shapes[larger] = self._output_shapes(larger)
        return replace(spec, shapes=shapes)

    def _from_example(
        self, example: Grid | None, is_explicit: bool, small: Grid
    ) -> tuple[ExportSpec, Grid]:
        """For a network that takes no small grid: the extents that its forward fixes, and the main grid.

        Raises:
            InputError: it does not take the example either, or any multiple of a number only.
        """
        if example is None or not self._accepts(example):
            raise self._refusal(small)
        extents, grid = list(self.grid), list(example)
        for d, m in enumerate(self.multiple_of):
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
        if None not in extents and not is_explicit:
            raise InputError(
                f"{self.interface.name} takes the grid {format_size(main)} only, with these inputs; if "
                "further inputs have the grid of x, name them as grid_inputs=...; or export it for this "
                f"grid, with grid={main}"
            )
        return replace(self, grid=tuple(extents)), main

    def _with_fixed_extents(self, grid: Sequence[int]) -> Grid:
        """A grid, but with the extents that are fixed."""
        return tuple(fixed or extent for extent, fixed in zip(grid, self.grid, strict=True))

    @torch.no_grad()
    def _run(self, grid: Grid) -> dict[str, Tensor]:
        return self.interface.call(**self.examples(grid))

    def _accepts(self, grid: Grid) -> bool:
        try:
            self._run(grid)
        except OutputError:
            raise
        except REFUSALS:
            return False
        return True

    def _output_shapes(self, grid: Grid) -> dict[str, Shape]:
        """The shapes of the outputs for a batch of 2, by name."""
        try:
            outputs = self._run(grid)
        except OutputError:
            raise
        except REFUSALS:
            raise self._refusal(grid) from None
        for name, y in outputs.items():
            if name in ("x", *self.interface.names):
                raise InputError(
                    f"{self.interface.name} has an input and an output called '{name}', which need "
                    "different names in the file; give output_names=..."
                )
            if y.dim() == 0 or len(y) != 2:
                raise InputError(
                    f"{self.interface.name} returns '{name}' of shape {tuple(y.shape)} for a batch of 2, "
                    "expected (N, …)"
                )
        return {name: tuple(y.shape) for name, y in outputs.items()}

    def _refusal(self, grid: Grid) -> InputError:
        """The error for a grid that the network does not take."""
        name, reason = self.interface.name, ""
        try:
            self._run(grid)
        except REFUSALS as error:
            reason = first_line(error)
        for factor in (2, 4, 8, 16, 32) if None in self.grid else ():
            units = (2, 3, *(1,) * self.ndim)[: self.ndim]
            multiple = self._with_fixed_extents([factor * unit for unit in units])
            if self._accepts(multiple):
                return InputError(
                    f"{name} accepts the grid {format_size(multiple)} but not {format_size(grid)} "
                    f"({reason}); if its strides need such extents, give ",
                    Argument("multiple_of", factor),
                )
        advice = "give example_inputs=(x, …), or other grid=..., channels=... and channels_last=..."
        if "index out of range" in reason:
            advice = "x holds indices of a table, so give example_range=(0, entries - 1)"
        if None in self.grid:
            advice += "; if forward fixes an extent, name it, as in grid=(48, None)"
        shape = tuple(self.examples(grid)["x"].shape)
        return InputError(
            f"{name} does not accept the grid {format_size(grid)} with {self.channels} channels, an x of "
            f"shape {shape}: {reason}; {advice}"
        )
