"""Results that are written by region: `.npy`, zarr, and TIFF, which is made from a `.npy` at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.postprocessing import labels, mask_values, probabilities
from mdlstm_tk.runtime.tiles.plan import Region
from mdlstm_tk.runtime.tiles.raw import RawArray, create_npy
from mdlstm_tk.runtime.tiles.tif import write_tif

GridFormat = Literal["npy", "tif", "zarr"]
GRID_FORMATS: tuple[GridFormat, ...] = ("npy", "tif", "zarr")


class FileOutput:
    """y in a file that appears when all of it is written.

    Masks of segmenters go to a TIFF, and the network's outputs to all other files; see
    `mdlstm_tk.runtime.tiles.work.Output`.

    Args:
        scratch: folder for the file until it is finished.
        file_format: of the result.
        shape: of y, (*grid, outputs).
        metadata: of the network.
        chunks: extents of a chunk of zarr.
        wants_probabilities: write the probability of each class.
        squeeze: leave out the axis of the outputs if there is one output.

    Raises:
        InputError: the format cannot hold the result.
        MDLSTMError: the disk is full.
        MissingExtraError: zarr or tifffile is needed and not installed.
    """

    def __init__(
        self,
        scratch: Path,
        file_format: GridFormat,
        shape: tuple[int, ...],
        metadata: Metadata,
        chunks: tuple[int, ...],
        *,
        wants_probabilities: bool = False,
        squeeze: bool,
    ) -> None:
        self._format, self._path = file_format, scratch / "result"
        self._convert, dtype, keeps = self._conversion(metadata, wants_probabilities, squeeze)
        shape = shape if keeps else shape[:-1]
        self._palette: list[int] | None = None
        if file_format == "tif":
            require("tifffile", "large")  # now rather than after hours
            if len(shape) not in (2, 3):
                raise InputError(f"tif holds (H, W) or (H, W, outputs), but the result has shape {shape}")
            if dtype == np.uint8 and not keeps and metadata.mask_palette is not None:
                self._palette = _palette(metadata)
        self._array: Any
        if file_format == "zarr":
            chunks = (*chunks, *shape[len(chunks) :])
            self._array = _zarr_array(self._path, shape, chunks, dtype)
        else:
            self._array = create_npy(self._path, shape, np.dtype(dtype))

    def write(self, region: Region, block: Array) -> None:
        """Write y (*extents, outputs) for a region."""
        values = self._convert(block)
        if isinstance(self._array, RawArray):
            axes = tuple(slice(0, extent) for extent in self._array.shape[len(region) :])
            self._array.write((*region, *axes), values)
            return
        try:
            self._array[region] = values
        except OSError as error:
            raise MDLSTMError(f"cannot write {self._path}: {error.strerror or error}") from None

    def finish(self, target: Path) -> None:
        """Move what is written to its place.

        Raises:
            MDLSTMError: the disk is full.
        """
        path = self._path
        if self._format == "tif":
            path = self._path.with_suffix(".tif")
            write_tif(path, self._array, self._palette)
        self.close()
        import shutil  # imported late: it imports modules that most calls do not need

        try:
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        except OSError as error:
            raise MDLSTMError(f"cannot write {target}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._array, RawArray):
            self._array.close()

    def _conversion(
        self, metadata: Metadata, wants_probabilities: bool, squeeze: bool
    ) -> tuple[Callable[[Array], Array], Any, bool]:
        """How y becomes what is written, of which dtype, and whether it keeps the axis of the outputs."""
        if wants_probabilities:
            return probabilities, np.float32, True
        if metadata.kind == "segment" and self._format == "tif":
            values = metadata.mask_values or tuple(range(metadata.outputs))
            dtype = mask_values(np.zeros(1, np.int64), values).dtype
            return lambda y: mask_values(labels(y), values), dtype, False
        if squeeze and metadata.outputs == 1:
            return lambda y: y[..., 0], np.float32, False
        return lambda y: y, np.float32, True


def _palette(metadata: Metadata) -> list[int]:
    """Red, green and blue of each value of a mask."""
    values = metadata.mask_values or tuple(range(metadata.outputs))
    colours = np.zeros((max(values) + 1, 3), np.uint8)
    colours[list(values)] = np.asarray(metadata.mask_palette).reshape(-1, 3)
    return [int(value) for value in colours.ravel()]


def _zarr_array(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: Any) -> Any:
    """Create a zarr array to write by region, or open the one that an interrupted run left.

    Raises:
        MDLSTMError: it cannot be written.
    """
    zarr: Any = require("zarr", "large")
    try:
        if (path / "zarr.json").exists():
            return zarr.open_array(str(path), mode="r+")
        return zarr.create_array(str(path), shape=shape, chunks=chunks, dtype=dtype, zarr_format=3)
    except OSError as error:
        raise MDLSTMError(f"cannot write {path}: {error.strerror or error}") from None
