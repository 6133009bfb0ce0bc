"""What a model takes and gives: shapes of arrays, checked and brought to those of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.arrays import check_numbers
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.metadata import Metadata

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """An array as the model takes it.

    Attributes:
        rows: (N, *grid, C), or (N, C, *grid).
        batched: whether the array had the batch axis.
        flat: whether it had neither that nor the channels'.
    """

    rows: Array
    batched: bool
    flat: bool


class Shapes:
    """The shapes of one model."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.takes_sizes = "sizes" in metadata.inputs

    def rows(self, x: Array, shown: str = "x") -> Rows:
        """x, if the model takes it.

        Raises:
            InputError: it has another shape, is empty or is not finite; names the grid that would fit.
        """
        about = self.metadata
        x = check_numbers(np.asarray(x), shown)
        flat, batched = x.ndim == about.ndim, x.ndim == about.ndim + 2
        if not flat and not batched and x.ndim != about.ndim + 1:
            raise InputError(f"{shown} has shape {x.shape}, expected {self._expected()}")
        channel_axis = -1 if about.channels_last else -about.ndim - 1
        rows = np.expand_dims(x, channel_axis) if flat else x
        channels = rows.shape[channel_axis]
        if channels != about.channels:
            raise InputError(
                f"{shown} of shape {x.shape} has {channels} channels at each position, "
                f"the model takes {about.channels}"
            )
        rows = rows if batched else rows[None]
        self._check_grid(self.grid(rows))
        return Rows(rows, batched, flat)

    def grid(self, rows: Array) -> Grid:
        """The extents of (N, *grid, C), or of (N, C, *grid)."""
        return rows.shape[1:-1] if self.metadata.channels_last else rows.shape[2:]

    def sizes(self, sizes: Array, rows: Array) -> Array:
        """sizes as (N, D) int64, if they fit the samples in `rows`.

        Raises:
            InputError: the model takes none, or they have another shape or type or lie outside the grid.
        """
        sizes, grid = np.asarray(sizes), self.grid(rows)
        wanted = (len(rows), self.metadata.ndim)
        if not self.takes_sizes:
            raise InputError("this model takes no sizes; make one that does with: mdlstm export --sizes")
        if self.metadata.grid not in (None, grid):
            raise InputError(f"x with sizes must have the model's grid {self.metadata.grid}, got {grid}")
        if sizes.shape != wanted or sizes.dtype.kind not in "iu":
            raise InputError(
                f"sizes must be whole numbers of shape (N, D) = {wanted}, "
                f"got {sizes.dtype} of shape {sizes.shape}"
            )
        if (sizes < 1).any() or (sizes > grid).any():
            raise InputError(f"sizes must lie between 1 and the extents of the grid {grid}")
        return sizes.astype(np.int64)

    def others(self, others: Mapping[str, Array], x: Rows) -> dict[str, Array]:
        """The inputs beside x and sizes, with a batch axis.

        Raises:
            InputError: one is missing, too many, or of another batch.
        """
        wanted = [name for name in self.metadata.inputs[1:] if name != "sizes"]
        if set(others) != set(wanted):
            takes = f"takes {', '.join(wanted)}" if wanted else "takes no other input"
            raise InputError(f"beside x this model {takes}; got {', '.join(others) or 'none'}")
        given = {}
        for name, value in others.items():
            array = np.asarray(value) if x.batched else np.asarray(value)[None]
            if len(array) != len(x.rows):
                raise InputError(f"{name} must have a batch of {len(x.rows)} as x has, got {array.shape}")
            given[name] = array.astype(np.int64) if array.dtype.kind in "iu" else check_numbers(array, name)
        return given

    def padded(self, parts: Sequence[Array]) -> tuple[Array, Array]:
        """`parts` in one batch, padded to the model's grid or, if that is free, to the largest; and sizes.

        Sizes are (N, D) int64.
        """
        about = self.metadata
        grids = [self.grid(rows) for rows in parts]
        grid = about.grid or tuple(np.max(grids, axis=0).tolist())
        shape = (*grid, about.channels) if about.channels_last else (about.channels, *grid)
        batch = np.zeros((sum(map(len, parts)), *shape), np.float32)
        first = 0
        for rows in parts:
            batch[first : first + len(rows), *map(slice, rows.shape[1:])] = rows
            first += len(rows)
        return batch, np.repeat(np.asarray(grids, np.int64), [len(rows) for rows in parts], axis=0)

    def cropped(self, y: Array, grid: Grid) -> Array:
        """What belongs to a grid of these extents in y, which was computed for a larger one."""
        if self.metadata.window is None:
            return y
        extents = (-(-extent // block) for extent, block in zip(grid, self.metadata.window, strict=True))
        inner = tuple(map(slice, extents))
        return y[:, *inner] if self.metadata.channels_last else y[:, :, *inner]

    def result(self, y: Array, x: Rows) -> Array:
        """y with the axes that x had."""
        y = y if x.batched else y[0]
        if not x.flat or self.metadata.window is None or self.metadata.outputs > 1:
            return y
        return y[..., 0] if self.metadata.channels_last else y[0]

    def _check_grid(self, grid: Grid) -> None:
        own = self.metadata.grid
        if own is None or grid == own:
            return
        if self.takes_sizes and all(extent <= limit for extent, limit in zip(grid, own, strict=True)):
            return
        given, wanted = "x".join(map(str, grid)), "x".join(map(str, own))
        raise InputError(
            f"a {given} grid does not fit this {wanted} model; "
            f"make one with: mdlstm export --size {given}, or for any size: mdlstm export --form scan"
        )

    def _expected(self) -> str:
        axes = self.metadata.layout.split()[1:]
        bare = ", ".join(axis for axis in axes if axis != "C")
        full = ", ".join(axes)
        extents = "" if self.metadata.grid is None else f" with ({bare}) = {self.metadata.grid}"
        return f"({bare}), ({full}) or (N, {full}){extents}"
