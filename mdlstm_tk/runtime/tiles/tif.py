"""TIFF by region: read the pixels of images of any size, and write masks and other results.

BigTIFF, tiles and strips, the levels of pyramids (OME and others), grey, palette and RGB images with or
without opacity are read as `decode_image` reads small ones. Compressions beyond deflate, LZMA and PackBits,
such as JPEG and LZW, need the package imagecodecs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.text import counted, reason_of
from mdlstm_tk.errors import Argument, InputError, MDLSTMError, require
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.preprocessing import widened
from mdlstm_tk.runtime.tiles.mapped import MappedArray
from mdlstm_tk.runtime.tiles.plan import Region

MAX_SEGMENT_BYTES = 2**28
TILE_SIDE = 256  # pixels, of tiles that are written

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # PhotometricInterpretation
ORIENTATION = 274  # the tag
IGNORED, OPACITY = 0, 2  # ExtraSamples
GIVE_RGB = (6, 7, 33003)  # Compression: JPEG and Aperio's JPEG 2000, whose decoders convert YCbCr


class TifPixels:
    """The pixels of one level of a TIFF file: (H, W) or (H, W, 3), as `decode_image` returns them."""

    def __init__(self, path: Path, level: int = 0) -> None:
        tifffile: Any = require("tifffile", "large")
        self._store: Any = None
        try:
            with tifffile.TiffFile(path) as file:
                self._describe(file.series[0].levels, level, path)
            self._values: Any = self._open(tifffile, path, level)
        except (MDLSTMError, ImportError):
            raise
        except Exception as error:  # tifffile raises all kinds of exceptions for damaged files
            raise InputError(f"{path} cannot be read as a TIFF ({reason_of(error)})") from None

    def __getitem__(self, region: Region) -> Array:
        """The pixels in a region of rows and columns: uint8, uint16 or float32."""
        values = np.asarray(self._values[region])
        if self._photometric == PALETTE:
            indices, extra = (values[..., 0], values[..., 1:]) if values.ndim == 3 else (values, None)
            values = np.moveaxis(self._colormap[:, indices], 0, -1)
            if self._has_opacity:
                values = np.concatenate([values, extra], axis=-1)
        elif values.dtype == np.bool_:
            values = values * np.uint8(255)
        elif values.dtype.kind == "u":
            values = widened(values.astype(values.dtype.newbyteorder("=")), self._bits)
        if self._photometric == WHITE_IS_ZERO:
            values = 255 - values
        values = values if values.ndim == 3 else values[..., None]
        colours = values[..., : self._colours]
        if self._has_opacity:
            opacity = values[..., self._colours, None].astype(np.uint16)
            blended = colours.astype(np.uint16) * opacity + 255 * (255 - opacity) + 127
            colours = (blended // 255).astype(np.uint8)
        elif self._colours == 3 and values.dtype == np.uint16:
            colours = colours >> 8  # as Pillow does
        colours = colours.astype(self.dtype, copy=False)
        return colours[..., 0] if self._colours == 1 else colours

    def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()

    def _describe(self, levels: Sequence[Any], level: int, path: Path) -> None:
        """Note how the values of an image become pixels, and refuse what is not read by region."""
        if not 0 <= level < len(levels):
            given = ", got ", Argument("level", level)
            raise InputError(f"{path} has the levels 0 to {len(levels) - 1}", *given)
        image = levels[level]
        page, axes, dtype = image.keyframe, image.axes, image.dtype
        tag = page.tags.get(ORIENTATION)
        orientation = 1 if tag is None else int(tag.value)
        extra = [int(kind) for kind in page.extrasamples or ()]
        self._photometric = int(page.photometric)
        self._colours = page.samplesperpixel - len(extra)
        self._bits = int(page.bitspersample)
        self._has_opacity = extra[:1] == [OPACITY]
        needs_8_bits = self._has_opacity or self._photometric == WHITE_IS_ZERO
        if (
            axes not in ("YX", "YXS")
            or image.is_multifile  # OME may name other files
            or orientation != 1
            or dtype is None
            or dtype.kind not in "buif"
            or (needs_8_bits and dtype not in (np.bool_, np.uint8))
            or self._colours not in ((1,) if self._photometric == PALETTE else (1, 3))
            or not set(extra) <= {IGNORED, OPACITY}
            or self._photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR)
            or (self._photometric == YCBCR and page.compression not in GIVE_RGB)
        ):
            raise InputError(
                f"{path} cannot be read by region: it has the axes {axes}, "
                f"{counted(page.samplesperpixel, 'sample')} of {dtype}, the colours "
                f"{page.photometric!s:.40} and the orientation {orientation}; expected one upright page in "
                "one file, the axes YX or YXS, grey, palette or RGB, and opacity or white as zero in 8 "
                "bits alone; convert it, or give a .npy"
            )
        if self._photometric == PALETTE:
            self._colormap = (np.asarray(page.colormap) >> 8).astype(np.uint8)
            self._colours = 3
        is_byte = self._photometric == PALETTE or self._has_opacity or dtype in (np.bool_, np.uint8)
        is_byte |= self._colours == 3 and dtype.newbyteorder("=") == np.uint16
        is_short = dtype.newbyteorder("=") == np.uint16  # ImageJ writes the high byte first
        self.dtype = np.dtype(np.uint8 if is_byte else np.uint16 if is_short else np.float32)
        self.shape: tuple[int, ...] = (*image.shape[:2], 3) if self._colours == 3 else image.shape[:2]

    def _open(self, tifffile: Any, path: Path, level: int) -> Any:
        """The values, (H, W) or (H, W, samples), which are read by region."""
        try:
            return MappedArray(tifffile.memmap(path, series=0, level=level, mode="r"))
        except ValueError:  # it is compressed, or in tiles
            pass
        zarr: Any = require("zarr", "large")
        self._store = tifffile.imread(path, aszarr=True, series=0, level=level)
        values = zarr.open_array(self._store, mode="r")
        size = prod(values.chunks) * values.dtype.itemsize
        if size > MAX_SEGMENT_BYTES:
            raise InputError(
                f"{path} is compressed in pieces of {size} bytes, expected at most {MAX_SEGMENT_BYTES}; "
                "save it as a tiled TIFF"
            )
        return values


def write_tif(path: Path, values: MappedArray, palette: Array | None = None) -> None:
    """Write an array (H, W) or (H, W, S) as a tiled, compressed TIFF, one row of tiles after the other;
    a palette (256, 3) holds the colour of each value of (H, W) uint8."""
    tifffile: Any = require("tifffile", "large")
    shape = values.shape[:2] if values.shape[2:] == (1,) else values.shape  # a sample has no axis in a TIFF
    height, width = shape[:2]

    def tiles() -> Iterator[Array]:
        for top in range(0, height, TILE_SIDE):
            rows = np.array(values[slice(top, min(top + TILE_SIDE, height)),]).reshape(-1, *shape[1:])
            for left in range(0, width, TILE_SIDE):
                yield np.ascontiguousarray(rows[:, left : left + TILE_SIDE])

    options: dict[str, Any] = {"photometric": "minisblack"}
    if palette is not None:
        options = {"photometric": "palette", "colormap": palette.T.astype(np.uint16) * 257}
    elif len(shape) == 3:
        options["planarconfig"] = "contig"
    tifffile.imwrite(
        path,
        tiles(),
        shape=shape,
        dtype=values.dtype,
        tile=(TILE_SIDE, TILE_SIDE),
        compression="zlib",
        bigtiff=prod(values.shape) * values.dtype.itemsize > 2**31,
        metadata=None,
        maxworkers=1,
        **options,
    )
