"""The metadata of a file: windows, features, and a check that its kind can read the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from mdlstm_tk._util.text import counted, printable, suggestion
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.capture import Captured
from mdlstm_tk.export.inputs import Inputs
from mdlstm_tk.export.network import Network, mdlstm_layers
from mdlstm_tk.io.metadata import Dtype, Extents, Form, Metadata, layout_of
from mdlstm_tk.kinds import kind_named, kind_names

LONGEST = 1000  # extent that a window must explain


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
        InputError: a field could not be read again; or the kind cannot read the outputs; or nothing tells
            which part of an output belongs to a padded sample.
    """
    names = tuple(inputs.shapes[inputs.main])
    known = {**inputs.shapes, **_long(inputs, captured)}
    first = inputs.first_axes["x"]
    windows = {name: _window(exact, inputs, known, name, first) for name in names}
    y_shape, axis = inputs.shapes[inputs.main][names[0]], -1
    if first == 2 and len(y_shape) == inputs.ndim + 2:
        # Of a channels-first network, too, an output may be (N, *grid, features).
        axis = -1 if not windows[names[0]] and _window(exact, inputs, known, names[0], 1) else 1
    features = {shapes[names[0]][axis] for shapes in inputs.shapes.values()}
    kind = kind_named(fields.get("kind"))
    for name in names if inputs.padded else ():
        is_constant = len(known) > 1 and len({tuple(shapes[name][1:]) for shapes in known.values()}) == 1
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
        fields = {"columns_per_step": getattr(exact.module, "columns_per_step", None), **fields}
    least = inputs.like([1] * inputs.ndim)
    is_any = all(e in (own, m) for e, own, m in zip(least, inputs.grid, inputs.multiple_of, strict=True))
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
        min_grid=None if is_any else least,
        dtype=dtype,
        example_range=example_range,
        input_ranges={k: d.range for k, d in inputs.draws.items() if d.range and k != "x"},
        grids=tuple(inputs.grids),
        integer=exact.integer,
        channel_axis=exact.channel_axis,
        **fields,
    )
    has_grid = len(y_shape) == inputs.ndim + 2
    if metadata.kind is not None and has_grid and first == 2 and axis == -1:
        raise InputError(
            f"{exact.name} takes x (N, C, *grid) and returns '{names[0]}' (N, *grid, features), which kind "
            f"'{metadata.kind}' does not read; move the features to axis 1"
        )
    _check_kind(metadata, exact.name, [shapes[names[0]] for shapes in inputs.shapes.values()])
    return Metadata.from_props(metadata.to_props(), "metadata=...")


def _long(inputs: Inputs, captured: Captured | None) -> dict[Extents, Mapping[str, Sequence[int]]]:
    """Grids that are long along a free axis, and the shapes of the outputs there, as torch knows them: a
    crop to 300 columns is not seen on shorter ones."""
    found: dict[Extents, Mapping[str, Sequence[int]]] = {}
    first = inputs.first_axes["x"]
    for d in inputs.free if captured is not None else ():
        symbols = captured.conditions.symbols  # type: ignore[union-attr]
        for extent in (LONGEST, LONGEST + 1):
            grid = (*inputs.main[:d], extent * inputs.multiple_of[d], *inputs.main[d + 1 :])
            values = {symbols[first + k]: grid[k] for k in inputs.free} | {symbols[0]: 2}
            found[grid] = {
                name: tuple(int(e.xreplace(values)) if e.free_symbols <= {*values} else -1 for e in shape)
                for name, shape in captured.shapes.items()  # type: ignore[union-attr]
            }  # −1 for extents that depend on values
    return found


def _window(
    exact: Network,
    inputs: Inputs,
    known: Mapping[Extents, Mapping[str, Sequence[int]]],
    output: str,
    first: int,
) -> Extents | None:
    """The extents of x that one position of an output, whose first grid axis is known, stands for; None if
    the output has no grid.

    The product of the layers' windows is tried first, because several windows may give the same extents. If
    the network takes one grid only, the extents must be multiples: a convolution without padding is no
    window.
    """
    if any(len(shapes[output]) != inputs.ndim + 2 for shapes in known.values()):
        return None
    layers = [layer for layer in mdlstm_layers(exact) if layer.ndim == inputs.ndim]
    window = []
    for d in range(inputs.ndim):
        extents = np.array([(grid[d], shapes[output][first + d]) for grid, shapes in known.items()])
        own, is_alone = prod(layer.window[d] for layer in layers), len({*extents[:, 0]}) == 1
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
    if metadata.kind is None:
        return
    if metadata.kind not in kind_names():
        hint = suggestion(metadata.kind, kind_names())
        raise InputError(
            f"metadata=... has kind '{printable(metadata.kind)}', which is not registered; {hint}"
        )
    kind = kind_named(metadata.kind)
    axes, names = kind.axes.count(",") + 1, kind.name_count(metadata.outputs)
    for shape in shapes if kind.axes else ():
        if len(shape) != axes + 1 or shape[-1] != metadata.outputs:
            raise InputError(
                f"metadata=... has kind '{metadata.kind}', but {network} returns shape {tuple(shape)} as "
                f"'{metadata.output_names[0]}', which that kind cannot read; pool or crop it in the network"
            )
    if names and len(metadata.classes or ()) != names:
        raise InputError(
            f"kind '{metadata.kind}' needs metadata={{'classes': …}} with {counted(names, 'name')}"
        )
