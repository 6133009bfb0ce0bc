"""TIFF by region: read the pixels of images of any size, and write masks and other results.

Read are BigTIFF, tiles and strips, the levels of pyramids (OME and others), grey, palette and RGB images
with or without opacity, as `decode_image` reads small ones. Compressions beyond deflate, LZMA and PackBits,
such as JPEG and LZW, need the package imagecodecs.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mdlstm_tk._util.regular_files import open_regular
from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.tiles.plan import Region
from mdlstm_tk.runtime.tiles.raw import RawArray
from mdlstm_tk.runtime.tiles.store import read_at

CACHE_BYTES = 2**25  # of decoded segments: tiles of the network rarely begin where those of the file do
MAX_SEGMENT_BYTES = 2**28
WRITTEN_TILE = 256  # pixels, both ways, of the tiles that are written

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # PhotometricInterpretation
IGNORED, OPACITY = 0, 2  # ExtraSamples


class TifReader:
    """The pixels of a TIFF file: (H, W) or (H, W, 3), as `decode_image` returns them.

    Args:
        path: of the file.
        level: of a pyramid; 0 is the largest.

    Raises:
        InputError: the file is no TIFF, damaged, or of a kind that is not read by region.
        MissingExtraError: tifffile is not installed.
    """

    def __init__(self, path: Path, level: int = 0) -> None:
        tifffile: Any = require("tifffile", "large")
        if not path.exists():
            raise InputError(f"there is no file {path}")
        open_regular(path).close()
        self._path = path
        try:
            self._file: Any = tifffile.TiffFile(str(path))
        except Exception as error:  # tifffile raises all kinds of exceptions for damaged files
            raise self._unreadable(error) from None
        try:
            self._open(level)
        except BaseException as error:
            self._file.close()
            if isinstance(error, Exception) and not isinstance(error, InputError):
                raise self._unreadable(error) from None
            raise

    def read(self, region: Region) -> Array:
        """The pixels in a region of rows and columns; a third slice is ignored."""
        rows, columns = region[:2]
        samples = slice(0, self._samples)
        if self._raw is not None:
            values = self._raw.read((rows, columns, samples))
        else:
            values = self._decoded(rows, columns)
        return self._pixels(values)

    def close(self) -> None:
        """Close the file."""
        if self._raw is not None:
            self._raw.close()
        self._file.close()

    def _open(self, level: int) -> None:
        levels = self._file.series[0].levels
        if not 0 <= level < len(levels):
            raise InputError(f"{self._path} has the levels 0 to {len(levels) - 1}, got --level {level}")
        pages = levels[level].pages
        page = self._page = pages[0].aspage() if hasattr(pages[0], "aspage") else pages[0]
        _, depth, height, width, samples = page.shaped
        problem = ""
        orientation = page.tags.get(274)
        if len(pages) > 1 or depth > 1:
            problem = f"it holds {len(pages) * depth} pages, expected one"
        elif page.parent is not self._file:  # OME may name other files
            problem = "its pixels lie in another file"
        elif page.shaped[0] > 1:
            problem = "its colours lie in separate planes, expected them side by side"
        elif orientation is not None and int(orientation.value) != 1:
            problem = "it is turned by its orientation tag, which needs the whole image"
        elif page.dtype is None or page.dtype.kind not in "buif":
            problem = f"it holds {page.dtype}, expected real numbers"
        self._photometric = int(page.photometric)
        extra = [int(kind) for kind in page.extrasamples or ()]
        self._colours = samples - len(extra)
        self._has_opacity = extra[:1] == [OPACITY]
        if self._colours not in (1, 3) or not set(extra) <= {IGNORED, OPACITY}:
            problem = f"it has {samples} samples a pixel, expected grey or RGB with or without opacity"
        elif self._photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR):
            problem = "its colours are neither grey, RGB nor a palette"
        elif self._photometric == WHITE_IS_ZERO and page.dtype not in (np.bool_, np.uint8):
            problem = "white is zero, and it has more than 8 bits"
        elif self._has_opacity and page.dtype != np.uint8:
            problem = "it has opacity, and more than 8 bits"
        if problem:
            raise InputError(
                f"{self._path} cannot be read by region: {problem}; convert it, or give a .npy"
            )
        self._samples = samples
        colours = 3 if self._photometric == PALETTE or self._colours == 3 else 1
        self.shape: tuple[int, ...] = (height, width) if colours == 1 else (height, width, colours)
        self._raw: RawArray | None = None
        descriptor = os.dup(self._file.filehandle.fileno())
        is_plain = page.compression == 1 and page.predictor == 1 and page.is_contiguous
        if is_plain and page.dtype.itemsize * 8 == page.bitspersample:
            dtype = page.dtype.newbyteorder(self._file.byteorder)
            shape = (height, width, samples)
            self._raw = RawArray(self._path, descriptor, page.dataoffsets[0], shape, dtype)
            return
        os.close(descriptor)
        self._segment: tuple[int, int] = (min(page.rowsperstrip, height), width)
        if page.is_tiled:
            self._segment = (page.tilelength, page.tilewidth)
        size = prod(self._segment) * samples * page.dtype.itemsize
        if size > MAX_SEGMENT_BYTES:
            raise InputError(
                f"{self._path} is compressed in pieces of {size} bytes, expected at most "
                f"{MAX_SEGMENT_BYTES}; save it as a tiled TIFF"
            )
        self._across = -(-width // self._segment[1])
        self._cache: OrderedDict[int, Array] = OrderedDict()
        self._kept = max(1, CACHE_BYTES // size)
        self._lock = Lock()

    def _decoded(self, rows: slice, columns: slice) -> Array:
        """The samples (H, W, S) in a region of a file in tiles or strips."""
        tall, wide = self._segment
        extents = (rows.stop - rows.start, columns.stop - columns.start)
        result = np.empty((*extents, self._samples), self._page.dtype)
        down = range(rows.start // tall, -(-rows.stop // tall))
        for i, j in product(down, range(columns.start // wide, -(-columns.stop // wide))):
            y, inner_y = _overlap(rows, i * tall, tall)
            x, inner_x = _overlap(columns, j * wide, wide)
            result[y, x] = self._segment_at(i * self._across + j)[inner_y, inner_x]
        return result

    def _segment_at(self, index: int) -> Array:
        """A decoded tile or strip: (rows, columns, samples)."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        page = self._page
        try:
            count = page.databytecounts[index]
            data = bytearray(count)
            found = read_at(self._file.filehandle.fileno(), memoryview(data), page.dataoffsets[index])
            if found < count:
                raise InputError(f"{self._path} ends early: it has shrunk while it was read")
            segment, _, shape = page.decode(bytes(data) or None, index, jpegtables=page.jpegtables)
            if segment is None:
                segment = np.full(shape, page.nodata, page.dtype)
            pixels: Array = segment.reshape(segment.shape[-3:])
        except InputError:
            raise
        except Exception as error:  # tifffile and its codecs raise all kinds of exceptions
            raise self._unreadable(error) from None
        with self._lock:
            self._cache[index] = pixels
            while len(self._cache) > self._kept:
                self._cache.popitem(last=False)
        return pixels

    def _pixels(self, values: Array) -> Array:
        """Samples (H, W, S) as pixels (H, W) or (H, W, 3): uint8, uint16 or float32."""
        if self._photometric == PALETTE:
            colours = np.asarray(self._page.colormap)[:, values[..., 0]] >> 8
            return np.moveaxis(colours, 0, -1).astype(np.uint8)
        if values.dtype == np.bool_:
            values = values * np.uint8(255)
        if self._photometric == WHITE_IS_ZERO:
            values = 255 - values
        colours = values[..., : self._colours]
        if self._has_opacity:
            opacity = values[..., self._colours, None].astype(np.uint16)
            blended = colours.astype(np.uint16) * opacity + 255 * (255 - opacity) + 127
            colours = (blended // 255).astype(np.uint8)
        if colours.dtype not in (np.uint8, np.uint16):
            colours = colours.astype(np.float32)
        return colours[..., 0] if self._colours == 1 else colours

    def _unreadable(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return InputError(f"{self._path} cannot be read as a TIFF ({reason})")


def _overlap(wanted: slice, start: int, extent: int) -> tuple[slice, slice]:
    """Where a segment overlaps a range: its part of the range, and of the segment."""
    first, end = max(wanted.start, start), min(wanted.stop, start + extent)
    return slice(first - wanted.start, end - wanted.start), slice(first - start, end - start)


def write_tif(path: Path, array: RawArray, palette: Sequence[int] | None = None) -> None:
    """Write an array (H, W) or (H, W, S) as a tiled, compressed TIFF, one row of tiles after the other.

    Args:
        path: of the file to create.
        array: what is read by region.
        palette: red, green and blue of each value in turn, for (H, W) uint8; None: grey.

    Raises:
        MDLSTMError: the disk is full.
        MissingExtraError: tifffile is not installed.
    """
    tifffile: Any = require("tifffile", "large")
    height, width = array.shape[:2]
    channels = tuple(slice(0, extent) for extent in array.shape[2:])

    def tiles() -> Iterator[Array]:
        for top in range(0, height, WRITTEN_TILE):
            rows = slice(top, min(top + WRITTEN_TILE, height))
            strip = array.read((rows, slice(0, width), *channels))
            for left in range(0, width, WRITTEN_TILE):
                yield np.ascontiguousarray(strip[:, left : left + WRITTEN_TILE])

    options: dict[str, Any] = {"photometric": "minisblack"}
    if palette is not None and array.dtype == np.uint8:
        colours = np.zeros((256, 3), np.uint16)
        chosen = np.asarray(palette, np.uint16).reshape(-1, 3)
        colours[: len(chosen)] = chosen * 257
        options = {"photometric": "palette", "colormap": colours.T}
    elif channels:
        options["planarconfig"] = "contig"
    try:
        tifffile.imwrite(
            str(path),
            tiles(),
            shape=array.shape,
            dtype=array.dtype,
            tile=(WRITTEN_TILE, WRITTEN_TILE),
            compression="zlib",
            bigtiff=prod(array.shape) * array.dtype.itemsize > 2**31,
            metadata=None,
            maxworkers=1,
            **options,
        )
    except OSError as error:
        raise MDLSTMError(f"cannot write {path}: {error.strerror or error}") from None
