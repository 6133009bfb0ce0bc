"""Results that are written by region: `.npy`, zarr, and TIFF, which is made from a `.npy` at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.io import Format
from mdlstm_tk.runtime.io.files import cannot_write, publish
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.postprocessing import check_scores, labels, mask_values, probabilities
from mdlstm_tk.runtime.tiles.mapped import create_npy
from mdlstm_tk.runtime.tiles.plan import Region
from mdlstm_tk.runtime.tiles.tif import write_tif


class FileOutput:
    """y (*grid, outputs) in a file that appears when all of it is written.

    Masks of segmenters go to a TIFF, and the network's outputs to all other files. The file lies in the
    folder `scratch` until it is finished; an interrupted run may have left it there. `squeeze` leaves out
    the axis of the outputs if there is one output.
    """

    def __init__(
        self,
        scratch: Path,
        file_format: Format,
        shape: tuple[int, ...],
        metadata: Metadata,
        chunks: tuple[int, ...],
        *,
        wants_probabilities: bool = False,
        squeeze: bool,
    ) -> None:
        self._format, self._path = file_format, scratch / "result"
        self._wants_probabilities, self._palette = wants_probabilities, None
        self._mask_values: tuple[int, ...] | None = None
        self._squeeze = squeeze and shape[-1] == 1 and not wants_probabilities
        dtype: np.dtype[Any] = np.dtype(np.float32)
        if kind_named(metadata.kind).tile_format == file_format and not wants_probabilities:
            self._mask_values = values = metadata.mask_values or tuple(range(metadata.outputs))
            dtype = mask_values(np.zeros(1, np.int64), values).dtype
            if metadata.mask_palette is not None and dtype == np.uint8:
                self._palette = np.zeros((256, 3), np.uint8)
                self._palette[list(values)] = np.reshape(metadata.mask_palette, (-1, 3))
        shape = shape[:-1] if self._squeeze or self._mask_values else shape
        if file_format == "tif":
            require("tifffile", "large")  # now rather than after hours
            if len(shape) not in (2, 3):
                raise InputError(f"tif holds (H, W) or (H, W, outputs), but the result has shape {shape}")
        try:
            self._array: Any = (
                _open_zarr(self._path, shape, chunks, dtype)
                if file_format == "zarr"
                else create_npy(self._path, shape, dtype)
            )
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def __setitem__(self, region: Region, block: Array) -> None:
        """Write y (*extents, outputs) for a region."""
        if self._wants_probabilities or self._mask_values:
            check_scores(block)
        if self._wants_probabilities:
            block = probabilities(block)
        elif self._mask_values:
            block = mask_values(labels(block), self._mask_values)
        try:
            self._array[region] = block[..., 0] if self._squeeze else block
        except OSError as error:
            raise cannot_write(self._path, error) from None

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
    if (path / "zarr.json").exists():
        return zarr.open_array(str(path), mode="r+")
    chunks = (*chunks, *shape[len(chunks) :])
    return zarr.create_array(str(path), shape=shape, chunks=chunks, dtype=dtype, zarr_format=3)
