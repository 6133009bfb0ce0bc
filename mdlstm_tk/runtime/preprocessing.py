"""Turn image files into the arrays that networks take.

Training, inference, reports and servers all call this module, so that a network sees the same numbers
everywhere. `Preprocessing` is the part that a network depends on: checkpoints and exported models store it.

Decoding   Pillow, with the orientation of EXIF applied; the first frame or page if there are several.
           Colour profiles are ignored.
Channels   Palettes are resolved. Transparent pixels are blended with white. Grey is repeated for networks
           that take colours; colours become grey by the luma of ITU-R 601 for networks that take grey.
Scale      8 bits are divided by 255 and 16 bits by 65535; floating-point and 32-bit integer images are used
           as they are.

`docs/images.md` has the details.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import reason_of
from mdlstm_tk.errors import InputError, Message, require
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, MORE_BYTES, Array, open_input

DECODERS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")  # others of Pillow's start programs
LUMA = (19595, 38470, 7471)  # of 65536: 0.299, 0.587, 0.114, as Pillow rounds them
PIXEL_BYTES = 4 * FLOAT_BYTES  # red, green, blue and opacity
BLOCK_PIXELS = 2**20  # that are blended with white at a time, so that 16-bit products take little memory

ORIENTATION = 0x0112  # tag of EXIF
WIDTH, HEIGHT, BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 256, 257, 258, 262, 284, 339  # tags of TIFF
WHITE_IS_ZERO, SEPARATE, SIGNED = 0, 2, 2  # their values
SIDEWAYS = (5, 6, 7, 8)  # orientations in EXIF that exchange height and width


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a network.

    Attributes:
        channels: 1 for grey, 3 for red, green and blue.
        resize: extents (H, W) that every image is resized to, bilinearly and with antialiasing. If one of
            them is None, it follows from the aspect of the image. None keeps the image's own extents.
    """

    channels: int = 1
    resize: tuple[int | None, int | None] | None = None

    def __call__(self, pixels: Array) -> Array:
        """Convert decoded pixels to what the network takes.

        Args:
            pixels: (H, W) or (H, W, 3), as `decode_image` returns them.

        Returns:
            (H, W, channels) float32.
        """
        if self.channels == 1 and pixels.ndim == 3:
            pixels = to_grey(pixels)
        scaled = scale(pixels)
        scaled = scaled[..., None] if scaled.ndim == 2 else scaled
        scaled = resize(scaled, self.resized((scaled.shape[0], scaled.shape[1])))
        return np.repeat(scaled, self.channels, axis=-1) if scaled.shape[-1] < self.channels else scaled

    def resized(self, extents: tuple[int, int]) -> tuple[int, int]:
        """Return the extents (H, W) that an image of these extents gets."""
        new_height, new_width = self.resize or extents
        height, width = extents
        return (
            new_height or max(1, (2 * height * (new_width or 1) + width) // (2 * width)),
            new_width or max(1, (2 * width * (new_height or 1) + height) // (2 * height)),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Rebuild what `to_json` returned; the values may be untrusted.

        Raises:
            ValueError: a field is unknown or out of range.
        """
        channels, extents = values.get("channels"), values.get("resize")
        if set(values) != {"channels", "resize"} or type(channels) is not int or channels not in (1, 3):
            raise ValueError(f"invalid preprocessing: {dict(values)!r:.200}")
        if extents is None:
            return cls(channels)
        height, width = extents
        fixed = [extent for extent in (height, width) if extent is not None]
        if not fixed or not all(type(extent) is int and extent > 0 for extent in fixed):
            raise ValueError(f"invalid extents to resize to: {extents!r:.200}")
        return cls(channels, (height, width))


def decode_image(
    data: bytes, label: str, max_bytes: int = MAX_BYTES, *, too_large: Message | None = None
) -> Array:
    """Decode an image file.

    Args:
        data: content of a PNG, JPEG, TIFF, BMP, GIF, WebP, PGM or PPM file.
        label: what error messages call it.
        max_bytes: maximum size in bytes of the pixels, each counted as four channels of float32.
        too_large: advice at the end of an error, for a caller that sets no other limit.

    Returns:
        (H, W) if the image is grey, else (H, W, 3): uint8, uint16 or float32.

    Raises:
        InputError: the file is not such an image, is damaged or too large; or it has more pixels than
            Pillow decodes, which `PIL.Image.MAX_IMAGE_PIXELS` of the calling program sets.
        MissingExtraError: Pillow is not installed.
    """
    with open_image(io.BytesIO(data), label, too_large) as image:
        nbytes = image.width * image.height * PIXEL_BYTES
        if nbytes > max_bytes:
            raise InputError(
                f"{label} has {format_size((image.height, image.width))} pixels, which take {nbytes} "
                f"bytes, more than {max_bytes}",
                too_large or MORE_BYTES,
            )
        image.load()
        return upright(_pixels(image), orientation_of(image))


def read_extents(path: Path) -> tuple[int, int, int]:
    """Return height and width of an image file as it is stored, and its orientation in EXIF, undecoded.

    Raises:
        InputError: the file cannot be read, or is not an image that `decode_image` reads.
        MissingExtraError: Pillow is not installed.
    """
    with open_input(path) as file, open_image(file, str(path)) as image:
        tags = getattr(image, "tag_v2", {})  # of TIFF, where Pillow has turned the extents beforehand
        return tags.get(HEIGHT, image.height), tags.get(WIDTH, image.width), orientation_of(image)


def to_grey(pixels: Array) -> Array:
    """Convert (H, W, 3) to its luma (H, W), in the same dtype; integers are rounded."""
    if pixels.dtype.kind == "f":
        weights = np.asarray(LUMA, np.float32) / np.float32(65536)
        return np.asarray(pixels @ weights, np.float32)
    return np.asarray((pixels.astype(np.uint32) @ np.asarray(LUMA, np.uint32) + 32768) >> 16, pixels.dtype)


def scale(pixels: Array) -> Array:
    """Convert pixels to float32: integers by the maximum of their dtype to [0, 1], floats as they are."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32, copy=False)
    return pixels / np.float32(np.iinfo(pixels.dtype).max)


def widened(values: Array, bits: int) -> Array:
    """Unsigned integers of so many bits, as 12 in a TIFF, scaled up to all bits of their dtype."""
    if not 1 < bits < 8 * values.dtype.itemsize <= 16:
        return values
    largest, most = np.iinfo(values.dtype).max, 2**bits - 1
    return np.asarray((values.astype(np.uint32) * largest + most // 2) // most, values.dtype)


def resize(pixels: Array, extents: tuple[int, int]) -> Array:
    """Resize (H, W, C) float32 to new extents (H, W), bilinearly and with antialiasing.

    Raises:
        InputError: the result takes more than 1 GiB, as that of an image of few rows and very many columns
            that is resized to a fixed height.
        MissingExtraError: Pillow is not installed.
    """
    if pixels.shape[:2] == extents:
        return pixels
    nbytes = prod(extents) * pixels.shape[2] * FLOAT_BYTES
    if nbytes > MAX_BYTES:
        raise InputError(
            f"an image of {format_size(pixels.shape[:2])} pixels would be resized to "
            f"{format_size(extents)}, which takes {nbytes} bytes, more than {MAX_BYTES}; crop it"
        )
    module: Any = require("PIL.Image", "image")
    height, width = extents
    channels = [
        np.asarray(module.fromarray(channel).resize((width, height), module.Resampling.BILINEAR))
        for channel in np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    ]
    return np.stack(channels, axis=-1)


@contextmanager
def open_image(file: IO[bytes], label: str, too_large: Message | None = None) -> Iterator[Any]:
    """Open an image with Pillow, and turn the exceptions of Pillow into `InputError`.

    Args:
        file: the file; only formats of `DECODERS` are tried.
        label: what error messages call it.
        too_large: as in `decode_image`.
    """
    module: Any = require("PIL.Image", "image")
    try:
        with module.open(file, formats=DECODERS) as image:
            _mend_tiff(image, label)
            yield image
    except (InputError, MemoryError):
        raise
    except module.DecompressionBombError:
        raise InputError(
            f"{label} has more than {2 * module.MAX_IMAGE_PIXELS} pixels, which Pillow refuses",
            too_large or Message(MORE_BYTES, " and PIL.Image.MAX_IMAGE_PIXELS"),
        ) from None
    except module.UnidentifiedImageError:
        raise InputError(
            f"{label} is no image of a known type; expected {', '.join(DECODERS)} as Pillow reads them, "
            "not TIFF of every depth; save it with 8 bits in each channel, or 16 bits of grey"
        ) from None
    except Exception as error:  # Pillow's decoders raise all kinds of exceptions for damaged images
        raise InputError(f"{label} is a damaged image: {reason_of(error)}; save it again") from None


def _mend_tiff(image: Any, label: str) -> None:
    """Let Pillow decode a TIFF as it is: it would swap the bytes of compressed big-endian numbers, which
    libtiff has swapped before, and mixes up some channels that are stored apart.

    Raises:
        InputError: the channels are stored so.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(PLANES) == SEPARATE and (image.mode == "LA" or max(tags.get(BITS, (8,))) > 8):
        raise InputError(
            f"{label} stores its channels apart, which Pillow reads for colours of 8 bits alone; save it "
            "with the channels of a pixel together, or with 8 bits"
        )
    for k, tile in enumerate(image.tile):
        codec, extents, offset, args = tile
        if codec == "libtiff" and args[0].startswith(("F;", "I;")):
            values = codec, extents, offset, (args[0].replace("B", "N"), *args[1:])
            image.tile[k] = tile._make(values) if hasattr(tile, "_make") else values  # before Pillow 11


def upright(pixels: Array, orientation: int) -> Array:
    """Turn (H, W) or (H, W, 3) upright by its orientation in EXIF."""
    pixels = pixels.swapaxes(0, 1) if orientation in SIDEWAYS else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels)


def _pixels(image: Any) -> Array:
    """The pixels of a Pillow image without palette and transparency: (H, W) or (H, W, 3)."""
    tags = getattr(image, "tag_v2", {})  # of TIFF, where Pillow ignores two of them
    if image.mode.startswith("I;16"):
        values = widened(np.asarray(image).astype(np.uint16), tags.get(BITS, (16,))[0])
        return 65535 - values if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else values
    is_signed = SIGNED in tags.get(SAMPLE_FORMAT, ())
    if image.mode == "I":  # 16-bit PGM, and 16-bit PNG in some versions of Pillow; else a 32-bit TIFF
        if image.format in ("PNG", "PPM"):
            return np.asarray(image).astype(np.uint16)
        return np.asarray(image).view(np.int32 if is_signed else np.uint32).astype(np.float32)
    if image.mode == "L" and is_signed:
        return np.asarray(image).view(np.int8).astype(np.float32)
    if image.mode == "F":
        return np.asarray(image, dtype=np.float32)
    if image.has_transparency_data:
        return _blended_with_white(image)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _blended_with_white(image: Any) -> Array:
    """The pixels of a transparent Pillow image on a white background: (H, W) or (H, W, 3) uint8."""
    channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    result = np.empty((image.height, image.width, channels), np.uint8)
    rows = max(1, BLOCK_PIXELS // max(image.width, 1))
    for top in range(0, image.height, rows):
        block = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels = np.asarray(block.convert("RGBA")).astype(np.uint16)
        colours, opacity = pixels[..., :channels], pixels[..., 3:]  # 255 · 255 + 127 fits into 16 bits
        result[top : top + rows] = (colours * opacity + 255 * (255 - opacity) + 127) // 255
    return result[..., 0] if channels == 1 else result


def orientation_of(image: Any) -> int:
    """The orientation of a Pillow image in its EXIF data; 1, upright, if there are none.

    It is also 1 if they are damaged, which does not make the pixels unusable.
    """
    with suppress(Exception):  # Pillow raises all kinds of exceptions for damaged EXIF data
        return int(image.getexif().get(ORIENTATION, 1))
    return 1
