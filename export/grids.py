"""The grids that a network takes: those that it is exported for, and those to verify it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import Argument, InputError
from mdlstm_tk.export.interface import REFUSALS, OutputError, first_line
from mdlstm_tk.export.spec import ENLARGEMENTS, Extents, NetworkInputs, Shape
from mdlstm_tk.export.verification.cases import MAX_POSITIONS, odd_grids
from mdlstm_tk.runtime.shapes import Grid

Shapes = dict[Grid, dict[str, Shape]]


@dataclass
class GridSearch:
    """Runs a network on grids, to find those that it takes.

    Attributes:
        network: the network.
        grid: extents to export for, None where they are free; `run` fixes those that the network fixes.
    """

    network: NetworkInputs
    grid: Extents

    def run(self, example: Grid | None, is_explicit: bool) -> tuple[Shapes, Shapes]:
        """The shapes of all outputs on the grids to verify on, the main one first, and on more grids.

        Args:
            example: a grid that the network should take.
            is_explicit: the user gave `grid`.
        """
        multiple_of = self.network.multiple_of
        if any(extent and extent % m for extent, m in zip(self.grid, multiple_of, strict=True)):
            raise InputError(
                f"grid {format_size(self.grid)} is not a multiple of {format_size(multiple_of)}, which ",
                *(Argument("multiple_of"), " asks for; change one of them"),
            )
        if None not in self.grid:
            grid = self._with_fixed_extents((1,) * self.network.ndim)
            shapes = {grid: self._output_shapes(grid)}
            known = dict(shapes)
            for other in self._neighbours(grid):
                with suppress(*REFUSALS):
                    outputs = {name: tuple(y.shape) for name, y in self.network.run(other).items()}
                    if outputs.keys() == shapes[grid].keys():
                        known[other] = outputs
            return shapes, known
        base, lowest = (5, 7, *(3,) * self.network.ndim), (2, 3, *(1,) * self.network.ndim)
        for factor in ENLARGEMENTS:
            axes = zip(base, lowest, multiple_of, strict=False)
            grid = self._with_fixed_extents([max(-(-factor * b // m), unit) * m for b, unit, m in axes])
            if self.network.accepts(grid):
                break
        else:
            grid = self._from_example(example, is_explicit, grid)
        shapes = {grid: self._output_shapes(grid)}
        # On small grids alone, a convolution without padding could be taken for a window.
        odd = [np.multiply(odd, multiple_of).tolist() for odd in odd_grids(self.network.ndim)]
        for other in ([3 * extent for extent in grid], *odd):
            larger = self._with_fixed_extents(other)
            if prod(larger) <= MAX_POSITIONS and self.network.accepts(larger):
                shapes[larger] = self._output_shapes(larger)
        return shapes, shapes

    def _neighbours(self, grid: Grid) -> Iterator[Grid]:
        """Grids that tell what a network of one grid makes of its extents; smaller ones for padded samples,
        and others as well for whole ones."""
        steps = range(-2, 1 if self.network.padded else 3) if prod(grid) <= MAX_POSITIONS else ()
        shifted = [np.add(grid, np.multiply(k, self.network.multiple_of)) for k in steps]
        odd = [np.multiply(odd, self.network.multiple_of) for odd in odd_grids(self.network.ndim)]
        for other in map(tuple, np.array([*shifted, *odd]).tolist()):
            is_smaller = all(e <= limit for e, limit in zip(other, grid, strict=True))
            if min(other) > 0 and other != grid and (is_smaller or not self.network.padded):
                yield other

    def _from_example(self, example: Grid | None, is_explicit: bool, small: Grid) -> Grid:
        """For a network that takes no small grid: fix the extents that its forward fixes, and return the
        main grid.

        Raises:
            InputError: it does not take the example either, or any multiple of a number only.
        """
        if example is None or not self.network.accepts(example):
            raise self._refusal(small)
        extents, grid = list(self.grid), list(example)
        for d, m in enumerate(self.network.multiple_of):
            next_grid, triple = (
                (*example[:d], extent, *example[d + 1 :]) for extent in (example[d] + m, 3 * example[d])
            )
            if not self.network.accepts(triple):
                extents[d] = example[d]
            elif self.network.accepts(next_grid):
                grid[d] = max(grid[d], 2 * m)  # torch takes an extent of 1 for a constant
            elif extents[d] is None:
                raise self._refusal(next_grid)
        main = tuple(grid)
        if not self.network.accepts(main):
            raise self._refusal(main)
        if None not in extents and not is_explicit:
            raise InputError(
                f"{self.network.interface.name} takes the grid {format_size(main)} only, with these "
                "inputs; if further inputs have the grid of x, name them as grid_inputs=...; or export it "
                f"for this grid, with grid={main}"
            )
        self.grid = tuple(extents)
        return main

    def _with_fixed_extents(self, grid: Sequence[int]) -> Grid:
        """A grid, but with the extents that are fixed."""
        return tuple(fixed or extent for extent, fixed in zip(grid, self.grid, strict=True))

    def _output_shapes(self, grid: Grid) -> dict[str, Shape]:
        """The shapes of the outputs for a batch of 2, by name."""
        try:
            outputs = self.network.run(grid)
        except OutputError:
            raise
        except REFUSALS:
            raise self._refusal(grid) from None
        for name, y in outputs.items():
            if name in ("x", *self.network.interface.names):
                raise InputError(
                    f"{self.network.interface.name} has an input and an output called '{name}', which need "
                    "different names in the file; give output_names=..."
                )
            if y.dim() == 0 or len(y) != 2 or not y.numel():
                raise InputError(
                    f"{self.network.interface.name} returns '{name}' of shape {tuple(y.shape)} for a batch "
                    f"of 2 on the grid {format_size(grid)}, expected (N, …), without an empty axis"
                )
        return {name: tuple(y.shape) for name, y in outputs.items()}

    def _refusal(self, grid: Grid) -> InputError:
        """The error for a grid that the network does not take."""
        name, channels, reason = self.network.interface.name, self.network.channels, ""
        try:
            self.network.run(grid)
            reason = "it returns an empty output"
        except REFUSALS as error:
            reason = first_line(error)
        for factor in (2, 4, 8, 16, 32) if None in self.grid else ():
            units = (2, 3, *(1,) * self.network.ndim)[: self.network.ndim]
            multiple = self._with_fixed_extents([factor * unit for unit in units])
            if self.network.accepts(multiple):
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
        shape = tuple(self.network.examples(grid)["x"].shape)
        return InputError(
            f"{name} does not accept the grid {format_size(grid)} with {counted(channels, 'channel')}, an "
            f"x of shape {shape}: {reason}; {advice}"
        )
