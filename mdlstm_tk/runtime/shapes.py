"""Check the arrays that a model is given, and convert between the user's axes and the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.arrays import to_float32
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.sizes import format_size

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """An array in the shape that the model takes.

    Attributes:
        samples: (N, *grid, C), or (N, C, *grid) for a channels-first model.
        has_batch_axis: whether the user's array had the batch axis.
        has_channel_axis: whether the user's array had the channel axis.
    """

    samples: Array
    has_batch_axis: bool
    has_channel_axis: bool


class Shapes:
    """The shapes that one model takes and returns.

    Args:
        metadata: of the model.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.takes_sizes = "sizes" in metadata.inputs

    def prepare(self, x: Array, label: str = "x") -> Batch:
        """Convert x to float32 with batch and channel axes.

        Args:
            x: (*grid), (*grid, C) or (N, *grid, C).
            label: what error messages call x.

        Raises:
            InputError: x has the wrong shape, is empty or is not finite. If the grid is wrong, the message
                names the one that fits.
        """
        metadata = self.metadata
        x = to_float32(np.asarray(x), label)
        missing_axes = metadata.ndim + 2 - x.ndim
        if missing_axes not in (0, 1, 2):
            raise InputError(f"{label} has shape {x.shape}, expected {self._expected_shapes()}")
        channel_axis = -1 if metadata.channels_last else -metadata.ndim - 1
        samples = np.expand_dims(x, channel_axis) if missing_axes == 2 else x
        channels = samples.shape[channel_axis]
        if channels != metadata.channels:
            raise InputError(
                f"{label} of shape {x.shape} has {channels} channels at each position, "
                f"expected {metadata.channels}"
            )
        samples = samples if missing_axes == 0 else samples[None]
        self._check_grid(self.grid(samples))
        return Batch(samples, has_batch_axis=missing_axes == 0, has_channel_axis=missing_axes < 2)

    def prepare_sizes(self, sizes: Array, batch: Batch) -> Array:
        """Convert `sizes` to (N, D) int64.

        Raises:
            InputError: the model takes no `sizes`, or they have the wrong shape or type or exceed the grid.
        """
        sizes, grid = np.asarray(sizes), self.grid(batch.samples)
        shape = (len(batch.samples), self.metadata.ndim)
        if not self.takes_sizes:
            raise InputError("this model takes no sizes; make one that does with: mdlstm export --padded")
        if self.metadata.grid not in (None, grid):
            raise InputError(f"x with sizes must have the model's grid {self.metadata.grid}, got {grid}")
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
        return sizes.astype(np.int64)

    def prepare_extra_inputs(self, extra_inputs: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
        """Convert the inputs beside x and `sizes` to float32 or int64 with a batch axis.

        Raises:
            InputError: one is missing, unknown, or of another batch than x.
        """
        expected = [name for name in self.metadata.inputs[1:] if name != "sizes"]
        if set(extra_inputs) != set(expected):
            raise InputError(
                f"the extra inputs of this model are {', '.join(expected) or 'none'}; "
                f"got {', '.join(extra_inputs) or 'none'}"
            )
        prepared = {}
        for name, value in extra_inputs.items():
            array = np.asarray(value) if batch.has_batch_axis else np.asarray(value)[None]
            if len(array) != len(batch.samples):
                raise InputError(
                    f"{name} must have the batch of x, {len(batch.samples)}; got shape {array.shape}"
                )
            is_integer = array.dtype.kind in "iu"
            prepared[name] = array.astype(np.int64) if is_integer else to_float32(array, name)
        return prepared

    def padded(self, parts: Sequence[Array]) -> tuple[Array, Array]:
        """Concatenate parts of different grids, padded with zeros to one grid.

        The grid is the model's own or, if the model takes any, the largest extent along each axis.

        Args:
            parts: arrays (N_k, *grid_k, C).

        Returns:
            The batch (N, *grid, C), and the valid extents of its samples, (N, D) int64.
        """
        metadata = self.metadata
        grids = [self.grid(part) for part in parts]
        grid = metadata.grid or tuple(np.max(grids, axis=0).tolist())
        shape = (*grid, metadata.channels) if metadata.channels_last else (metadata.channels, *grid)
        batch = np.zeros((sum(map(len, parts)), *shape), np.float32)
        start = 0
        for part in parts:
            batch[start : start + len(part), *map(slice, part.shape[1:])] = part
            start += len(part)
        return batch, np.repeat(np.asarray(grids, np.int64), [len(part) for part in parts], axis=0)

    def cropped(self, y: Array, grid: Grid) -> Array:
        """The part of y (N, *grid', outputs), computed for a larger grid, that belongs to `grid`."""
        if self.metadata.window is None:
            return y
        extents = (-(-extent // window) for extent, window in zip(grid, self.metadata.window, strict=True))
        inner = tuple(map(slice, extents))
        return y[:, *inner] if self.metadata.channels_last else y[:, :, *inner]

    def restore_axes(self, y: Array, batch: Batch) -> Array:
        """Remove the batch and channel axes of y that the user's array did not have."""
        y = y if batch.has_batch_axis else y[0]
        if batch.has_channel_axis or self.metadata.window is None or self.metadata.outputs > 1:
            return y
        return y[..., 0] if self.metadata.channels_last else y[0]

    def grid(self, samples: Array) -> Grid:
        """The extents of the grid in (N, *grid, C), or in (N, C, *grid) for a channels-first model."""
        return samples.shape[1:-1] if self.metadata.channels_last else samples.shape[2:]

    def _check_grid(self, grid: Grid) -> None:
        model_grid = self.metadata.grid
        if model_grid is None or grid == model_grid:
            return
        if self.takes_sizes and all(
            extent <= limit for extent, limit in zip(grid, model_grid, strict=True)
        ):
            return
        size = format_size(grid)
        raise InputError(
            f"a {size} grid does not fit this {format_size(model_grid)} model; "
            f"make one with: mdlstm export --size {size}, or for any size: mdlstm export --form scan"
        )

    def _expected_shapes(self) -> str:
        axes = self.metadata.layout.split()[1:]
        grid_axes = ", ".join(axis for axis in axes if axis != "C")
        sample_axes = ", ".join(axes)
        extents = "" if self.metadata.grid is None else f" with ({grid_axes}) = {self.metadata.grid}"
        return f"({grid_axes}), ({sample_axes}) or (N, {sample_axes}){extents}"
