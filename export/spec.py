"""The network to export with its inputs, and the grids that it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk._util.text import counted, printable, suggestion
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.interface import REFUSALS, Interface, OutputError, mdlstm_layers
from mdlstm_tk.export.verification.cases import RandomValues, draw_inputs, sampler
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Dtype, Form, Metadata, layout_of
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.training.networks import columns_per_step

Extents = tuple[int | None, ...]
Shape = tuple[int, ...]
OutputShapes = dict[Grid, dict[str, Shape]]  # of the outputs, by the grid of x and by their names
Examples = Tensor | Sequence[Tensor | None]

PADDED_SAMPLES = 3  # of random sizes


@dataclass
class ExportSpec:
    """A network with the inputs of its file, and the grids that it is exported for.

    Attributes:
        interface: a copy of the network in float32, with the inputs of the file.
        ndim: D, the number of grid axes.
        channels: C.
        channels_last: x is (N, *grid, C); otherwise it is (N, C, *grid).
        padded: `sizes` (N, D) is an input.
        extra_inputs: an example batch of each further input, by name.
        grid_inputs: for those among them that have the grid of x, by name, their first grid axis.
        multiple_of: for each axis, the number that its extent must be a multiple of.
        draw: makes a random x of a shape.
        grid: extents to export for, None where they are free; `find_grids` fixes those that the network
            fixes.
        example: the example x, float32; None if there is none.
        shapes: for each grid to verify on, the shapes of all outputs for a batch of 2; the main grid comes
            first. `find_grids` finds them.
        known: the shapes on these and on more grids, which tell the windows of outputs.
        min_grid: the smallest extents that the network takes; see `Metadata`.
    """

    interface: Interface
    ndim: int
    channels: int
    channels_last: bool
    padded: bool
    extra_inputs: dict[str, Tensor]
    grid_inputs: Mapping[str, int]
    multiple_of: Grid
    draw: RandomValues
    grid: Extents
    example: Tensor | None
    shapes: OutputShapes = field(default_factory=dict)
    known: OutputShapes = field(default_factory=dict)
    min_grid: Grid | None = None

    @property
    def draws(self) -> dict[str, RandomValues]:
        """The random values of each input but `sizes`."""
        return {"x": self.draw, **{name: sampler(name, None, e) for name, e in self.extra_inputs.items()}}

    @property
    def grid_axes(self) -> range:
        """The axes of x that are grid axes."""
        return range(1, self.ndim + 1) if self.channels_last else range(2, self.ndim + 2)

    def grid_of(self, shape: Shape) -> Grid:
        """The extents of the grid in the shape of x."""
        return tuple(shape[axis] for axis in self.grid_axes)

    def inputs(self, grid: Grid, batch: int, seed: int = 0) -> dict[str, Array]:
        """Random inputs on a grid, but `sizes`; x comes first."""
        shape = (*grid, self.channels) if self.channels_last else (self.channels, *grid)
        shapes = {"x": shape}
        for name, example in self.extra_inputs.items():
            shapes[name] = tuple(example.shape[1:])
            if before := self.grid_inputs.get(name):
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

    def examples(self, grid: Grid) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on a grid, by name, in the order of the file."""
        x, *further = (torch.from_numpy(value) for value in self.inputs(grid, 2).values())
        sizes = {"sizes": torch.tensor([grid] * 2, device="cpu")} if self.padded else {}
        return {"x": x, **sizes, **dict(zip(self.extra_inputs, further, strict=True))}

    def accepts(self, grid: Grid) -> bool:
        """True if the network runs on a grid, and returns no empty output."""
        try:
            outputs = self.run(grid)
        except OutputError:
            raise
        except REFUSALS:
            return False
        return all(y.numel() for y in outputs.values())

    @torch.no_grad()
    def run(self, grid: Grid) -> dict[str, Tensor]:
        """The outputs for a batch of 2 on a grid; what the network raises is raised."""
        return self.interface.call(**self.examples(grid))

    @property
    def example_grid(self) -> Grid:
        """The main grid to verify on: the grid to export for, or a small one."""
        return next(iter(self.shapes))

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
    def user_grid(self) -> Grid:
        """The grid of the example, or else the main grid."""
        return self.example_grid if self.example is None else self.grid_of(self.example.shape)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return tuple(self.shapes[self.example_grid])

    def free_axes(self) -> dict[str, dict[int, int]]:
        """For each input with the grid of x: its free axes, and the number that each is a multiple of."""
        free = [d for d, extent in enumerate(self.grid) if extent is None]
        first = {"x": self.grid_axes[0], **self.grid_inputs}
        return {name: {axis + d: self.multiple_of[d] for d in free} for name, axis in first.items()}

    def with_fixed_extents(self, grid: Sequence[int]) -> Grid:
        """A grid, but with the extents that are fixed."""
        return tuple(fixed or extent for extent, fixed in zip(grid, self.grid, strict=True))

    def metadata(self, form: Form, dtype: Dtype, fields: Mapping[str, Any]) -> Metadata:
        """The metadata of the exported file; `fields` are those that do not follow from the network.

        Raises:
            InputError: a field is unknown, or could not be read again, such as the name of a class; or
                samples are padded, and nothing tells which part of an output is that of a sample.
        """
        for output in self.output_names if self.padded else ():
            self._check_padded(output, fields.get("kind"))
        name, *further_names = self.output_names
        y_shape, window = self.shapes[self.example_grid][name], self._window(name, self.grid_axes)
        axis = -1
        if not self.channels_last and len(y_shape) == self.ndim + 2:
            # Of a channels-first network, too, an output may be (N, *grid, features).
            is_last = window is None and self._window(name, range(1, self.ndim + 1)) is not None
            axis = -1 if is_last else 1
        features = {shapes[name][axis] for shapes in self.shapes.values()}
        example_range, x = self.draw.range, self.inputs(self.example_grid, 4)["x"]
        if self.draw.function is not None:  # a file cannot hold it
            as_number = int if not (x % 1).any() else float
            example_range = as_number(x.min()), as_number(x.max())
        try:
            if kind_named(fields.get("kind")).reads_lines:
                fields = {"columns_per_step": columns_per_step(self.interface.module), **fields}
            metadata = Metadata(
                version=__version__,
                grid=None if set(self.grid) == {None} else self.grid,
                form=form,
                layout=layout_of(self.ndim, self.channels_last),
                channels=self.channels,
                outputs=features.pop() if len(y_shape) > 1 and len(features) == 1 else 1,
                inputs=("x", *self.interface.names),
                window=window,
                output_names=self.output_names,
                further_windows=tuple(self._window(further, self.grid_axes) for further in further_names),
                multiple_of=self.multiple_of if max(self.multiple_of) > 1 else None,
                min_grid=self.min_grid,
                dtype=dtype,
                example_range=example_range,
                input_ranges={k: d.range for k, d in self.draws.items() if d.range and k != "x"},
                grids=self.grids,
                integer=self.interface.integer,
                channel_axis=self.interface.channel_axis,
                **fields,
            )
            json.dumps(asdict(metadata))
        except TypeError as error:  # a name or a value in `fields`
            raise InputError(f"metadata=... cannot be written into the file: {error}") from None
        self._check_kind(metadata)
        return Metadata.from_props(metadata.to_props(), "metadata=...")

    def _check_kind(self, metadata: Metadata) -> None:
        """Check that the outputs can be read as answers of the kind that the metadata names."""
        kind, name = kind_named(metadata.kind), self.output_names[0]
        if metadata.kind is not None and metadata.kind not in kind_names():
            hint = suggestion(metadata.kind, kind_names())
            raise InputError(
                f"metadata=... has kind '{printable(metadata.kind)}', which is not registered; {hint}"
            )
        axes = len(kind.axes.split(","))
        for shape in (shapes[name] for shapes in self.shapes.values()) if kind.axes else ():
            if len(shape) != axes + 1 or shape[-1] != metadata.outputs:
                raise InputError(
                    f"metadata=... has kind '{metadata.kind}', but {self.interface.name} returns shape "
                    f"{shape} as '{name}', which that kind cannot read; pool or crop it in the network, or "
                    "leave out the kind"
                )
        names = kind.name_count(metadata.outputs)
        if metadata.kind in kind_names() and names and len(metadata.classes or ()) != names:
            raise InputError(
                f"kind '{metadata.kind}' needs metadata={{'classes': …}} with {counted(names, 'name')}"
            )

    def _window(self, output: str, axes: Sequence[int]) -> Grid | None:
        """The extents of x that one position of an output with these grid axes stands for; None if the
        output has no grid.

        The product of the layers' windows is tried first, because several windows may give the same
        extents. If the network takes one grid only, the extents must be multiples: a convolution without
        padding is no window.
        """
        layers = [layer for layer in mdlstm_layers(self.interface) if layer.ndim == self.ndim]
        window = []
        for d, axis in enumerate(axes):
            extents = [(grid[d], of_grid[output]) for grid, of_grid in self.known.items()]
            if any(len(shape) != self.ndim + 2 for _, shape in extents):
                return None
            size = prod(layer.window[d] for layer in layers)
            candidates = (size, *range(1, self.example_grid[d] + 1))
            fitting = [
                w
                for w in candidates
                if all(-(-x // w) == y[axis] for x, y in extents)
                and (len(extents) > 1 or w == size or extents[0][0] % w == 0)
            ]
            if not fitting:
                return None
            window.append(fitting[0])
        return tuple(window)

    def _check_padded(self, output: str, kind: str | None) -> None:
        """Check that the part of an output that belongs to a padded sample is known."""
        shapes = {of_grid[output] for of_grid in self.known.values()}
        shape = next(iter(shapes))
        is_known = len(self.known) > 1 and len(shapes) == 1  # it does not depend on the grid
        is_known |= self._window(output, self.grid_axes) is not None or (
            kind_named(kind).reads_lines and len(shape) == 3
        )
        if not is_known:
            raise InputError(
                f"{self.interface.name} cannot be exported for padded samples: nothing tells which part of "
                f"its output '{output}', such as {shape}, belongs to a sample, as its extents are not "
                "⌈extent of x / window⌉; leave out padded=True (--padded), or crop or pool it"
            )
