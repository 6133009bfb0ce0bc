"""Turn image files into the arrays that networks take.

Decoding   Pillow, turned upright by EXIF; the first frame or page. Colour profiles are ignored.
Channels   Palettes are resolved. Transparent pixels are blended with white. Grey is repeated for networks
           that take colours; colours become grey by the luma of ITU-R 601 for networks that take grey.
Scale      8 bits are divided by 255 and 16 bits by 65535; floating-point images are used as they are.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mdlstm_tk.errors import InputError, MissingExtraError, require
from mdlstm_tk.io import Array

DECODERS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")  # others of Pillow's start programs
LUMA = (19595, 38470, 7471)  # of 65536: 0.299, 0.587, 0.114, as Pillow rounds them
SIDEWAYS = (5, 6, 7, 8)  # orientations of EXIF that exchange height and width
ORIENTATION, WIDTH, HEIGHT, BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 274, 256, 257, 258, 262, 284, 339
"""Tags of EXIF and TIFF."""
WHITE_IS_ZERO, SEPARATE, SIGNED = 0, 2, 2  # their values
PLAIN_BITS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Preprocessing:
    """The preparation of images for a network. Checkpoints and exported models store it as JSON.

    Attributes:
        channels: 1 for grey, 3 for red, green and blue.
        resize: extents (H, W) that every image is resized to, bilinearly and with antialiasing; if one of
            them is None, it follows from the aspect of the image. None keeps the image's own extents.
    """

    channels: int = 1
    resize: tuple[int | None, int | None] | None = None

    def __call__(self, pixels: Array) -> Array:
        """Decoded pixels (H, W) or (H, W, 3) as the network takes them: (H, W, channels) float32."""
        x = scale(to_grey(pixels) if self.channels == 1 and pixels.ndim == 3 else pixels)
        x = x if x.ndim == 3 else x[..., None]
        x = resize(x, self.resized((x.shape[0], x.shape[1])))
        return np.repeat(x, self.channels, axis=-1) if x.shape[-1] < self.channels else x

    def resized(self, extents: tuple[int, int]) -> tuple[int, int]:
        """The extents (H, W) that an image of these extents gets."""
        (height, width), (new_height, new_width) = extents, self.resize or extents
        return (
            new_height or max(1, (2 * height * (new_width or 1) + width) // (2 * width)),  # rounded
            new_width or max(1, (2 * width * (new_height or 1) + height) // (2 * height)),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that was stored as {"channels": …, "resize": …}, perhaps by a stranger."""
        channels, extents = values["channels"], values.get("resize")
        sizes = [] if extents is None else [e for e in extents if e is not None]
        fits = extents is None or (len(extents) == 2 and sizes)
        if channels not in (1, 3) or not fits or not all(type(e) is int and e > 0 for e in sizes):
            raise ValueError(f"preprocessing {dict(values)!r:.80}")
        return cls(channels, None if extents is None else (extents[0], extents[1]))


UNUSUAL = "an unusual TIFF; save it with 8 bits in each channel, or 16 bits of grey"


def decode_image(data: bytes, label: str) -> Array:
    """Decode an image file.

    Args:
        data, label: a PNG, JPEG, TIFF, BMP, GIF, WebP, PGM or PPM file, and its name in errors.

    Returns:
        (H, W) if the image is grey, else (H, W, 3): uint8, uint16 or float32.
    """
    with open_image(io.BytesIO(data), label) as image:
        tags = getattr(image, "tag_v2", {})
        is_signed = SIGNED in tags.get(SAMPLE_FORMAT, ())
        is_odd = is_signed and image.mode not in ("I", "F")
        is_odd |= not {*tags.get(BITS, (8,))} <= {*PLAIN_BITS}
        if is_odd or (tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode.startswith("I")):
            raise ValueError(UNUSUAL)  # Pillow ignores the sign, scales 12 bits, and inverts 8 bits alone
        pixels = _pixels(image, is_signed)  # which turns a TIFF, and forgets its orientation
        return upright(pixels, orientation_of(image))


@contextmanager
def open_image(file: IO[bytes], label: str) -> Iterator[Any]:
    """Open an image with Pillow. What Pillow raises inside becomes an `InputError`."""
    pillow: Any = require("PIL.Image", "image")
    try:
        with pillow.open(file, formats=DECODERS) as image:
            tags, tile = getattr(image, "tag_v2", {}), tuple(image.tile[0] if image.tile else ())
            # Pillow swaps the bytes of numbers that libtiff has swapped before, and mixes up separate
            # channels.
            is_swapped = tile[:1] == ("libtiff",) and re.match("[FI];.*B", str(tile[3][0]))
            if is_swapped or (tags.get(PLANES) == SEPARATE and max(tags.get(BITS, (8,))) > 8):
                raise ValueError(UNUSUAL)
            yield image
    except (InputError, MissingExtraError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of exceptions for damaged images
        reason = str(error).split(" <_io.")[0]  # Pillow writes the address of the file
        raise InputError(f"{label} cannot be read as an image: {reason}") from None


def read_extents(path: Path) -> tuple[int, int]:
    """Height and width of an image file that is turned upright, not decoded."""
    try:
        with path.open("rb") as file, open_image(file, str(path)) as image:
            tags = getattr(image, "tag_v2", {})  # of a TIFF, whose extents Pillow has turned
            height, width = tags.get(HEIGHT, image.height), tags.get(WIDTH, image.width)
            return (width, height) if orientation_of(image) in SIDEWAYS else (height, width)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def orientation_of(image: Any) -> int:
    """The orientation of a Pillow image in its EXIF data; 1, upright, if there are none or they are
    damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as above
        return 1


def upright(pixels: Array, orientation: int) -> Array:
    """Turn (H, W) or (H, W, 3) upright by its orientation in EXIF."""
    pixels = pixels.swapaxes(0, 1) if orientation in SIDEWAYS else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels)


def _pixels(image: Any, is_signed: bool) -> Array:
    """The pixels of a Pillow image without palette and transparency: (H, W) or (H, W, 3)."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        of_file = np.int32 if is_signed else np.uint32
        return (values.view(of_file) if image.mode == "I" else values).astype(np.float32)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    values = np.asarray(image.convert("RGBA")).astype(np.uint16)  # 255 · 255 + 127 fits
    colours, opacity = values[..., :3], values[..., 3:]
    blended = ((colours * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return np.asarray(blended[..., 0] if image.mode in ("1", "L", "LA", "La") else blended)


def to_grey(pixels: Array) -> Array:
    """The luma (H, W) of (H, W, 3), in the same dtype; integers are rounded."""
    if pixels.dtype.kind == "f":
        return np.asarray(pixels @ (np.array(LUMA, np.float32) / np.float32(65536)), np.float32)
    return np.asarray((pixels @ np.array(LUMA, np.uint32) + 32768) >> 16, pixels.dtype)


def scale(pixels: Array) -> Array:
    """Pixels as float32: integers by the maximum of their dtype to [0, 1], floats as they are."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32, copy=False)
    return pixels / np.float32(np.iinfo(pixels.dtype).max)


def resize(x: Array, extents: tuple[int, int]) -> Array:
    """(H, W, C) float32 resized bilinearly and with antialiasing."""
    if x.shape[:2] == extents:
        return x
    pillow: Any = require("PIL.Image", "image")
    channels = (pillow.fromarray(channel) for channel in np.ascontiguousarray(np.moveaxis(x, -1, 0)))
    bilinear = pillow.Resampling.BILINEAR
    return np.stack([np.asarray(channel.resize(extents[::-1], bilinear)) for channel in channels], -1)
