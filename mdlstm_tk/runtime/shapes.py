"""The arrays that a model takes: from the user's axes to the model's, and back."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Bounds, Extents, Metadata
from mdlstm_tk.kinds import kind_named

HALF_MAX = 65504  # of float16


class Batch(NamedTuple):
    """The inputs of a run by name, x as (N, *grid, C) or (N, C, *grid); whether the user's x had the axes
    of the batch and of the channels; and the width in pixels of the image that x was made of."""

    feeds: dict[str, Array]
    has_batch_axis: bool
    has_channel_axis: bool
    width: int | None = None


def prepare(
    x: Any,
    metadata: Metadata,
    dtypes: Mapping[str, str],
    sizes: Any = None,
    further: Mapping[str, Any] = {},
) -> Batch:
    """Convert the arrays of a user to the axes and dtypes of the model.

    Args:
        x: (*grid), (*grid, C) or (N, *grid, C); of a channels-first model (*grid), (C, *grid) or (N, C,
            *grid).
        metadata, dtypes: of the model, and the dtypes of its inputs by name.
        sizes: valid extents of the samples, (N, D); x may be anything outside them.
        further: the other inputs by name.
    """
    m, x = metadata, np.asanyarray(x)
    ndim, axis = m.ndim, -1 if m.channels_last else -m.ndim - 1
    has_batch_axis = x.ndim == ndim + 2 or (x.ndim == ndim + 1 and not m.channel_axis)
    has_channel_axis = x.ndim - has_batch_axis == ndim + 1
    is_array = ndim <= x.ndim <= ndim + 2 and x.size > 0
    samples = x if has_channel_axis or not is_array else np.expand_dims(x, axis)
    samples = samples if has_batch_axis else samples[None]
    if not is_array or samples.ndim != ndim + 2 or samples.shape[axis] != m.channels:
        is_batch = x.ndim == ndim + 1 and m.channels == 1
        hint = "; for a batch of one channel, give x[..., None]" if is_batch else ""
        layout = m.layout.replace(" ", ", ")
        expected = f"({layout}) or fewer axes, with C = {m.channels}{hint}"
        raise InputError(f"x has shape {x.shape}, expected {expected}")
    check_grid(m.grid_of(samples.shape), m)
    if sizes is not None and not m.takes_sizes:
        raise InputError("this model takes no sizes; make one with: mdlstm export --padded")
    feeds, grid = {}, m.grid_of(samples.shape)
    if m.takes_sizes:
        given = np.asarray([grid] * len(samples) if sizes is None else sizes)
        is_valid = given.shape == (len(samples), ndim) and ((given >= 1) & (given <= grid)).all()
        if not is_valid or (given % 1).any():
            raise InputError(f"sizes must be (N, D) integers from 1 to {grid}, got shape {given.shape}")
        feeds["sizes"] = given.astype(np.int64)
    if sizes is not None:
        padded, samples = samples, np.zeros_like(samples)
        for source, target, extents in zip(padded, samples, feeds["sizes"].tolist(), strict=True):
            check_grid(extents, m)
            target[m.region(extents)] = source[m.region(extents)]
    feeds = {"x": convert(samples, "x", m, dtypes["x"]), **feeds}
    check_scale(feeds["x"], m)
    others = [name for name in m.inputs[1:] if name != "sizes"]
    if {*further} != {*others}:
        expected, got = ", ".join(others) or "nothing", ", ".join(further) or "nothing"
        raise InputError(f"beside x, this model takes {expected}, got {got}")
    for name in others:  # in one order, as graphs on CUDA are known by the shapes of their inputs
        value = np.asanyarray(further[name])
        value = value if has_batch_axis else value[None]
        if value.shape[:1] != samples.shape[:1]:
            raise InputError(f"{name} must have the batch of x, {len(samples)}, got shape {value.shape}")
        feeds[name] = convert(value, name, m, dtypes[name])
    return Batch(feeds, has_batch_axis, has_channel_axis)


def check_grid(grid: Sequence[int], metadata: Metadata) -> None:
    """Refuse a grid that the model does not take; the message says how to make a model that does."""
    m, size = metadata, format_size(tuple(grid))
    least, multiple = m.min_grid or (1,) * m.ndim, m.multiple_of or (1,) * m.ndim
    if any(e % k for e, k in zip(grid, multiple, strict=True)):
        text = format_size(multiple)
        raise InputError(f"x has a {size} grid, but extents must be multiples of {text}; pad or resize it")
    if any(e < low for e, low, own in zip(grid, least, m.extents, strict=True) if own is None):
        text = format_size(least)
        raise InputError(f"x has a {size} grid, but the network takes at least {text}; pad or resize it")
    pairs = [(e, own) for e, own in zip(grid, m.extents, strict=True) if own is not None]
    if any(e > own if m.takes_sizes else e != own for e, own in pairs):
        raise InputError(
            f"x has a {size} grid, but this model takes {format_size(m.extents)}; make one for it with: "
            f"mdlstm export --size {size}, or for any size: mdlstm export --form scan"
        )


def takes(grid: Sequence[int], metadata: Metadata) -> bool:
    """True if the model takes a grid of these extents."""
    try:
        check_grid(grid, metadata)
    except InputError:
        return False
    return True


def trained_range(metadata: Metadata) -> Bounds | None:
    """The lowest and the highest value of x in training; None: unknown."""
    images = (0, 1) if metadata.preprocessing and metadata.unit_range else None
    return metadata.x_range or kind_named(metadata.kind).x_range or images


def check_scale(x: Array, metadata: Metadata) -> None:
    """Warn of an x far outside of what the network was trained on: by more than half of its range."""
    low, high = trained_range(metadata) or (-np.inf, np.inf)
    if x.min() < low - (high - low) / 2 or x.max() > high + (high - low) / 2:
        text = f"x lies far outside of [{low:g}, {high:g}], the values of training; scale it as there"
        warnings.warn(f"{text}, 8-bit pixels by 1/255", stacklevel=4)


def convert(array: Array, name: str, metadata: Metadata, of_input: str = "float32") -> Array:
    """An array in the dtype of an input, all finite. No value changes but by rounding to float32."""
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} holds {array.dtype}, expected real numbers")
    # The mask would be dropped. Importing numpy.ma takes 15 ms; who has a masked array has it.
    if "numpy.ma" in sys.modules and np.ma.is_masked(array):
        raise InputError(f"{name} has masked values; fill them, as {name}.filled(0) does")
    dtype = np.dtype(of_input)
    with np.errstate(all="ignore"):
        converted = np.asarray(array).astype(dtype, copy=False)
    is_whole = dtype.kind != "f" or (name == "x" and metadata.integer)
    if dtype.kind == "f":
        if not np.isfinite(converted).all():
            raise InputError(f"{name} holds NaN, infinity, or numbers that {dtype} cannot hold")
        if metadata.dtype == "float16" and not is_whole and np.abs(converted).max(initial=0) > HALF_MAX:
            raise InputError(f"{name} holds numbers beyond {HALF_MAX}; this model computes in float16")
    if is_whole and ((converted != array).any() or (array % 1).any()):
        raise InputError(f"{name} holds numbers that are no {dtype}; this model takes whole numbers")
    return converted


def shared_grid(parts: Sequence[Mapping[str, Array]], metadata: Metadata) -> Extents:
    """The grid that inputs run on together: the model's own or, where that is free, the largest."""
    grids = [metadata.grid_of(part["x"].shape) for part in parts]
    return metadata.grid_like(np.max(grids, axis=0).tolist())


def pad(parts: Sequence[Mapping[str, Array]], metadata: Metadata) -> dict[str, Array]:
    """Join inputs of different grids, x padded with zeros to one. Outside of `sizes` it becomes zero."""
    m, grid = metadata, shared_grid(parts, metadata)
    feeds = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "x"}
    x = np.zeros((len(feeds["sizes"]), *m.shape_of(grid)), parts[0]["x"].dtype)
    samples = (sample for part in parts for sample in part["x"])
    for target, sample, extents in zip(x, samples, feeds["sizes"], strict=True):
        target[m.region(extents)] = sample[m.region(extents)]
    return {"x": x, **feeds}


def crop(y: Array, window: Extents | None, grid: Extents, padded: Extents, metadata: Metadata) -> Array:
    """The part of an output (N, …) that belongs to `grid`; one without a grid is left as it is."""
    if window is not None:
        extents = [-(-e // w) for e, w in zip(grid, window, strict=True)]
        return y[(slice(None), *metadata.region(extents))]
    if y.ndim == 3 and kind_named(metadata.kind).reads_lines:  # steps (N, T, outputs) count as columns of x
        columns = step_width(y.shape[1], padded[-1], metadata.columns_per_step)
        return y[:, : ceil(grid[-1] / columns)]
    return y


def step_width(steps: int, width: int, known: int | None = None) -> float:
    """The columns of x that one of the T steps of an output covers: those that are known, or the smallest
    integer w with ⌈width / w⌉ steps; else width / steps."""
    fitting = (w for w in (known, -(-width // steps)) if w and -(-width // w) == steps)
    return next(fitting, width / steps)


def restore(outputs: Mapping[str, Array], batch: Batch, metadata: Metadata) -> Array | dict[str, Array]:
    """Remove the axes that the user's x did not have; returns the only output, or all of them by name."""
    results = {}
    for name, y in outputs.items():
        axis = metadata.class_axis(y)
        has_features = metadata.windows[name] is not None and y.ndim == metadata.ndim + 2  # a mask has none
        # A network that takes x without channels has the axis in y for a reason of its own.
        is_plain = has_features and y.shape[axis] == 1 and metadata.channel_axis
        y = np.squeeze(y, axis) if is_plain and not batch.has_channel_axis else y
        results[name] = y if batch.has_batch_axis else y[0]
    return results if len(results) > 1 else next(iter(results.values()))
