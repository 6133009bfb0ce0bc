"""Check the arrays that a model is given, and convert between the user's axes and the model's.

This is the one place that knows where the layout of a model, such as "N H W C" or "N C H W", has its axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk._util.checks import check_unmasked
from mdlstm_tk._util.text import counted, reason_of
from mdlstm_tk.errors import Export, InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import Width
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, MORE_BYTES, Array, check_real, to_float32
from mdlstm_tk.runtime.metadata import Metadata

if TYPE_CHECKING:
    from mdlstm_tk.runtime.runner import TensorType

Grid = tuple[int, ...]

HALF_MAX = float(np.finfo(np.float16).max)  # 65504


@dataclass(frozen=True)
class Batch:
    """An array in the shape that the model takes, (N, *grid, C), or (N, C, *grid) for a channels-first
    model; if the user's array had the axes of the batch and of the channels; and the valid extents of the
    samples, (N, D) int64, if the user gave any."""

    samples: Array
    has_batch_axis: bool
    has_channel_axis: bool
    sizes: Array | None = None


def as_array(value: Any, label: str) -> Array:
    """The array that a user gave, such as one of NumPy, lists of equal lengths, or a tensor on the CPU;
    `label` names it in error messages.

    Raises:
        InputError: NumPy makes no array of it, or some of its values are masked.
    """
    check_unmasked(label, value)
    try:
        return np.asanyarray(value)
    except Exception as error:  # that of the value's own class, such as a tensor that needs a gradient
        name = type(value).__name__
        raise InputError(f"{label} is a {name} that is no array: {reason_of(error)}") from None


def as_image(value: Any, label: str) -> Array:
    """The pixels of an image that a user gave, as `decode_image` returns them: (H, W) or (H, W, 3), uint8,
    uint16 or float; (H, W, 1) becomes (H, W). `label` names them in error messages.

    Raises:
        InputError: they are no such image.
    """
    pixels = as_array(value, label)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise InputError(
            f"{label} has shape {pixels.shape}, expected (H, W), (H, W, 1) or (H, W, 3), as decode_image "
            "returns it"
        )
    if not (pixels.dtype.kind == "f" or (pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2)):
        raise InputError(f"{label} holds {pixels.dtype}, expected pixels of uint8, uint16 or float")
    return pixels


def step_width(steps: int, width: int, known: int | None = None) -> float:
    """The columns of x that one of the T steps of an output (N, T, outputs) covers: those that are known,
    or the smallest integer w, with ⌈width / w⌉ steps; else width / steps."""
    for columns in (*([known] if known else []), -(-width // steps)):
        if -(-width // columns) == steps:
            return columns
    return width / steps


def covered_width(steps: int, columns: int, width: int, known: int | None = None) -> Width:
    """The pixels that steps cover, of an image `width` pixels wide that was resized to `columns`, and that
    width; the columns of a step may be known."""
    return width / columns * steps * step_width(steps, columns, known), width


def grid_of(shape: tuple[int, ...], metadata: Metadata) -> Grid:
    """The extents of the grid in the shape of x, with or without batch and channel axes."""
    sample = shape[1:] if metadata.has_batch_axis(len(shape)) else shape
    if len(sample) == metadata.ndim:
        return sample
    return sample[:-1] if metadata.channels_last else sample[1:]


class Shapes:
    """The shapes that one model takes and returns. `inputs` are the types of its inputs by name, float32
    where one is missing; `max_bytes` is the largest size of an array as float32."""

    def __init__(
        self,
        metadata: Metadata,
        inputs: Mapping[str, TensorType] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.metadata, self._inputs, self._max_bytes = metadata, inputs or {}, max_bytes
        self.takes_sizes = "sizes" in metadata.inputs

    def prepare(self, x: Array, label: str = "x", sizes: Array | None = None) -> Batch:
        """Convert x to the dtype of the model, with batch and channel axes.

        Args:
            x: (*grid), (*grid, C) or (N, *grid, C); for a channels-first model (*grid), (C, *grid) or
                (N, C, *grid).
            label: name of x in error messages.
            sizes: valid extents of the samples; x may be anything outside them.
        """
        x = as_array(x, label)
        if x.size * FLOAT_BYTES > self._max_bytes:  # before a broadcast view is copied
            raise InputError(
                f"{label} of shape {x.shape} takes {x.size * FLOAT_BYTES} bytes as float32, more than "
                f"{self._max_bytes}",
                *(MORE_BYTES, ", or run it in tiles"),
            )
        batch = self.with_axes(x, label)
        samples = batch.samples
        if sizes is not None:
            sizes = self._prepare_sizes(as_array(sizes, "sizes"), samples)
            if not self.has_grid(grid := self.grid(samples)):
                raise InputError(
                    f"x with sizes must have the model's grid {self.metadata.grid}, got {grid}"
                )
            padded, samples = samples, np.zeros_like(samples)
            for sample, values, extents in zip(samples, padded, sizes, strict=True):
                region = self.region(extents)
                sample[region] = values[region]
        return replace(batch, samples=self._convert(samples, "x", label), sizes=sizes)

    def with_axes(self, x: Array, label: str = "x") -> Batch:
        """Add the batch and channel axes that x lacks, and check it; no value is read. See `prepare`."""
        check_real(x.dtype, label)
        has_batch_axis, has_channel_axis = self.check_shape(x.shape, label)
        samples = (
            x
            if has_channel_axis
            else np.expand_dims(x, -1 if self.metadata.channels_last else -self.metadata.ndim - 1)
        )
        return Batch(samples if has_batch_axis else samples[None], has_batch_axis, has_channel_axis)

    def check_shape(self, shape: tuple[int, ...], label: str) -> tuple[bool, bool]:
        """Check the shape of x as a user gives it; see `prepare`.

        Returns:
            True if it has the axis of the batch, and if it has that of the channels.
        """
        metadata = self.metadata
        if 0 in shape:
            raise InputError(f"{label} is empty: its shape is {shape}")
        if len(shape) not in range(metadata.ndim, metadata.ndim + 3):
            raise InputError(f"{label} has shape {shape}, expected {self._expected_shapes()}")
        first, last = -metadata.ndim - 1, -1
        axis, other_axis = (last, first) if metadata.channels_last else (first, last)
        has_batch_axis = metadata.has_batch_axis(len(shape))
        has_channel_axis = len(shape) - has_batch_axis > metadata.ndim
        channels = shape[axis] if has_channel_axis else 1
        if channels != metadata.channels:
            hint = ""
            if len(shape) == metadata.ndim + 1 and metadata.channels == 1:  # (N, H, W)
                hint = f"; if its first axis is the batch, give {label}[..., None]"
            elif has_channel_axis and shape[other_axis] == metadata.channels:
                hint = f"; move the channels with np.moveaxis({label}, {other_axis}, {axis})"
            raise InputError(
                f"{label} of shape {shape} has {counted(channels, 'channel')} at each position, "
                f"expected {metadata.channels}: {self._expected_shapes()}{hint}"
            )
        self._check_grid(grid_of(shape, metadata), label)
        return has_batch_axis, has_channel_axis

    def valid_parts(self, samples: Array, sizes: Array) -> list[Array]:
        """The part of each sample that lies inside its valid extents."""
        sizes = self._prepare_sizes(as_array(sizes, "sizes"), samples)
        return [sample[self.region(extents)] for sample, extents in zip(samples, sizes, strict=True)]

    def region(self, extents: Array) -> tuple[Any, ...]:
        """The index of the first positions along each axis of the grid of a sample."""
        slices = tuple(map(slice, extents))
        return (*slices, ...) if self.metadata.channels_last else (..., *slices)

    def _prepare_sizes(self, sizes: Array, samples: Array) -> Array:
        """Convert `sizes` to (N, D) int64, and check them."""
        grid, shape = self.grid(samples), (len(samples), self.metadata.ndim)
        if not self.takes_sizes:
            arguments = ", ".join(f"{name}=…" for name in self.metadata.inputs[1:])
            hint = f", but inputs by name, as in session(x, {arguments})" if arguments else ""
            padded = Export({"padded": True})
            raise InputError(f"this model takes no sizes{hint}; make one that does with: ", padded)
        if sizes.shape != shape or sizes.dtype.kind not in "iu":
            raise InputError(
                f"sizes must be integers of shape (N, D) = {shape}, "
                f"got {sizes.dtype} of shape {sizes.shape}"
            )
        if (sizes < 1).any() or (sizes > grid).any():
            raise InputError(
                f"sizes must lie between 1 and the extents of the grid {grid}, "
                f"got values from {sizes.min()} to {sizes.max()}"
            )
        if (sizes % (self.metadata.multiple_of or 1)).any():
            raise InputError(f"sizes must be multiples of {self.metadata.multiple_of}, as this model needs")
        if (sizes < self._least).any():
            from mdlstm_tk._util.sizes import format_size  # imported late: most sizes fit

            raise InputError(f"sizes must be at least {format_size(self._least)}, as this model needs")
        return sizes.astype(np.int64)

    def prepare_extra_inputs(self, extra_inputs: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
        """Convert the inputs beside x and `sizes` to their dtypes, with a batch axis, and check them."""
        expected = [name for name in self.metadata.inputs[1:] if name != "sizes"]
        if set(extra_inputs) != set(expected):
            arguments = ", ".join(f"{name}=…" for name in expected)
            hint = f"; give them by name, as in session(x, {arguments})" if expected else ""
            raise InputError(
                f"the extra inputs of this model are {', '.join(expected) or 'none'}; "
                f"got {', '.join(extra_inputs) or 'none'}{hint}"
            )
        prepared = {}
        for name in expected:  # in one order, as graphs on CUDA are known by the shapes of their inputs
            array = as_array(extra_inputs[name], name)
            array = array if batch.has_batch_axis else array[None]
            if array.shape[:1] != batch.samples.shape[:1]:
                raise InputError(
                    f"{name} must have the batch of x, {len(batch.samples)}; got shape {array.shape}"
                )
            self._check_extents(name, array, batch)
            prepared[name] = self._convert(array, name, name)
        return prepared

    def _check_extents(self, name: str, array: Array, batch: Batch) -> None:
        """Check the axes of a further input (N, …), and the extents that the model fixes, or that are free
        along with those of x."""
        extents = self._inputs[name].shape[1:] if name in self._inputs else array.shape[1:]
        grid = zip(self.grid(batch.samples), self.metadata.extents, strict=True)
        free = [extent for extent, fixed in grid if fixed is None]
        if extents.count(None) == len(free):
            extents = tuple(free.pop(0) if extent is None else extent for extent in extents)
        pairs = zip(array.shape[1:], extents, strict=False)
        if array.ndim - 1 != len(extents) or any(e not in (have, None) for have, e in pairs):
            shape = ", ".join(
                ["N"] * batch.has_batch_axis + ["*" if e is None else str(e) for e in extents]
            )
            got = array.shape if batch.has_batch_axis else array.shape[1:]
            raise InputError(f"{name} must have the shape ({shape}), got {got}")

    def pad(self, parts: Sequence[Array]) -> tuple[Array, Array]:
        """Concatenate parts (N_k, *grid_k, C) of different grids, padded with zeros to one grid: the
        model's own or, where that is free, the largest extent. Returns the batch (N, *grid, C), and the
        valid extents of its samples, (N, D) int64."""
        grids = [self.grid(part) for part in parts]
        grid = self.metadata.grid_like(tuple(np.max(grids, axis=0).tolist()))
        nbytes = prod(self.sample_shape(grid)) * FLOAT_BYTES
        if nbytes > self._max_bytes:
            raise InputError(
                f"a sample padded to the grid {grid} takes {nbytes} bytes as float32, more than "
                f"{self._max_bytes}",
                MORE_BYTES,
            )
        batch = np.zeros((sum(map(len, parts)), *self.sample_shape(grid)), parts[0].dtype)
        start = 0
        for part in parts:
            batch[start : start + len(part), *map(slice, part.shape[1:])] = part
            start += len(part)
        return batch, np.repeat(np.asarray(grids, np.int64), [len(part) for part in parts], axis=0)

    def crop(self, outputs: Mapping[str, Array], grid: Grid, padded: Grid) -> dict[str, Array]:
        """The part of each output (N, *padded', outputs) that belongs to `grid`; where steps
        count as columns, the first ones. Another output without a grid is left as it is."""
        result = {}
        for name, y in outputs.items():
            window = self.metadata.windows[name]
            if window is not None:
                inner = tuple(slice(-(-extent // w)) for extent, w in zip(grid, window, strict=True))
                y = y[:, *inner] if self.metadata.channels_last else y[:, :, *inner]
            elif kind_named(self.metadata.kind).steps_are_columns and y.ndim == 3:
                known = self.metadata.columns_per_step
                y = y[:, : ceil(grid[-1] / step_width(y.shape[1], padded[-1], known))]
            result[name] = y
        return result

    def is_output_of(self, name: str, y: Array, samples: Array) -> bool:
        """True if an output has the batch of x, and the grid and the features that the metadata say."""
        metadata, window = self.metadata, self.metadata.windows[name]
        if y.shape[:1] != samples.shape[:1]:
            return False
        is_first = name == metadata.output_names[0]  # of which the metadata tell the features; 1: or none
        if is_first and metadata.outputs not in (1, *y.shape[1:2], *y.shape[-1:]):
            return False
        if window is None:
            return True
        extents = tuple(-(-extent // w) for extent, w in zip(self.grid(samples), window, strict=True))
        return y.ndim == metadata.ndim + 2 and grid_of(y.shape, metadata) == extents

    def restore_axes(self, outputs: Mapping[str, Array], batch: Batch) -> Array | dict[str, Array]:
        """Remove the batch and channel axes of the outputs that the user's array did not have; returns the
        only output, or all of them by name."""
        result = {}
        for name, y in outputs.items():
            axis = self.feature_axis(y)
            has_one_feature = self.metadata.windows[name] is not None and y.shape[axis] == 1
            # A network that takes x without channels has the axis in y for a reason of its own.
            if has_one_feature and not batch.has_channel_axis and self.metadata.channel_axis:
                y = np.squeeze(y, axis)
            result[name] = y if batch.has_batch_axis else y[0]
        return result if len(result) > 1 else result.popitem()[1]

    def feature_axis(self, y: Array) -> int:
        """The axis of an output (N, …) that holds its features: 1 if it has a grid and the model is
        channels-first, else the last one."""
        return 1 if not self.metadata.channels_last and y.ndim == self.metadata.ndim + 2 else -1

    def sample_shape(self, grid: Grid) -> tuple[int, ...]:
        """The shape of one sample on a grid: (*grid, C), or (C, *grid) for a channels-first model."""
        channels = self.metadata.channels
        return (*grid, channels) if self.metadata.channels_last else (channels, *grid)

    def grid(self, samples: Array) -> Grid:
        """The extents of the grid in (N, *grid, C), or in (N, C, *grid) for a channels-first model."""
        return grid_of(samples.shape, self.metadata)

    def takes(self, grid: Grid) -> bool:
        """True if the model takes a grid of these extents."""
        extents = self.metadata.extents
        if len(grid) != len(extents) or not self._is_multiple(grid) or self._is_too_small(grid):
            return False
        is_smaller = all(cap is None or e <= cap for e, cap in zip(grid, extents, strict=True))
        return self.has_grid(grid) or (self.takes_sizes and is_smaller)

    def _is_multiple(self, grid: Grid) -> bool:
        return not any(e % m for e, m in zip(grid, self.metadata.multiple_of or (), strict=False))

    def _is_too_small(self, grid: Grid) -> bool:
        return any(e < least for e, least in zip(grid, self._least, strict=True))

    @property
    def _least(self) -> Grid:
        """The least extents along free axes; padded samples may have any along the others."""
        least = self.metadata.min_grid or (1,) * self.metadata.ndim
        return tuple(1 if e else m for m, e in zip(least, self.metadata.extents, strict=True))

    def _check_grid(self, grid: Grid, label: str) -> None:
        if self.takes(grid):
            return
        from mdlstm_tk._util.sizes import format_size  # imported late: most grids fit

        extents, multiple_of = self.metadata.extents, self.metadata.multiple_of or ()
        what = f"{label} has a {format_size(grid)} grid, which does not fit this"
        if not self._is_multiple(grid):
            larger = tuple(-(-e // m) * m for e, m in zip(grid, multiple_of, strict=True))
            raise InputError(
                f"{what} model, whose extents must be multiples of "
                f"{format_size(multiple_of)}; pad or resize it to {format_size(larger)}"
            )
        if self._is_too_small(grid):
            raise InputError(
                f"{what} model, whose network takes extents of at least "
                f"{format_size(self.metadata.min_grid or ())}; pad or resize it"
            )
        raise InputError(f"{what} {format_size(extents)} model; ", *self.advice_for(grid))

    def advice_for(self, grid: Grid) -> tuple[str | Export, ...]:
        """How to run a grid that the model does not take."""
        from mdlstm_tk._util.sizes import format_size  # imported late: most grids fit

        resize = (self.metadata.preprocessing or {}).get("resize") or (None,) * len(grid)
        fixed = [(r, e, own) for r, e, own in zip(resize, grid, self.metadata.extents, strict=True) if r]
        if all(own in (None, r) for r, _, own in fixed) and any(r != e for r, e, _ in fixed):
            return (f"resize it to {format_size(resize)}, as images are for this model",)
        return "make one with: ", Export({"grid": grid}), ", or for any size: ", Export({"form": "scan"})

    def has_grid(self, grid: Grid) -> bool:
        """True if a grid has the fixed extents of the model."""
        return all(size in (None, extent) for size, extent in zip(self.metadata.extents, grid, strict=True))

    def _convert(self, array: Array, name: str, label: str) -> Array:
        """An array in the dtype of an input of the model, which may take whole numbers alone."""
        dtype = self._inputs[name].dtype if name in self._inputs else "float32"
        converted = to_float32(array, label)
        if name == "x" and (wrong := kind_named(self.metadata.kind).outside_range(converted)):
            raise InputError(f"{label} has {wrong}")
        is_float = dtype in ("float32", "float64", "float16")
        if (not is_float or (name == "x" and self.metadata.integer)) and (converted % 1).any():
            raise InputError(f"{label} holds fractions; this model takes whole numbers")
        if name == "x" and self.metadata.integer and (np.abs(converted) >= 2**24).any():
            raise InputError(
                f"{label} holds values from {array.min()} to {array.max()}; this model takes whole numbers "
                "as float32, below 2^24 = 16777216"
            )
        if is_float:
            is_half = "float16" in (dtype, self.metadata.dtype) and not (
                name == "x" and self.metadata.integer
            )
            largest = float(np.abs(converted).max(initial=0)) if is_half else 0.0
            if largest > HALF_MAX:
                raise InputError(
                    f"{label} holds values up to {largest:.6g}, which this model, in float16, cannot hold; "
                    f"scale them to at most {HALF_MAX:g}, as in training, or export it in float32"
                )
            return converted.astype(dtype, copy=False)
        with np.errstate(invalid="ignore"):  # NumPy wraps integers around, and floats become any integer
            whole = array.astype(dtype)
        if (whole != array).any():
            raise InputError(
                f"{label} holds values from {array.min()} to {array.max()}; this model takes {dtype}"
            )
        return whole

    def _expected_shapes(self) -> str:
        axes = self.metadata.layout.split()[1:]
        grid_axes = ", ".join(axis for axis in axes if axis != "C")
        sample_axes = ", ".join(axes)
        grid = ", ".join("any" if extent is None else str(extent) for extent in self.metadata.extents)
        extents = "" if self.metadata.grid is None else f" with ({grid_axes}) = ({grid})"
        return f"({grid_axes}), ({sample_axes}) or (N, {sample_axes}){extents}"
