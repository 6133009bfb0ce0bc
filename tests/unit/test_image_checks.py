"""Image files that take far longer to decode than their size tells are refused; real ones are not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.image_checks import (
    MAX_COMMENTS,
    MAX_SCANS,
    MAX_STRIPS,
    check_image,
    count_scans,
)
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.preprocessing import decode_image

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 50, 3), np.uint8)
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def progressive(further_scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated, with its tables."""
    data = saved(Image.new("L", (16, 16), 128), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xc4") : -2]
    return data[:-2] + last * further_scans + b"\xff\xd9"


def directory(entries: list[tuple[int, int, int, int]], before: bytes = b"", after: bytes = b"") -> bytes:
    """A TIFF with one directory of (tag, type, number of values, value or offset)."""
    start = struct.pack("<2sHI", b"II", 42, 8 + len(before)) + before
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return start + struct.pack("<H", len(entries)) + packed + b"\0" * 4 + after


def grey_tiff(height: int, strips: int, *more: tuple[int, int, int, int], after: bytes = b"") -> bytes:
    """A TIFF of one column, in strips of one row whose offsets lie in the file at 8."""
    offsets = struct.pack("<I", 8) * strips
    counts = struct.pack("<I", 1) * strips
    end = 8 + len(offsets)
    basic = [
        (256, 3, 1, 1),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    in_strips = [(273, 4, strips, 8), (278, 4, 1, 1), (279, 4, strips, end)]
    return directory([*basic, *in_strips, *more], offsets + counts, after)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, bits: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """A black PNG of 4×4 with further chunks before its pixels."""
    header = struct.pack(">IIBBBBB", 4, 4, bits, colour, 0, 0, interlace)
    parts = [
        chunk(b"IHDR", header),
        *chunks,
        chunk(b"IDAT", zlib.compress(b"\0" * 400)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def overlapping(count: int, size: int) -> bytes:
    """EXIF data whose tags all lie at the same place."""
    return directory([(1000 + k, 7, size, 8) for k in range(count)], after=b"\0" * size)


SLOW = {
    "JPEG of many scans": (lambda: progressive(MAX_SCANS), "scans"),
    "TIFF of many strips": (lambda: grey_tiff(MAX_STRIPS + 1, MAX_STRIPS + 1), "strips"),
    "TIFF whose tags overlap": (
        lambda: grey_tiff(3, 3, *((1000 + k, 7, 5000, 8) for k in range(300)), after=b"\0" * 5000),
        "overlap",
    ),
    "PGM of many comments": (
        lambda: b"P2\n2 2\n9\n" + b"#\n" * (MAX_COMMENTS + 1) + b"1 2 3 4",
        "comments",
    ),
    "PGM of a long header": (lambda: b"P5\n" + b"#\n" * 50_000 + b"2 2\n255\n1234", "header"),
    "PNG whose text unpacks to gigabytes": (
        lambda: png(*(chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 10**6)) for _ in range(70))),
        "text",
    ),
    "PNG whose profile unpacks to gigabytes": (
        lambda: png(chunk(b"iCCP", b"k\0\0" + zlib.compress(b"a" * 10**7))),
        "large",
    ),
}


@pytest.mark.parametrize("case", SLOW)
def test_slow_images_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = SLOW[case]
    (tmp_path / "x.png").write_bytes(make())
    with pytest.raises(InputError, match=message) as error:
        read_input(str(tmp_path / "x.png"))
    assert str(error.value).isprintable()


HONEST: dict[str, Callable[[], bytes]] = {
    **{name: (lambda name=name: saved(Image.fromarray(PHOTO), name)) for name in FORMATS},
    "progressive": lambda: saved(
        Image.fromarray(PHOTO), "JPEG", progressive=True, quality=95, subsampling=0
    ),
    "restart markers": lambda: saved(Image.fromarray(PHOTO), "JPEG", restart_marker_rows=1),
    "EXIF": lambda: saved(
        Image.fromarray(PHOTO), "JPEG", exif=Image.Exif().tobytes(), icc_profile=b"\xff\xda" * 9999
    ),
    "TIFF of strips": lambda: grey_tiff(500, 500),
    "comments": lambda: b"P2 # one\n# two\n2 2\n# three\n255\n1 2 3 # four\n4",
    "frames": lambda: saved(
        Image.new("L", (4, 4)),
        "GIF",
        save_all=True,
        append_images=[Image.new("L", (4, 4), k) for k in range(9)],
    ),
}


@pytest.mark.parametrize("case", HONEST)
def test_honest_images_are_read(case: str) -> None:
    data = HONEST[case]()
    check_image(data, case)
    assert decode_image(data, case).size


def test_scans_are_counted() -> None:
    assert count_scans(saved(Image.fromarray(PHOTO), "JPEG")) == 1
    real = count_scans(saved(Image.fromarray(PHOTO), "JPEG", progressive=True, quality=95))
    assert 2 < real <= 14
    assert count_scans(progressive(50)) == count_scans(progressive(0)) + 50
    for cut in range(0, 400, 7):  # of damaged files, too
        count_scans(progressive(2)[:cut])


EXIF_CASES = {
    "PNG": lambda exif: png(chunk(b"eXIf", exif)),
    "WebP": lambda exif: saved(Image.new("RGB", (4, 4)), "WEBP", exif=exif),
}


@pytest.mark.parametrize("file_format", EXIF_CASES)
def test_exif_data_that_overlap_are_not_read(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a JPEG take at most 64 KiB, and Pillow reads them when it opens the file."""
    data = EXIF_CASES[file_format](overlapping(500, 20_000))
    monkeypatch.setattr(Image.Image, "getexif", lambda self: pytest.fail("were read"))
    assert decode_image(data, "x").shape[:2] == (4, 4)


def pixels_or_refusal(data: bytes) -> np.ndarray | str:
    try:
        return decode_image(data, "x")
    except InputError as error:
        return str(error)


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16B"),
)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read_or_refused_in_one_line(mode: str) -> None:
    image = Image.new(mode, (5, 3))
    for file_format in FORMATS:
        try:
            data = saved(image, file_format)
        except (OSError, ValueError, KeyError):
            continue  # this format has no such mode
        pixels = pixels_or_refusal(data)
        if isinstance(pixels, str):
            assert mode == "LAB" and pixels.isprintable()
        else:
            assert pixels.shape[:2] == (3, 5) and pixels.ndim <= 3
            assert pixels.dtype in (np.uint8, np.uint16, np.float32)


@pytest.mark.parametrize("colour", [0, 2, 3, 4, 6])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_every_png_is_read_or_refused_in_one_line(bits: int, colour: int) -> None:
    for interlace in (0, 1):
        pixels = pixels_or_refusal(png(bits=bits, colour=colour, interlace=interlace))
        if isinstance(pixels, str):
            assert pixels.isprintable()
        else:
            assert pixels.shape[:2] == (4, 4)


@pytest.mark.parametrize("extents", ["0 0", "0 5", "5 0", "99999 99999", "-1 2"])
def test_odd_extents_are_refused(extents: str) -> None:
    with pytest.raises(InputError):
        decode_image(f"P5 {extents} 255\n".encode() + b"\0" * 50, "x")


def test_transparent_images_are_blended_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (40, 50, 4), np.uint8))
    whole = decode_image(saved(image, "PNG"), "x")
    monkeypatch.setattr("mdlstm_tk.runtime.preprocessing.BLOCK_PIXELS", 120)
    np.testing.assert_array_equal(decode_image(saved(image, "PNG"), "x"), whole)
    grey = saved(image.convert("LA"), "PNG")
    assert decode_image(grey, "x").shape == (40, 50)
