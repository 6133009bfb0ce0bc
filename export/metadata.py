"""What a file says about its network: windows, features, and whether its kind can read the outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any

import numpy as np

from mdlstm_tk._util.text import counted, printable, suggestion
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.capture import Captured
from mdlstm_tk.export.inputs import MAX_POSITIONS, Inputs
from mdlstm_tk.export.network import Network, mdlstm_layers
from mdlstm_tk.io.metadata import Dtype, Form, Metadata, layout_of
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.training.networks import columns_per_step

LONGEST = 1000  # extents that a window must explain


def describe(
    exact: Network,
    inputs: Inputs,
    captured: Captured | None,
    form: Form,
    dtype: Dtype,
    fields: Mapping[str, Any],
) -> Metadata:
    """The metadata of a file.

    Args:
        exact, inputs: the network and its inputs.
        captured: the graph; None for tiles.
        form, dtype: of the file.
        fields: those that do not follow from the network.

    Raises:
        InputError: a field is unknown, or could not be read again; or the kind cannot read the outputs; or
            nothing tells which part of an output belongs to a padded sample.
    """
    names = tuple(inputs.shapes[inputs.main])
    known = dict(_shapes(exact, inputs, captured))
    first = inputs.first_axes["x"]
    windows = {name: _window(exact, inputs, known, name, first) for name in names}
    y_shape, axis = inputs.shapes[inputs.main][names[0]], -1
    if first == 2 and len(y_shape) == inputs.ndim + 2:
        # Of a channels-first network, too, an output may be (N, *grid, features).
        axis = -1 if not windows[names[0]] and _window(exact, inputs, known, names[0], 1) else 1
    features = {shapes[names[0]][axis] for shapes in inputs.shapes.values()}
    kind = kind_named(fields.get("kind"))
    for name in names if inputs.padded else ():
        is_constant = len(known) > 1 and len({shapes[name] for shapes in known.values()}) == 1
        if not (windows[name] or is_constant or (kind.reads_lines and len(known[inputs.main][name]) == 3)):
            raise InputError(
                f"{exact.name} cannot be exported for padded samples: nothing tells which part of its "
                f"output '{name}' {known[inputs.main][name]} belongs to a sample, as its extents are not "
                "⌈extent of x / window⌉; leave out padded=True (--padded), or crop or pool it"
            )
    draw, x = inputs.draws["x"], inputs.arrays(inputs.main, 4)["x"]
    example_range = draw.range
    if draw.function is not None:  # a file cannot hold it
        as_number = float if (x % 1).any() else int
        example_range = as_number(x.min()), as_number(x.max())
    if kind.reads_lines:
        fields = {"columns_per_step": columns_per_step(exact.module), **fields}
    try:
        metadata = Metadata(
            version=__version__,
            grid=None if set(inputs.grid) == {None} else inputs.grid,
            form=form,
            layout=layout_of(inputs.ndim, inputs.channels_last),
            channels=inputs.channels,
            outputs=features.pop() if len(y_shape) > 1 and len(features) == 1 else 1,
            inputs=("x", *exact.names),
            window=windows[names[0]],
            output_names=names,
            further_windows=tuple(windows[name] for name in names[1:]),
            multiple_of=inputs.multiple_of if max(inputs.multiple_of) > 1 else None,
            min_grid=_min_grid(inputs),
            dtype=dtype,
            example_range=example_range,
            input_ranges={k: d.range for k, d in inputs.draws.items() if d.range and k != "x"},
            grids=tuple(inputs.grids()),
            integer=exact.integer,
            channel_axis=exact.channel_axis,
            **fields,
        )
        json.dumps(asdict(metadata))
    except TypeError as error:  # a name or a value in `fields`
        raise InputError(f"metadata=... cannot be written into the file: {error}") from None
    _check_kind(metadata, exact.name, [shapes[names[0]] for shapes in inputs.shapes.values()])
    return Metadata.from_props(metadata.to_props(), "metadata=...")


def _min_grid(inputs: Inputs) -> Grid | None:
    least = tuple(fixed or e for e, fixed in zip(inputs.min_grid, inputs.grid, strict=True))
    is_any = all(e <= (own or m) for e, own, m in zip(least, inputs.grid, inputs.multiple_of, strict=True))
    return None if is_any else least


def _shapes(
    exact: Network, inputs: Inputs, captured: Captured | None
) -> Iterator[tuple[Grid, dict[str, tuple[int, ...]]]]:
    """Grids, and the shapes of the outputs there: those verified; along free axes those that torch knows;
    and around a fixed grid those of the network."""
    yield from inputs.shapes.items()
    if captured is not None and inputs.free:
        symbols = captured.symbols.axes
        for d in inputs.free:
            m, least, first = inputs.multiple_of[d], inputs.min_grid[d], inputs.first_axes["x"]
            extents = [k for k in (*range(m, 65 * m, m), LONGEST * m, (LONGEST + 1) * m) if k >= least]
            for extent in extents:
                grid = (*inputs.main[:d], extent, *inputs.main[d + 1 :])
                values = {symbols[first + k]: grid[k] for k in inputs.free} | {symbols[0]: 2}
                yield (
                    grid,
                    {
                        name: tuple(_value(e, values) for e in shape)
                        for name, shape in captured.shapes.items()
                    },
                )
    elif not inputs.free and prod(inputs.main) <= MAX_POSITIONS:
        for step in (-2, -1, 1, 2):
            grid = tuple(e + step * m for e, m in zip(inputs.main, inputs.multiple_of, strict=True))
            if min(grid) > 0:
                try:
                    outputs = exact.run(inputs.arrays(grid, 2))
                except InputError:
                    continue
                if outputs.keys() == inputs.shapes[inputs.main].keys():
                    yield grid, {name: y.shape for name, y in outputs.items()}


def _value(extent: Any, values: Mapping[Any, int]) -> int:
    value = extent if isinstance(extent, int) else extent.xreplace(values)
    return int(value) if isinstance(value, int) or value.is_number else -1  # of values


def _window(
    exact: Network,
    inputs: Inputs,
    known: Mapping[Grid, Mapping[str, Sequence[int]]],
    output: str,
    first: int,
) -> Grid | None:
    """The extents of x that one position of an output, whose first grid axis is known, stands for; None if
    the output has no grid.

    The product of the layers' windows is tried first, because several windows may give the same extents. If
    the network takes one grid only, the extents must be multiples: a convolution without padding is no
    window.
    """
    layers = [layer for layer in mdlstm_layers(exact) if layer.ndim == inputs.ndim]
    window = []
    for d in range(inputs.ndim):
        pairs = {(grid[d], tuple(shapes[output])) for grid, shapes in known.items()}
        if any(len(shape) != inputs.ndim + 2 for _, shape in pairs):
            return None
        own, is_alone = prod(layer.window[d] for layer in layers), len({e for e, _ in pairs}) == 1
        extents = np.array([(e, shape[first + d]) for e, shape in pairs])
        for size in (own, *range(1, inputs.main[d] + 1)):
            fits = (-(-extents[:, 0] // size) == extents[:, 1]).all()
            if fits and (not is_alone or size == own or inputs.main[d] % size == 0):
                window.append(size)
                break
        else:
            return None
    return tuple(window)


def _check_kind(metadata: Metadata, network: str, shapes: Sequence[Sequence[int]]) -> None:
    """Check that the outputs can be read as answers of the kind that the metadata name."""
    kind = kind_named(metadata.kind)
    if metadata.kind is not None and metadata.kind not in kind_names():
        hint = suggestion(metadata.kind, kind_names())
        raise InputError(
            f"metadata=... has kind '{printable(metadata.kind)}', which is not registered; {hint}"
        )
    axes = len(kind.axes.split(","))
    for shape in shapes if kind.axes else ():
        if len(shape) != axes + 1 or shape[-1] != metadata.outputs:
            raise InputError(
                f"metadata=... has kind '{metadata.kind}', but {network} returns shape {tuple(shape)} as "
                f"'{metadata.output_names[0]}', which that kind cannot read; pool or crop it in the network"
            )
    names = kind.name_count(metadata.outputs)
    if metadata.kind in kind_names() and names and len(metadata.classes or ()) != names:
        raise InputError(
            f"kind '{metadata.kind}' needs metadata={{'classes': …}} with {counted(names, 'name')}"
        )
