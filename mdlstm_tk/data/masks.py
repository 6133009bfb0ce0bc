"""Masks of segmentation: reading them, and which values or colours are the classes.

A class is a value of the masks. Palettes and grey masks keep their values, whatever their bits; black and
white masks with one bit have 0 and 255. Two kinds of masks hold colours instead of values: true colours,
and palettes that differ between masks, so that equal values do not mean equal classes. Then every colour is
a class; the classes have the values 0, 1, 2, … in the order of red, green and blue, and a palette.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.text import composed
from mdlstm_tk.data.images import is_grey, read_file, resize_nearest
from mdlstm_tk.data.spec import UNLABELLED, Array, Extents
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io.images import (
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    SIGNED,
    WHITE_IS_ZERO,
    Preprocessing,
    open_image,
    orientation_of,
    upright,
)

UNKNOWN_VALUE = 255  # means "no class" in masks with 8 bits, unless 0 and 255 are the only values
MAX_COLOURS = 256  # what a palette can hold
LOSSY_IN_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")  # as Pillow calls them


@dataclass(frozen=True)
class RawMask:
    """A mask as it is stored.

    Attributes:
        pixels: (*grid) integers, negative where the class is unknown; or colours as 0xRRGGBB.
        palette: (256,) the colour of each value as 0xRRGGBB, negative beyond those in the file; None if it
            has none.
        has_colours: the pixels are colours.
        is_binary: the mask has one bit, so that it cannot hold an unknown class.
    """

    pixels: Array
    palette: Array | None = None
    has_colours: bool = False
    is_binary: bool = False

    @property
    def shape(self) -> Extents:
        return self.pixels.shape

    @property
    def colours(self) -> Array:
        """The colour of each pixel as 0xRRGGBB; values without a palette are greys."""
        if self.palette is not None:
            return np.maximum(self.palette[self.pixels], 0)
        return self.pixels if self.has_colours else self.pixels.astype(np.int32) * 0x010101

    def distinct(self) -> RawMask:
        """Return the mask with each known value or colour once, increasing."""
        values = np.unique(self.pixels)
        return replace(self, pixels=values[values >= 0])


def read_mask(file: Path) -> RawMask:
    """Read a mask.

    Raises:
        InputError: it cannot be read, or is not an image of whole numbers or colours.
        MissingExtraError: Pillow is not installed.
    """
    try:
        data = read_file(file)
    except InputError as error:
        raise InputError(f"its mask: {error}") from None
    with open_image(io.BytesIO(data), "its mask") as image:
        if _has_lossy_compression(image, data):
            raise InputError(
                f"its mask is a {image.format} whose compression may change values; save it as PNG"
            )
        largest = _largest_stored(image)
        image.load()
        mask = _raw_mask(image)
        mask = replace(mask, pixels=upright(mask.pixels, orientation_of(image)))
    if not largest or mask.palette is not None or mask.has_colours:
        return mask
    whole = 65535 if image.mode == "I" else 255
    return RawMask((mask.pixels.astype(np.int64) * largest + whole // 2) // whole)


def _has_lossy_compression(image: Any, data: bytes) -> bool:
    if image.format != "WEBP":
        return image.format in ("JPEG", "MPO") or image.info.get("compression") in LOSSY_IN_TIFF
    position = 12  # of the first chunk; one of lossless pixels is called VP8L
    while position < len(data):
        name = data[position : position + 4]
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8 "
        skipped = 16 if name == b"ANMF" else size + size % 2  # the chunks of a frame follow 16 bytes of it
        position += 8 + skipped
    return False


def _largest_stored(image: Any) -> int:
    """The value that Pillow will scale to white when it loads an image; 0 if it scales none.

    Raises:
        InputError: it drops bits of the values.
    """
    if image.mode == "1" or not image.tile:
        return 0
    decoder, *_, arguments = image.tile[0]
    raw_mode, *others = (arguments,) if isinstance(arguments, str) else arguments
    largest = int(others[0]) if decoder.startswith("ppm") else 0
    if (largest > 255 and image.mode != "I") or re.match("(RGB|LA|CMYK).*;16", str(raw_mode)):
        raise InputError(
            "its mask has 16 bits in each of several channels, of which 8 are read; save it with 8 bits, "
            "or as grey without opacity"
        )
    bits = re.match("L;([24])", str(raw_mode))
    return 2 ** int(bits[1]) - 1 if bits else largest


def _raw_mask(image: Any) -> RawMask:
    if image.mode in ("P", "PA"):
        pixels = np.asarray(image.convert("P") if image.mode == "PA" else image)
        palette = np.zeros((256, 3), np.uint8)
        colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[: len(colours)] = colours
        # GIF has no grey images, and Pillow may number the values of a grey mask anew when it writes one.
        if image.format == "GIF" and is_grey(palette[np.unique(pixels)][None]):
            return RawMask(palette[pixels][..., 0])
        numbers = _numbers(palette)
        numbers[len(colours) :] = -1
        return RawMask(pixels, numbers)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    is_signed = SIGNED in tags.get(SAMPLE_FORMAT, ())
    if image.mode == "L" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts 2 to 8 bits, not 16
        image = require("PIL.ImageOps", "image").invert(image)
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        is_unsigned = image.format == "TIFF" and image.mode == "I" and not is_signed
        return RawMask(pixels.view(np.uint32).astype(np.int64) if is_unsigned else pixels.astype(np.int32))
    if image.mode == "F":
        pixels = np.asarray(image)
        if not np.array_equal(pixels, np.rint(pixels)) or np.abs(pixels).max() > 2**24:
            raise InputError("its mask has fractions, expected whole numbers")
        return RawMask(pixels.astype(np.int32))
    if image.mode == "L" and is_signed:
        return RawMask(np.asarray(image).view(np.int8))
    if image.mode in ("1", "L", "LA", "La"):
        return RawMask(np.asarray(image.getchannel(0).convert("L")), is_binary=image.mode == "1")
    pixels = np.asarray(image.convert("RGBA" if "A" in image.mode else "RGB"))[..., :3]
    return RawMask(pixels[..., 0]) if is_grey(pixels) else RawMask(_numbers(pixels), has_colours=True)


def _numbers(colours: Array) -> Array:
    """Return colours (*grid, 3) as 0xRRGGBB."""
    numbers: Array = colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    return numbers


@dataclass(frozen=True)
class MaskClasses:
    """The classes of all masks of a data set.

    Attributes:
        values: the value of each class in masks that are written.
        palette: red, green and blue of each class in turn; empty if the masks are grey.
        colours: the colour of each class as 0xRRGGBB if colours are the classes, else empty.
        has_unknown: True if `UNKNOWN_VALUE` occurs and is no class.
    """

    values: tuple[int, ...]
    palette: tuple[int, ...]
    colours: tuple[int, ...]
    has_unknown: bool = False

    @classmethod
    def of(cls, masks: Sequence[RawMask]) -> MaskClasses:
        """Find the classes.

        Args:
            masks: what `RawMask.distinct` returns for each mask.

        Raises:
            InputError: the masks have too many colours, fewer than two classes, or are of different types.
        """
        colour_of: dict[int, int] = {}
        values_of: dict[int, set[int]] = {}
        have_colours = any(mask.has_colours for mask in masks)
        for mask in masks:
            if mask.palette is not None:
                for value, colour in zip(mask.pixels.tolist(), mask.colours.tolist(), strict=True):
                    have_colours |= colour_of.setdefault(value, colour) != colour
                    values_of.setdefault(colour, set()).add(value)
        for mask in masks:  # a palette may have a colour twice; palettes with it in other places differ
            if mask.palette is not None:
                for colour in mask.colours.tolist():
                    entries = mask.palette[[*values_of[colour]]]
                    have_colours |= bool(((entries != colour) & (entries >= 0)).any())
        if have_colours:
            return cls._of_colours(masks)
        values = sorted({value for mask in masks for value in mask.pixels.tolist()})
        if len(values) < 2:
            only = f"only the value {values[0]}" if values else "no value"
            raise InputError(f"the masks hold {only}; expected two classes or more")
        has_unknown = len(values) > 2 and values[-1] == UNKNOWN_VALUE
        if has_unknown:
            if any(mask.is_binary and UNKNOWN_VALUE in mask.pixels for mask in masks):
                raise InputError(
                    f"some masks have one bit, whose white is {UNKNOWN_VALUE}, and others "
                    f"{len(values) - 1} values; save all masks in the same way"
                )
            values.pop()
        palette = [colour_of[value] for value in values if value in colour_of]
        complete = len(palette) == len(values) and values[-1] < MAX_COLOURS
        return cls(tuple(values), _channels(palette) if complete else (), (), has_unknown)

    @classmethod
    def _of_colours(cls, masks: Sequence[RawMask]) -> MaskClasses:
        greys = [mask.pixels for mask in masks if not mask.has_colours and mask.palette is None]
        largest = max((int(values.max(initial=0)) for values in greys), default=0)
        if largest > 255:
            raise InputError(
                f"some masks have colours, and others values up to {largest}, which no colour has; "
                "save all masks in the same way"
            )
        colours = {colour for mask in masks for colour in mask.colours.tolist()}
        if len(colours) > MAX_COLOURS:
            raise InputError(
                f"the masks have {len(colours)} colours, expected at most {MAX_COLOURS} classes; "
                "save masks without lossy compression and smoothing, for example as PNG"
            )
        ordered = tuple(sorted(colours))
        return cls(tuple(range(len(ordered))), _channels(ordered), ordered)

    def names(self, lines: Sequence[str]) -> tuple[str, ...]:
        """The name of each class, from the lines of classes.txt, which begins with value 0."""
        defaults = [f"#{colour:06x}" for colour in self.colours] or list(map(str, self.values))
        return tuple(
            composed(lines[value].strip()) if value < len(lines) and lines[value].strip() else default
            for value, default in zip(self.values, defaults, strict=True)
        )

    def encode(self, mask: RawMask, preprocessing: Preprocessing | None = None) -> Array:
        """Convert a mask to (*grid) indices of classes, UNLABELLED at other values.

        Args:
            mask: the mask.
            preprocessing: of its image, with which it is resized.
        """
        keys = np.array(self.colours or self.values)
        pixels = mask.colours if self.colours else mask.pixels
        if preprocessing is not None and preprocessing.resize is not None:
            height, width = pixels.shape
            pixels = resize_nearest(pixels, preprocessing.resized((height, width)))
        indices = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
        dtype = np.int16 if len(keys) <= np.iinfo(np.int16).max else np.int32
        return np.where(keys[indices] == pixels, indices, UNLABELLED).astype(dtype)


def _channels(colours: Sequence[int]) -> tuple[int, ...]:
    return tuple((colour >> shift) & 255 for colour in colours for shift in (16, 8, 0))
