"""Images: each type, turned or transparent, gives the pixels it shows, in training and inference."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_models import recogniser, write_model
from PIL import ExifTags, Image, ImageOps

from mdlstm_tk.data.files import read_pixels
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing, decode_image, read_extents, resize, to_grey
from mdlstm_tk.runtime import Session, load_image
from mdlstm_tk.runtime.inputs import read_feeds

PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 21, 3)).astype(np.uint8))
OPACITY = Image.fromarray(np.tile(np.linspace(0, 255, 21).astype(np.uint8), (13, 1)))
GREY = np.asarray(PICTURE.convert("L"))
INDEXED = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)


def transparent(mode: str) -> Image.Image:
    """The picture with an opacity that rises from left to right."""
    image = PICTURE.convert(mode)
    image.putalpha(OPACITY)
    return image


def oriented(tag: int) -> dict[str, Any]:
    """Options of `save` that store an orientation, as a camera does that was held otherwise."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    return {"exif": exif}


FORMATS = {"png": "1 L P RGB", "jpg": "L RGB CMYK", "tif": "L RGB CMYK", "bmp": "1 L P RGB", "gif": "L P"}
FORMATS |= {"webp": "RGB", "pgm": "L", "ppm": "RGB"}
# By mode and suffix: an image, and options of `save`.
IMAGE_TYPES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    **{f"{mode}.{end}": (PICTURE.convert(mode), {}) for end in FORMATS for mode in FORMATS[end].split()},
    "LA.png": (transparent("L"), {}),
    "RGBA.png": (transparent("RGB"), {}),
    "RGBA.tif": (transparent("RGB"), {}),
    "RGBA.webp": (transparent("RGB"), {"lossless": True}),
    "one colour transparent.png": (INDEXED, {"transparency": INDEXED.getpixel((0, 0))}),
    "one colour transparent.gif": (INDEXED, {"transparency": INDEXED.getpixel((0, 0))}),
    "two frames.gif": (INDEXED, {"save_all": True, "append_images": [Image.new("P", (99, 99))]}),
    "progressive.JPEG": (PICTURE, {"progressive": True}),
    "compressed.tiff": (PICTURE, {"compression": "tiff_lzw"}),
    "16 bits.png": (Image.fromarray(GREY * np.uint16(257)), {}),
    "16 bits.tif": (Image.fromarray(GREY * np.uint16(257)), {}),
    "32 bits.tif": (Image.fromarray((GREY // 64).astype(np.int32)), {}),
    "float.tif": (Image.fromarray(GREY / np.float32(255)), {}),
    **{
        f"{mode}, turned {tag}.{suffix}": (PICTURE.convert(mode), oriented(tag))
        for mode, suffix in (("RGB", "jpg"), ("L", "png"), ("RGB", "tif"))
        for tag in range(1, 9)
    },
}


def saved(folder: Path, name: str) -> Path:
    """The file of a type."""
    path = folder / f"image.{name.rpartition('.')[2]}"
    image, options = IMAGE_TYPES[name]
    image.save(path, **options)
    return path


def shown(path: Path) -> Any:
    """The pixels that a file shows, by another way: Pillow turns it, and float64 blends it with white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode in ("I;16", "I;16B", "I", "F"):
        return np.asarray(image).astype(np.float64)
    grey = image.mode in ("1", "L", "LA")
    pixels = np.asarray(image.convert("RGBA")).astype(np.float64)
    if "A" not in image.mode and "transparency" not in image.info:
        return np.asarray(image.convert("L" if grey else "RGB")).astype(np.float64)
    opacity = pixels[..., 3:] / 255
    blended = np.rint(pixels[..., :3] * opacity + 255 * (1 - opacity))
    return blended[..., 0] if grey else blended


@pytest.mark.parametrize("name", IMAGE_TYPES)
def test_each_type_gives_the_pixels_that_it_shows(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name)
    pixels = decode_image(path.read_bytes(), "it")
    expected = shown(path)
    np.testing.assert_array_equal(pixels, expected.reshape(pixels.shape))
    np.testing.assert_array_equal(read_pixels(path), pixels, strict=True)  # of training
    assert read_extents(path) == pixels.shape[:2]
    for channels in (1, 3):
        top = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        grey = to_grey(pixels) if pixels.ndim == 3 else pixels
        plain = grey if channels == 1 else pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1)
        in_training = Preprocessing(channels)(pixels)
        np.testing.assert_allclose(np.squeeze(in_training), plain / top, rtol=1e-6)
        for layout in ("N H W C", "N C H W"):
            model = write_model(tmp_path / "m.onnx", channels=channels, outputs=channels, layout=layout)
            x = load_image(path, Session(model, "cpu").metadata)
            x = x if x.ndim == 2 or layout == "N H W C" else np.moveaxis(x, 0, -1)
            np.testing.assert_array_equal(x.reshape(in_training.shape), in_training, strict=True)


def test_grey_is_luma_and_opacity_blends_with_white() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert to_grey(pixels).tolist() == [[76, 150, 29]]
    many = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3)).astype(np.uint8)
    np.testing.assert_array_equal(to_grey(many), np.asarray(Image.fromarray(many).convert("L")))
    np.testing.assert_allclose(to_grey(many / np.float32(255)), to_grey(many) / 255, atol=0.502 / 255)
    assert to_grey(pixels.astype(np.uint16) * 257).dtype == np.uint16
    Image.fromarray(np.array([[[0, 100, 200, 128]]], np.uint8)).save(buffer := io.BytesIO(), "PNG")
    assert decode_image(buffer.getvalue(), "it").tolist() == [[[127, 177, 227]]]


@pytest.mark.parametrize(
    ("extents", "size", "expected"),
    [
        ((10, 20), None, (10, 20)),
        ((10, 20), (5, None), (5, 10)),
        ((10, 20), (None, 5), (3, 5)),
        ((10, 20), (4, 4), (4, 4)),
        ((1, 999), (None, 1), (1, 1)),
        ((999, 1), (1, None), (1, 1)),
    ],
)
def test_images_are_resized(extents: Any, size: Any, expected: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, extents).astype(np.uint8)
    x = Preprocessing(3, size)(pixels)
    assert x.shape == (*expected, 3) == (*Preprocessing(3, size).resized(extents), 3)
    np.testing.assert_array_equal(x, resize(pixels[..., None] / np.float32(255), expected).repeat(3, -1))


def tiff(pixels: Any, **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


DEEP = np.random.default_rng(2).integers(0, 4096, (9, 11)).astype(np.uint16)


UNUSUAL: list[tuple[Any, dict[str, Any]]] = [
    (DEEP.astype(np.int8), {"photometric": "minisblack"}),
    (DEEP, {"photometric": "miniswhite"}),
    (DEEP.astype(">f4"), {"photometric": "minisblack", "compression": "zlib", "byteorder": ">"}),
    (np.stack([DEEP] * 3), {"photometric": "rgb", "planarconfig": "separate"}),
    (DEEP.astype(np.float64), {"photometric": "minisblack"}),
]


def test_a_tiff_is_read_right_or_refused() -> None:
    for pixels, options in UNUSUAL:
        with pytest.raises(InputError, match="it cannot be read"):
            decode_image(tiff(pixels, **options), "it")
    for options in ({"byteorder": ">"}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": "<"}):
        read = decode_image(tiff(DEEP, photometric="minisblack", **options), "it")
        np.testing.assert_array_equal(read, DEEP)
    inverted = tiff((DEEP >> 4).astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(decode_image(inverted, "it"), 255 - (DEEP >> 4))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
@pytest.mark.parametrize("name", ["RGB.png", "L.jpg", "RGB.tif", "P.gif", "RGB.webp", "L.bmp", "RGB.ppm"])
def test_a_damaged_image_is_refused_or_read(tmp_path: Path, name: str) -> None:
    data, rng = saved(tmp_path, name).read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        pixels = None
        with suppress(InputError):
            pixels = decode_image(bytes(damaged), "it")
        assert pixels is None or (pixels.ndim in (2, 3) and pixels.size)


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("1", (2000, 2000)).save(buffer, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="pixels"):
        decode_image(buffer.getvalue(), "it")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "three axes": ({"layout": "N D H W C", "window": (1, 1, 1), "axes": 5}, "N D H W C"),
    "two channels": ({"channels": 2, "outputs": 2}, "C = 2"),
    "other numbers": ({"unit_range": False}, "other numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_takes_no_such_image_refuses_it(tmp_path: Path, name: str) -> None:
    fields, word = REFUSED[name]
    PICTURE.save(tmp_path / "i.png")
    metadata = Session(write_model(tmp_path / "m.onnx", **fields), "cpu").metadata
    with pytest.raises(InputError, match=word):
        load_image(tmp_path / "i.png", metadata)


def test_a_photograph_is_no_line(tmp_path: Path) -> None:
    metadata = Session(recogniser(tmp_path / "m.onnx"), "cpu").metadata
    for size, is_page in (((900, 600), True), ((2000, 600), False), ((300, 400), False)):
        Image.new("L", size).save(tmp_path / "i.png")
        if is_page:
            with pytest.raises(InputError, match="mdlstm read"):
                read_feeds(str(tmp_path / "i.png"), metadata)
        else:
            feeds = read_feeds(str(tmp_path / "i.png"), metadata)
            assert feeds[None].arguments["x"].shape == size[::-1]
