"""Grids that are read by region as the network takes them: arrays, `.npy`, TIFF and zarr."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.text import reason_of
from mdlstm_tk.errors import Argument, InputError, require
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.io import READABLE_IN_TILES
from mdlstm_tk.runtime.io.npy import Array, check_real, to_float32
from mdlstm_tk.runtime.io.readers import check_scaled, preprocessing_for, raw_pixels, takes_pixels
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.runtime.tiles.mapped import open_npy
from mdlstm_tk.runtime.tiles.plan import Region

TIFF_SUFFIXES = (".tif", ".tiff")


class GridSource:
    """An array that is read by region, as the network takes it.

    Args:
        values: (*grid, C), or (*grid) if C is 1: an array of NumPy or zarr, or another object with `shape`
            that is indexed by region.
        metadata, label: of the network, and the array's name in error messages.
        prepare: makes (*extents, C) of the values in a region.
        channels: number of channels that `prepare` makes; None: those of the array.
        warns_of_pixels: warn of whole numbers beyond 1, see `raw_pixels`.
    """

    def __init__(
        self,
        values: Any,
        metadata: Metadata,
        label: str,
        prepare: Callable[[Array], Array] = np.asarray,
        channels: int | None = None,
        warns_of_pixels: bool = False,
    ) -> None:
        self._warns_of_pixels, self._kind = warns_of_pixels, kind_named(metadata.kind)
        self.grid = values.shape[: metadata.ndim]
        self._values, self._label, self._prepare = values, label, prepare
        shape = values.shape if channels is None else (*self.grid, *([channels] * (channels > 1)))
        has_batch_axis, self.has_channel_axis = Shapes(metadata).check_shape(shape, label)
        if has_batch_axis:
            raise InputError(f"{label} has shape {shape}, expected one sample, without a batch axis")

    def read(self, region: Region) -> Array:
        """The values in a region: (*extents, C) float32."""
        try:
            values = self._prepare(self._values[region])
        except Exception as error:  # zarr, tifffile and their codecs raise all kinds of exceptions
            raise InputError(f"cannot read {self._label}: {reason_of(error)}") from None
        if self._warns_of_pixels and (warning := raw_pixels(self._label, values)):
            warnings.warn(warning, stacklevel=2)
            self._warns_of_pixels = False  # once is enough
        values = to_float32(values, self._label)
        if wrong := self._kind.outside_range(values):
            raise InputError(f"{self._label} has {wrong}")
        return values if values.ndim > len(self.grid) else values[..., None]


def open_source(path: Path, metadata: Metadata, level: int, stack: ExitStack) -> GridSource:
    """Open a file to read it by region, until `stack` closes it; of a TIFF with a pyramid, one level.

    Raises:
        InputError: the file does not exist, cannot be read, or does not fit the network.
        MissingExtraError: tifffile or zarr is needed and not installed.
    """
    suffix, label = path.suffix.lower(), str(path)
    if suffix not in READABLE_IN_TILES:
        raise InputError(
            f"a tiled model reads {', '.join(READABLE_IN_TILES)} by region, got {path}; convert it"
        )
    if level and suffix not in TIFF_SUFFIXES:
        raise InputError(Argument("level"), f" names a level of a TIFF with a pyramid, but {path} is none")
    if not path.exists():
        raise InputError(f"there is no file {path}")
    values: Any
    if suffix in TIFF_SUFFIXES:
        from mdlstm_tk.runtime.tiles.tif import TifPixels  # imported late: it needs tifffile

        preprocessing = preprocessing_for(metadata, label)
        values = TifPixels(path, level)
        stack.callback(values.close)
        check_scaled(metadata, values.dtype, label)
        if preprocessing.resized(values.shape[:2]) != values.shape[:2]:
            raise InputError(
                f"the model resizes images to {preprocessing.resize}, which needs all of the image; "
                f"resize {path} first, or use another export"
            )
        as_it_is = replace(preprocessing, resize=None)  # also of a region, which has other extents
        warns = takes_pixels(metadata) and values.dtype.kind == "f"
        return GridSource(values, metadata, label, as_it_is, as_it_is.channels, warns_of_pixels=warns)
    values = _open_zarr(path) if suffix == ".zarr" else open_npy(path)
    check_real(values.dtype, label)
    return GridSource(values, metadata, label, warns_of_pixels=takes_pixels(metadata))


def fingerprint(path: Path) -> str:
    """A text that changes if a file does, or any file of a zarr array: its size, time or name. Other
    files may have the same one. "" if one is missing, or may not be read."""
    digest = hashlib.sha256()
    try:
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        for name in sorted(files) or [str(path)]:
            status = os.stat(name)
            facts = f"{os.path.relpath(name, path)}\0{status.st_size} {status.st_mtime_ns}\n"
            digest.update(facts.encode())
    except (OSError, ValueError):  # the latter for a name that no file can have
        return ""
    return digest.hexdigest()


def _open_zarr(path: Path) -> Any:
    """Open an array of zarr's format 3: a codec of format 2 can run code."""
    zarr: Any = require("zarr", "large")
    try:
        store = zarr.storage.LocalStore(path, read_only=True)  # a path may be taken for a chain of URLs
        return zarr.open_array(store, mode="r", zarr_format=3)
    except Exception as error:  # zarr raises all kinds of exceptions
        raise InputError(
            f"{path} is no zarr array of format 3, as zarr.create_array writes it ({reason_of(error)})"
        ) from None
