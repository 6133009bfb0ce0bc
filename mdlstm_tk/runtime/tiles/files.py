"""Grids that are read by region as a network takes them, and results that are written by region."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.io import Array
from mdlstm_tk.io.files import palette_of, suffix_of
from mdlstm_tk.io.images import ORIENTATION
from mdlstm_tk.io.metadata import Extents, Metadata
from mdlstm_tk.runtime.answers import decode
from mdlstm_tk.runtime.infer import Inference
from mdlstm_tk.runtime.inputs import image_for, preprocessing_for
from mdlstm_tk.runtime.shapes import Batch, check_grid, check_scale, convert, restore
from mdlstm_tk.runtime.tiles.plan import Region

SIDE = 256  # of the tiles of a TIFF that is written
BIG = 2**31  # bytes of an array above which it is a BigTIFF
GREY, RGB, YCBCR = 1, 2, 6  # photometric interpretations of a TIFF
JPEG = 7  # a compression whose decoder converts YCbCr


class Mapped:
    """A `.npy` file that is read and written by region. It is mapped anew for each: the pages of a mapping
    count as resident memory until it ends."""

    def __init__(self, path: str | Path, shape: tuple[int, ...] | None = None, dtype: Any = None) -> None:
        self._path = path
        if shape is not None:  # a new file; on a full disk, a write to a mapping would end the process
            if shutil.disk_usage(Path(path).parent).free < prod(shape) * np.dtype(dtype).itemsize:
                raise MDLSTMError(f"the disk of {path} is full")
            np.lib.format.open_memmap(path, "w+", dtype, shape)
        mapping = np.load(path, mmap_mode="r")
        self.shape, self.dtype = mapping.shape, mapping.dtype

    def __getitem__(self, region: Any) -> Array:
        return np.asarray(np.load(self._path, mmap_mode="r")[region])

    def __setitem__(self, region: Any, values: Array) -> None:
        np.load(self._path, mmap_mode="r+")[region] = values


class GridFile:
    """A grid that is read by region, as (*extents, C) float32.

    Args:
        values: (*grid, C) or (*grid): an array, or another object that is indexed by region.
        metadata, label: of the network, and the name of the grid in errors.
        is_image: the values are pixels, which are prepared as those of other images.
    """

    def __init__(self, values: Any, metadata: Metadata, label: str, is_image: bool = False) -> None:
        self._values, self._metadata, self._label, self._is_image = values, metadata, label, is_image
        self.grid, channels = tuple(values.shape[: metadata.ndim]), tuple(values.shape[metadata.ndim :])
        self.has_channel_axis = bool(channels) and not (is_image and metadata.channels == 1)
        fits = channels == (metadata.channels,) or (metadata.channels == 1 and not channels)
        fits &= len(self.grid) == metadata.ndim
        if is_image:
            if preprocessing_for(metadata, label).resized((self.grid[0], self.grid[1])) != self.grid:
                raise InputError(f"the model resizes images, which needs all of {label}; resize it first")
        elif not fits or values.dtype.kind not in "buif":
            expected = f"real numbers {metadata.layout} with C = {metadata.channels}"
            raise InputError(f"{label} holds {values.dtype} {values.shape}, expected {expected}, without N")
        check_grid(self.grid, metadata)

    @classmethod
    @contextmanager
    def open(cls, path: str, metadata: Metadata) -> Iterator[GridFile]:
        """Open a `.npy`, a zarr array or a TIFF."""
        suffix = suffix_of(path)
        if not os.path.exists(path):
            raise InputError(f"there is no file {path}")
        with ExitStack() as stack:
            try:
                values: Any
                if suffix == ".npy":
                    values = Mapped(path)
                elif suffix == ".zarr":  # of format 3: a codec of format 2 can run code
                    zarr: Any = require("zarr", "large")
                    # A path alone may be taken for a chain of URLs.
                    store = zarr.storage.LocalStore(path, read_only=True)
                    values = zarr.open_array(store, mode="r", zarr_format=3)
                elif suffix in (".tif", ".tiff"):
                    values = _open_tiff(path, stack)
                else:
                    raise ValueError("a tiled model reads .npy, .zarr and TIFF")
            except (InputError, ImportError):
                raise
            except Exception as error:  # zarr and tifffile raise all kinds of exceptions
                raise InputError(f"cannot read {path} by region: {error}") from None
            yield cls(values, metadata, path, suffix.startswith(".tif"))

    def read(self, region: Region) -> Array:
        """The values in a region."""
        try:
            values = np.asarray(self._values[region])
        except Exception as error:  # as above
            raise InputError(f"cannot read {self._label}: {error}") from None
        if self._is_image:
            values = image_for(values, self._metadata, self._label, (values.shape[0], values.shape[1]))
        x = convert(values, "x", self._metadata)
        check_scale(x, self._metadata)
        return x if x.ndim > len(self.grid) else x[..., None]


def _open_tiff(path: str, stack: ExitStack) -> Any:
    """The pixels of the first series of a TIFF. Unusual ones are refused: they would be read as other
    pixels than those of small images."""
    tifffile: Any = require("tifffile", "large")
    with tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.series[0].keyframe
        colours, dtype = page.photometric, series.dtype.newbyteorder("=")
        is_grey = colours == GREY and series.axes == "YX" and dtype in (np.uint8, np.uint16, np.float32)
        is_rgb = colours == RGB or (colours == YCBCR and page.compression == JPEG)
        is_rgb &= series.axes == "YXS" and series.shape[2] == 3 and dtype == np.uint8
        is_whole = page.bitspersample == 8 * dtype.itemsize and not series.is_multifile  # as OME may be
        if not ((is_grey or is_rgb) and is_whole) or page.tags.valueof(ORIENTATION, 1) != 1:
            raise ValueError("expected one upright image, grey of 8 or 16 bits or floats, or RGB of 8 bits")
    store = tifffile.imread(path, aszarr=True, series=0, level=0)
    stack.callback(store.close)
    return require("zarr", "large").open_array(store, mode="r")


class Output:
    """Answers of an inference, made of y (*grid, outputs) of a batch without values, in a file that is
    written by region: in a scratch folder, until `finish`."""

    def __init__(
        self, scratch: Path, shape: Extents, metadata: Metadata, run: Inference, form: str, batch: Batch
    ) -> None:
        self._metadata, self._run, self._form, self._batch = metadata, run, form, batch
        one = self._value(np.zeros((*(1,) * metadata.ndim, shape[-1]), np.float32))
        self.shape, self._path = (*shape[: metadata.ndim], *one.shape[metadata.ndim :]), scratch / "result"
        if form == "zarr":
            zarr: Any = require("zarr", "large")
            store = zarr.storage.LocalStore(self._path)
            self._array: Any = zarr.create_array(store, shape=self.shape, chunks="auto", dtype=one.dtype)
        else:
            self._path = self._path.with_suffix(".npy")
            self._array = Mapped(self._path, self.shape, one.dtype)

    def __setitem__(self, region: Region, y: Array) -> None:
        self._array[region] = self._value(y)

    def _value(self, y: Array) -> Array:
        value = np.asarray(y if self._run.raw else decode(y, self._metadata, **self._run.options))
        outputs = {self._metadata.output_names[0]: value[None]}
        return restore(outputs, self._batch, self._metadata)  # type: ignore[return-value]

    def finish(self, target: Path) -> None:
        """Give the complete file its name."""
        if self._form == "tif":
            self._path = self._write_tif()
        if target.is_dir():  # a zarr array that may be replaced
            shutil.rmtree(target)
        os.replace(self._path, target)

    def _write_tif(self) -> Path:
        """Write the array (H, W) or (H, W, S) as a tiled, compressed TIFF, one row of tiles after the
        other."""
        if len(self.shape) > 3:
            raise InputError(
                f"tif holds (H, W) or (H, W, S), the result has {self.shape}; use --format npy"
            )
        shape = self.shape[:2] if self.shape[2:] == (1,) else self.shape
        (height, width), dtype = shape[:2], self._array.dtype

        def tiles() -> Iterator[Array]:
            for top in range(0, height, SIDE):
                rows = self._array[top : min(top + SIDE, height)].reshape(-1, *shape[1:])
                for left in range(0, width, SIDE):
                    yield np.ascontiguousarray(rows[:, left : left + SIDE])

        options: dict[str, Any] = {"photometric": "minisblack"}
        palette = self._metadata.mask_palette
        if palette and dtype == np.uint8 and len(shape) == 2:
            colours = palette_of(self._metadata.mask_values, palette) * 257  # 16 bits
            options = {"photometric": "palette", "colormap": colours.T}
        options |= {"planarconfig": "contig"} if len(shape) == 3 else {}
        options |= {"bigtiff": prod(shape) * dtype.itemsize > BIG, "metadata": None, "maxworkers": 1}
        path = self._path.with_suffix(".tif")
        require("tifffile", "large").imwrite(
            path, tiles(), shape=shape, dtype=dtype, tile=(SIDE, SIDE), compression="zlib", **options
        )
        return path
