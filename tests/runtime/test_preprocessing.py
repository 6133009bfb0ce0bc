"""Arrays of image files, compared with conversions by Pillow itself."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from itertools import product
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import preprocessing
from mdlstm_tk.runtime.preprocessing import (
    Preprocessing,
    decode_image,
    read_extents,
    resize,
    scale,
    to_grey,
    widened,
)

MODES = {  # the modes that each type of file can hold; "t" stands for one transparent colour
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "1t", "Lt", "Pt", "RGBt"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P", "Pt"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
}
CASES = [(form, mode) for form, modes in MODES.items() for mode in modes]
TRANSPARENT = {"1t": 255, "Lt": 7, "Pt": 3, "RGBt": (0, 255, 255)}
DTYPES = {"I;16": (np.uint16, 0, 2**16), "I": (np.int32, -(2**31), 2**31), "F": (np.float32, -9, 9)}


def random_image(rng: np.random.Generator, mode: str) -> Image.Image:
    height, width = rng.integers(1, 40, 2).tolist()
    if mode in DTYPES:
        dtype, low, high = DTYPES[mode]
        return Image.fromarray(rng.integers(low, high, (height, width)).astype(dtype))
    if mode.startswith("P"):
        image = Image.fromarray(rng.integers(0, 9, (height, width), dtype=np.uint8))
        image.putpalette(rng.integers(0, 256, 27, dtype=np.uint8).tobytes())
        return image
    if mode == "RGBt":  # so that its colour occurs
        return Image.fromarray(rng.choice([0, 255], (height, width, 3)).astype(np.uint8))
    channels = len(Image.new(mode.removesuffix("t"), (1, 1)).getbands())
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if mode.startswith("1"):
        return Image.fromarray(pixels[..., 0] > 127)
    bands = [Image.fromarray(pixels[..., band]) for band in range(channels)]
    return Image.merge(mode.removesuffix("t"), bands)


def by_pillow(data: bytes, mode: str) -> np.ndarray[Any, Any]:
    """(H, W) or (H, W, 3) in float64 by Pillow's own conversions."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if mode in DTYPES:
        pixels = np.asarray(image, np.float64)
        return pixels / 65535 if mode == "I;16" else pixels
    is_grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image.convert("RGBA"))
        image = background
    pixels = np.asarray(image.convert("RGB"), np.float64) / 255
    return pixels[..., 0] if is_grey else pixels


@pytest.mark.parametrize(("form", "mode"), CASES)
def test_images_of_every_mode_are_decoded(form: str, mode: str) -> None:
    rng = np.random.default_rng(0)
    for orientation in (None, *range(1, 9)):
        options: dict[str, Any] = {"transparency": TRANSPARENT[mode]} if mode in TRANSPARENT else {}
        if orientation and form in ("PNG", "JPEG", "TIFF", "WEBP"):
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = orientation
        buffer = io.BytesIO()
        random_image(rng, mode).save(buffer, form, **options)
        reference = by_pillow(buffer.getvalue(), mode)
        pixels = decode_image(buffer.getvalue(), "x")
        atol = 1.01 / 255 if "A" in mode or mode in TRANSPARENT else 1e-6 * max(1, np.abs(reference).max())
        assert pixels.ndim == reference.ndim
        for channels in (1, 3):
            x = Preprocessing(channels)(pixels)
            is_mixed = channels == 1 and reference.ndim == 3
            target = reference @ [0.299, 0.587, 0.114] if is_mixed else reference
            target = np.broadcast_to(target.reshape(*target.shape[:2], -1), (*target.shape[:2], channels))
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, target, rtol=0, atol=atol + is_mixed * 0.51 / 255)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
@pytest.mark.parametrize(
    ("photometric", "stored"),
    [
        ("minisblack", {}),
        ("miniswhite", {}),
        *(("minisblack", {"byteorder": order, "compression": "zlib"}) for order in "<>"),
    ],
    ids=str,
)
def test_grey_tiff_keeps_its_numbers(dtype: str, photometric: str, stored: dict[str, Any]) -> None:
    """Signed ones, large ones, and those of 16 bits whose zero is white, which Pillow passes on raw."""
    limits = np.iinfo(dtype) if dtype[0] in "iu" else np.finfo(dtype)
    x = np.array([[limits.min, 0, 1], [3, limits.max // 2, limits.max]], dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, x, photometric=photometric, **stored)
    try:
        pixels = decode_image(file.getvalue(), "x.tif")
    except InputError:
        is_white = photometric == "miniswhite" and dtype not in ("u1", "u2", "f4")
        assert is_white or (dtype == "u4" and stored.get("byteorder") == ">")
        return
    expected = limits.max - x if photometric == "miniswhite" and dtype[0] == "u" else x
    np.testing.assert_array_equal(pixels, expected.astype(x.dtype if dtype in ("u1", "u2") else np.float32))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("dtype", "channels"), [("u1", 2), ("u1", 3), ("u1", 4), ("u2", 3), ("u2", 4)])
def test_channels_that_are_stored_apart_are_read_or_refused(
    dtype: str, channels: int, compression: str | None
) -> None:
    x = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7, channels)).astype(dtype)
    options: dict[str, Any] = {"photometric": "minisblack" if channels == 2 else "rgb", "metadata": None}
    options |= {"compression": compression, "extrasamples": None if channels == 3 else ["unassalpha"]}
    together, apart = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(together, x, planarconfig="contig", **options)
    tifffile.imwrite(apart, np.moveaxis(x, -1, 0), planarconfig="separate", **options)
    if dtype == "u2" or channels == 2:
        with pytest.raises(InputError, match=r"stores its channels apart|unknown raw mode"):
            decode_image(apart.getvalue(), "x.tif")
    else:
        images = (decode_image(file.getvalue(), "x.tif") for file in (together, apart))
        np.testing.assert_array_equal(*images, strict=True)


def tiff_of_bits(bits: int, channels: int = 1) -> tuple[bytes, Any]:
    """A TIFF with values of so many bits, one after the other, and its values."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (3, 4, channels))
    values[0, :2] = [[0], [2**bits - 1]]
    rows = ["".join(format(value, f"0{bits}b") for value in row.flat) for row in values]
    data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    place = 8 + len(data)  # of the list of bits, which three channels need
    tags = {256: (4, 4), 257: (4, 3), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, channels)}
    tags |= {258: (3, bits), 278: (4, 3), 279: (4, len(data))}
    if channels == 3:
        tags |= {258: (3, place), 262: (3, 2)}
    entries = [
        struct.pack("<HHII", tag, kind, channels if tag == 258 else 1, value)
        for tag, (kind, value) in sorted(tags.items())
    ]
    data += struct.pack("<3H", bits, bits, bits)
    start = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries))
    return start + b"".join(entries) + bytes(4), values[..., 0] if channels == 1 else values


def test_integers_of_few_bits_are_scaled_by_their_own_maximum_or_refused() -> None:
    for bits, channels in product((2, 4, 8, 10, 12, 14, 24), (1, 3)):
        data, values = tiff_of_bits(bits, channels)
        if (bits, channels) in ((2, 1), (4, 1), (8, 1), (8, 3), (12, 1)):
            pixels = decode_image(data, "x.tif")
            np.testing.assert_allclose(scale(pixels), values / (2**bits - 1), atol=1e-5)
            continue
        with pytest.raises(InputError, match=r"8 bits in each channel, or 16 bits of grey$"):
            decode_image(data, "x.tif")
    for bits in range(1, 33):
        dtype = np.dtype(f"u{1 if bits <= 8 else 2 if bits <= 16 else 4}")
        values = np.array([0, 1, 2 ** (bits - 1), 2**bits - 1], dtype)
        is_full = bits in (1, 8) or bits >= 16
        expected = values if is_full else np.rint(values / (2**bits - 1) * np.iinfo(dtype).max)
        np.testing.assert_array_equal(widened(values, bits), expected)


def test_grey_is_the_luma_that_pillow_computes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_grey(pixels), np.asarray(Image.fromarray(pixels).convert("L")))
    deep = pixels.astype(np.uint16) * 257
    weighted = deep @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(to_grey(deep), weighted, atol=0.5 + 65535 * 1e-5)
    np.testing.assert_array_equal(to_grey(np.full((2, 2, 3), 65535, np.uint16)), 65535)
    np.testing.assert_allclose(to_grey(np.ones((1, 2, 3), np.float32)), 1, rtol=1e-6)


@pytest.mark.parametrize(("largest", "dtype"), [(15, np.uint8), (255, np.uint8), (1000, np.uint16)])
def test_pgm_files_are_scaled_by_their_own_maximum(largest: int, dtype: type) -> None:
    values = np.linspace(0, largest, 12).astype(int).reshape(3, 4)
    stored = values.astype(">u2" if largest > 255 else "u1").tobytes()
    pixels = decode_image(f"P5 4 3 {largest}\n".encode() + stored, "x")
    assert pixels.dtype == dtype
    np.testing.assert_allclose(scale(pixels), values / largest, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # those of Pillow
def test_damaged_exif_data_do_not_make_an_image_unusable() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "WEBP", exif=exif.tobytes())
    data = buffer.getvalue()
    start = data.rindex(b"\0*\0\0\0\x08") - 2
    for position in range(start, start + 40):
        for value in (0, 7, 255):
            damaged = data[:position] + bytes([value]) + data[position + 1 :]
            assert decode_image(damaged, "x").shape in ((2, 3, 3), (3, 2, 3))


def test_files_that_are_no_images_are_refused_without_addresses_of_memory() -> None:
    for data in (b"", b"no image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(InputError, match=r"x is (no|a damaged) image") as refused:
            decode_image(data, "x")
        assert "0x" not in str(refused.value)
    with pytest.raises(InputError, match="no image of a known type; expected PNG, JPEG"):
        decode_image(b"no image", "x")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    with pytest.raises(InputError, match=r"x is a damaged image: .*truncated"):
        decode_image(buffer.getvalue()[:600], "x")


def test_resizing_is_antialiased_and_follows_scaling() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2**16, (8, 12), dtype=np.uint16)
    x = Preprocessing(3, (4, 6))(pixels)
    assert x.shape == (4, 6, 3)
    np.testing.assert_array_equal(x, resize(scale(pixels)[..., None], (4, 6)).repeat(3, axis=-1))
    assert abs(float(x.mean()) - float(scale(pixels).mean())) < 0.02  # every pixel counts
    np.testing.assert_array_equal(Preprocessing(1, (8, 12))(pixels)[..., 0], scale(pixels))


def test_a_free_extent_keeps_the_ratio_and_is_rounded_half_up() -> None:
    for height, width in ((1, 1), (5, 7), (6, 4), (40, 3), (3, 1000), (11, 22)):
        for extent in (1, 3, 4, 48):
            rounded = max(1, floor(Fraction(extent * width, height) + Fraction(1, 2)))
            assert Preprocessing(1, (extent, None)).resized((height, width)) == (extent, rounded)
            assert Preprocessing(1, (None, extent)).resized((width, height)) == (rounded, extent)


def test_a_strip_is_not_resized_to_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="1x1000000 pixels would be resized to 48x48000000"):
        Preprocessing(1, (48, None))(np.zeros((1, 10**6), np.uint8))
    pixels, nbytes = np.zeros((2, 3, 2), np.float32), 4 * 5 * 2 * 4
    monkeypatch.setattr(preprocessing, "MAX_BYTES", nbytes)
    assert resize(pixels, (4, 5)).shape == (4, 5, 2)
    monkeypatch.setattr(preprocessing, "MAX_BYTES", nbytes - 1)
    with pytest.raises(InputError, match=f"takes {nbytes} bytes, more than {nbytes - 1}"):
        resize(pixels, (4, 5))


def test_extents_are_read_without_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(InputError, match="there is no file"):
        read_extents(path)
    Image.new("L", (300, 200)).save(path)
    assert read_extents(path) == (200, 300, 1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"channels": 2, "resize": None},
        {"channels": True, "resize": None},
        {"channels": 1, "resize": [0, 3]},
        {"channels": 1, "resize": [3]},
        {"channels": 1, "resize": None, "more": 1},
    ],
    ids=str,
)
def test_damaged_descriptions_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Preprocessing.from_json(values)
    for steps in (Preprocessing(1), Preprocessing(3, (4, 5))):
        assert Preprocessing.from_json(steps.to_json()) == steps


def test_transparent_images_are_blended_with_white_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also block by block."""
    monkeypatch.setattr(preprocessing, "BLOCK_PIXELS", 3 * 7)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 7, 4), dtype=np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    colours, opacity = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    expected = np.floor((colours * opacity + 255 * (255 - opacity)) / 255 + 0.5)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "x"), expected)
