"""The grids that a network takes: those that it is exported for, and those to verify it on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import prod

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, reason_of
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.interface import REFUSALS, OutputError
from mdlstm_tk.export.spec import ExportSpec, Shape
from mdlstm_tk.export.verification.cases import MAX_POSITIONS, odd_grids
from mdlstm_tk.io.metadata import Extents as Grid

ENLARGEMENTS = (1, 3, 7, 15)  # odd, so that a network with strides does not accept them by chance


def find_grids(spec: ExportSpec, example: Grid | None, is_explicit: bool) -> None:
    """Run a network on grids, to find those that it takes: `shapes`, `known` and fixed extents of `spec`.

    Args:
        spec: the network.
        example: a grid that the network should take.
        is_explicit: the user gave a `grid` without free extents.

    Raises:
        InputError: the network does not take the grid to export for, or returns other things than outputs.
    """
    multiple_of = spec.multiple_of
    if any(extent and extent % m for extent, m in zip(spec.grid, multiple_of, strict=True)):
        raise InputError(
            f"grid {format_size(spec.grid)} is not a multiple of {format_size(multiple_of)}, which "
            "multiple_of=... (--multiple-of) asks for; change one of them"
        )
    if None not in spec.grid:
        grid = spec.with_fixed_extents((1,) * spec.ndim)
        spec.shapes = {grid: _output_shapes(spec, grid)}
        spec.known = dict(spec.shapes)
        for other in _neighbours(spec, grid):
            with suppress(*REFUSALS):
                outputs = {name: tuple(y.shape) for name, y in spec.run(other).items()}
                if outputs.keys() == spec.shapes[grid].keys():
                    spec.known[other] = outputs
        return
    base, lowest = (5, 7, *(3,) * spec.ndim), (2, 3, *(1,) * spec.ndim)
    for factor in ENLARGEMENTS:
        axes = zip(base, lowest, multiple_of, strict=False)
        grid = spec.with_fixed_extents([max(-(-factor * b // m), unit) * m for b, unit, m in axes])
        if spec.accepts(grid):
            break
    else:
        grid = _from_example(spec, example, is_explicit, grid)
    shapes = {grid: _output_shapes(spec, grid)}
    # On small grids alone, a convolution without padding could be taken for a window.
    odd = [np.multiply(odd, multiple_of).tolist() for odd in odd_grids(spec.ndim)]
    for other in ([3 * extent for extent in grid], *odd):
        larger = spec.with_fixed_extents(other)
        if prod(larger) <= MAX_POSITIONS and spec.accepts(larger):
            shapes[larger] = _output_shapes(spec, larger)
    spec.shapes = spec.known = shapes
    # ONNX Runtime does not check all that torch refuses, such as a reflection of more rows than there are.
    least = tuple(_least_extent(spec, grid, axis) for axis in range(spec.ndim))
    spec.min_grid = None if least == spec.with_fixed_extents(multiple_of) else least


def _least_extent(spec: ExportSpec, grid: Grid, axis: int) -> int:
    """The smallest extent along an axis of a grid that the network takes."""
    if spec.grid[axis] is not None:
        return grid[axis]
    unit = spec.multiple_of[axis]
    low, high, trial = 1, grid[axis] // unit, 1  # the extent that most networks take is tried first
    while low < high:
        if spec.accepts((*grid[:axis], trial * unit, *grid[axis + 1 :])):
            high = trial
        else:
            low = trial + 1
        trial = (low + high) // 2
    return high * unit


def _neighbours(spec: ExportSpec, grid: Grid) -> Iterator[Grid]:
    """Grids that tell what a network of one grid makes of its extents; smaller ones for padded samples,
    and others as well for whole ones."""
    steps = range(-2, 1 if spec.padded else 3) if prod(grid) <= MAX_POSITIONS else ()
    shifted = [np.add(grid, np.multiply(k, spec.multiple_of)) for k in steps]
    odd = [np.multiply(odd, spec.multiple_of) for odd in odd_grids(spec.ndim)]
    for other in map(tuple, np.array([*shifted, *odd]).tolist()):
        is_smaller = all(e <= limit for e, limit in zip(other, grid, strict=True))
        if min(other) > 0 and other != grid and (is_smaller or not spec.padded):
            yield other


def _from_example(spec: ExportSpec, example: Grid | None, is_explicit: bool, small: Grid) -> Grid:
    """For a network that takes no small grid: fix the extents that its forward fixes, and return the main
    grid.

    Raises:
        InputError: it does not take the example either, or any multiple of a number only.
    """
    if example is None or not spec.accepts(example):
        raise _refusal(spec, small)
    extents, grid = list(spec.grid), list(example)
    for d, m in enumerate(spec.multiple_of):
        next_grid, triple = (
            (*example[:d], extent, *example[d + 1 :]) for extent in (example[d] + m, 3 * example[d])
        )
        if not spec.accepts(triple):
            extents[d] = example[d]
        elif spec.accepts(next_grid):
            grid[d] = max(grid[d], 2 * m)  # torch takes an extent of 1 for a constant
        elif extents[d] is None:
            raise _refusal(spec, next_grid)
    main = tuple(grid)
    if not spec.accepts(main):
        raise _refusal(spec, main)
    if None not in extents and not is_explicit:
        raise InputError(
            f"{spec.interface.name} takes the grid {format_size(main)} only, with these "
            "inputs; if further inputs have the grid of x, name them as grid_inputs=...; or export it "
            f"for this grid, with grid={main}"
        )
    spec.grid = tuple(extents)
    return main


def _output_shapes(spec: ExportSpec, grid: Grid) -> dict[str, Shape]:
    """The shapes of the outputs for a batch of 2, by name."""
    name = spec.interface.name
    try:
        outputs = spec.run(grid)
    except OutputError:
        raise
    except REFUSALS:
        raise _refusal(spec, grid) from None
    for output, y in outputs.items():
        if output in ("x", *spec.interface.names):
            raise InputError(
                f"{name} has an input and an output called '{output}', which need different names in the "
                "file; give output_names=..."
            )
        if y.dim() == 0 or len(y) != 2 or not y.numel():
            raise InputError(
                f"{name} returns '{output}' of shape {tuple(y.shape)} for a batch of 2 on the grid "
                f"{format_size(grid)}, expected (N, …), without an empty axis"
            )
    return {output: tuple(y.shape) for output, y in outputs.items()}


def _refusal(spec: ExportSpec, grid: Grid) -> InputError:
    """The error for a grid that the network does not take."""
    name = spec.interface.name
    try:
        spec.run(grid)
        reason = "it returns an empty output"
    except REFUSALS as error:
        reason = reason_of(error)
    for factor in (2, 4, 8, 16, 32) if None in spec.grid else ():
        units = (2, 3, *(1,) * spec.ndim)[: spec.ndim]
        multiple = spec.with_fixed_extents([factor * unit for unit in units])
        if spec.accepts(multiple):
            return InputError(
                f"{name} accepts the grid {format_size(multiple)} but not {format_size(grid)} "
                f"({reason}); if its strides need such extents, give multiple_of={factor} (--multiple-of)"
            )
    advice = "give example_inputs=(x, …), or other grid=..., channels=... and channels_last=..."
    if "index out of range" in reason:
        advice = "x holds indices of a table, so give example_range=(0, entries - 1)"
    if None in spec.grid:
        advice += "; if forward fixes an extent, name it, as in grid=(48, None)"
    shape = tuple(spec.examples(grid)["x"].shape)
    return InputError(
        f"{name} does not accept the grid {format_size(grid)} with {counted(spec.channels, 'channel')}, an "
        f"x of shape {shape}: {reason}; {advice}"
    )
