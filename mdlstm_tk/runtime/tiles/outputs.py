"""Results that are written by region: `.npy`, zarr, and TIFF, which is made from a `.npy` at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import Argument, InputError, MDLSTMError, require
from mdlstm_tk.runtime.answers import numbers_of
from mdlstm_tk.runtime.io import Format
from mdlstm_tk.runtime.io.files import cannot_write, publish
from mdlstm_tk.runtime.io.npy import Array, warn_if_not_finite
from mdlstm_tk.runtime.jobs import Content
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.tiles.mapped import create_npy
from mdlstm_tk.runtime.tiles.plan import Region
from mdlstm_tk.runtime.tiles.tif import write_tif


class FileOutput:
    """The numbers of a content for y (*grid, outputs), in a file that appears when all of it is written.

    The file lies in the folder `scratch` until it is finished; an interrupted run may have left it there.
    `squeeze` leaves out the axis of the outputs if there is one output; `label` names x in a warning.

    Attributes:
        is_new: there was no file.
    """

    def __init__(
        self,
        scratch: Path,
        file_format: Format,
        shape: tuple[int, ...],
        metadata: Metadata,
        chunks: tuple[int, ...],
        content: Content,
        *,
        squeeze: bool,
        label: str = "x",
    ) -> None:
        self._label, self._is_warned = label, False
        self._format, self._path = file_format, scratch / "result"
        self.is_new = not self._path.exists()
        self._metadata, self._content, self._squeeze = metadata, content, squeeze and shape[-1] == 1
        ndim, self._palette = metadata.ndim, None
        one = self._numbers(np.zeros((*(1,) * ndim, shape[-1]), np.float32))  # of one position
        shape, dtype = (*shape[:-1], *one.shape[ndim:]), one.dtype
        if file_format == "tif":
            require("tifffile", "large")  # now rather than after hours
            if ndim != 2 or len(shape) > 3:
                raise InputError(f"tif holds (H, W) or (H, W, outputs), but the result has shape {shape}")
            if content == "answers" and metadata.mask_palette is not None and dtype == np.uint8:
                self._palette = np.zeros((256, 3), np.uint8)
                values = metadata.mask_values or range(metadata.outputs)
                self._palette[list(values)] = np.reshape(metadata.mask_palette, (-1, 3))
        try:
            self._array: Any = (
                _open_zarr(self._path, shape, chunks, dtype)
                if file_format == "zarr"
                else create_npy(self._path, shape, dtype)
            )
        except OSError as error:
            raise cannot_write(self._path, error) from None
        if (self._array.shape, self._array.dtype) != (shape, dtype):
            text = (
                f"{self._path} holds {self._array.dtype} of shape {self._array.shape}, expected {dtype} of "
            )
            raise MDLSTMError(text, f"{shape}; start over with ", Argument("force", True))

    def __setitem__(self, region: Region, block: Array) -> None:
        """Write y (*extents, outputs) for a region."""
        numbers = self._numbers(block)
        try:
            self._array[region] = numbers
        except OSError as error:
            raise cannot_write(self._path, error) from None
        if not self._is_warned:
            self._is_warned = warn_if_not_finite(f"a tile of {self._label}", numbers)

    def _numbers(self, block: Array) -> Array:
        numbers = numbers_of(block, self._metadata, self._content)
        if numbers.shape[: self._metadata.ndim] != block.shape[:-1]:
            text = (
                f"{self._content} of kind {self._metadata.kind} have shape {numbers.shape} for a tile of "
            )
            needed = f"{block.shape[:-1]} positions; choose a format of the network's outputs with "
            raise InputError(text, needed, Argument("output_format"))
        return numbers[..., 0] if self._squeeze and numbers.ndim == block.ndim else numbers

    def finish(self, target: Path, *, replace: bool = True) -> None:
        """Move the complete file to `target`, see `publish`."""
        path = self._path
        try:
            if self._format == "tif":
                path = self._path.with_suffix(".tif")
                write_tif(path, self._array, self._palette)
            publish(path, Path(os.path.realpath(target)), replace=replace)
        except OSError as error:
            raise cannot_write(target, error) from None


def _open_zarr(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: Any) -> Any:
    """Create a zarr array to write by region, or open the one that an interrupted run left."""
    zarr: Any = require("zarr", "large")
    store = zarr.storage.LocalStore(path)  # a path may be taken for a chain of URLs
    if (path / "zarr.json").exists():
        return zarr.open_array(store, mode="r+")
    chunks = (*chunks, *shape[len(chunks) :])
    return zarr.create_array(store, shape=shape, chunks=chunks, dtype=dtype, zarr_format=3)
