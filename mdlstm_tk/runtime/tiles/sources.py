"""Grids in files, read by region as the network takes them: `.npy`, TIFF and zarr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.arrays import to_float32
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.preprocessing import Preprocessing
from mdlstm_tk.runtime.tiles.plan import Region
from mdlstm_tk.runtime.tiles.raw import open_npy

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".npy", ".zarr", *TIFF_SUFFIXES)


class Reader(Protocol):
    """An array that is read by region.

    Attributes:
        shape: (*grid), or (*grid, C).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, region: Region) -> Array:
        """The numbers in a region: a slice for each axis."""

    def close(self) -> None:
        """Close the file."""


class FileSource:
    """A file as the network takes it; see `mdlstm_tk.runtime.tiles.work.Source`.

    Args:
        path: of the file.
        metadata: of the network.
        level: of a TIFF with a pyramid, which of its levels.

    Attributes:
        grid: extents of the grid.
        has_channel_axis: whether the array has one; a grey image has none.

    Raises:
        InputError: the file does not exist, cannot be read, or does not fit the network.
        MissingExtraError: tifffile or zarr is needed and not installed.
    """

    def __init__(self, path: Path, metadata: Metadata, level: int = 0) -> None:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f"a tiled model reads {', '.join(SUFFIXES)} by region, got {path}; convert it")
        if level and suffix not in TIFF_SUFFIXES:
            raise InputError(f"--level names a level of a TIFF with a pyramid, but {path} is none")
        self._path = path
        self._preprocessing: Preprocessing | None = None
        self._reader: Reader
        if suffix in TIFF_SUFFIXES:
            from mdlstm_tk.runtime.tiles.tif import TifReader  # imported late: it needs tifffile

            self._preprocessing = _preprocessing(metadata, str(path))
            self._reader = TifReader(path, level)
        elif suffix == ".zarr":
            self._reader = _ZarrReader(path)
        else:
            self._reader = open_npy(path)
        try:
            self.grid = self._checked_grid(metadata)
        except BaseException:
            self.close()
            raise
        self._level = level
        self.has_channel_axis = len(self._reader.shape) > len(self.grid)
        if self._preprocessing is not None:
            self.has_channel_axis = self._preprocessing.channels > 1

    def read(self, region: Region) -> Array:
        """The values in a region: (*extents, C) float32."""
        channels = tuple(slice(0, extent) for extent in self._reader.shape[len(self.grid) :])
        values = self._reader.read((*region, *channels))
        if self._preprocessing is not None:
            values = self._preprocessing(values)
        values = to_float32(values, str(self._path))
        return values if values.ndim > len(self.grid) else values[..., None]

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that change if the file does."""
        path = self._path / "zarr.json" if self._path.is_dir() else self._path
        status = os.stat(path)
        return {
            "shape": list(self._reader.shape),
            "bytes": status.st_size,
            "modified": status.st_mtime_ns,
            "level": self._level,
        }

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _checked_grid(self, metadata: Metadata) -> tuple[int, ...]:
        shape, ndim = self._reader.shape, metadata.ndim
        channels = shape[ndim] if len(shape) > ndim else 1
        if self._preprocessing is not None:
            height, width = self._preprocessing.resized((shape[0], shape[1]))
            if (height, width) != shape[:2]:
                raise InputError(
                    f"the model resizes images to {height}x{width}, which needs the whole image at "
                    f"once; resize {self._path} first, or use another export"
                )
            channels = self._preprocessing.channels
        if len(shape) not in (ndim, ndim + 1) or channels != metadata.channels or 0 in shape:
            axes = " ".join(metadata.layout.split()[1:-1])
            raise InputError(
                f"{self._path} has shape {shape}, expected ({axes}, {metadata.channels}) with "
                f"{metadata.channels} channels, or ({axes}) if that is 1"
            )
        return shape[:ndim]


class _ZarrReader:
    """An array of zarr's format 3."""

    def __init__(self, path: Path) -> None:
        zarr: Any = require("zarr", "large")
        if not (path / "zarr.json").is_file():
            is_old = (path / ".zarray").exists() or (path / ".zgroup").exists()
            found = "of zarr's format 2" if is_old else "no zarr array"
            raise InputError(f"{path} is {found}; expected one of format 3, as zarr.create_array writes it")
        try:
            self._array: Any = zarr.open_array(str(path), mode="r", zarr_format=3)
        except Exception as error:  # zarr raises all kinds of exceptions for what is damaged
            raise InputError(
                f"{path} is no zarr array ({_one_line(error)}); if it is a group, name an array in it"
            ) from None
        if self._array.dtype.kind not in "buif":
            raise InputError(f"{path} holds {self._array.dtype}, expected real numbers")
        self.path, self.shape = path, tuple(self._array.shape)

    def read(self, region: Region) -> Array:
        try:
            return np.asarray(self._array[region])
        except Exception as error:  # zarr and its codecs raise all kinds of exceptions
            raise InputError(f"cannot read {self.path}: {_one_line(error)}") from None

    def close(self) -> None:
        pass


def _preprocessing(metadata: Metadata, label: str) -> Preprocessing:
    if metadata.ndim != 2:
        raise InputError(
            f"{label} is an image, but the model takes grids of {metadata.ndim} axes; give a .npy or .zarr"
        )
    if metadata.preprocessing is not None:
        return Preprocessing.from_json(metadata.preprocessing)
    if metadata.channels not in (1, 3):
        raise InputError(
            f"{label} is an image and gives 1 or 3 channels, but the model takes {metadata.channels}; "
            "give a .npy or .zarr"
        )
    return Preprocessing(metadata.channels)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
