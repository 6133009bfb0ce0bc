"""Images and masks of every type are read as `infer` reads them, and masks keep their values."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers.refusal import refused
from helpers.user_data import RNG, read, write_classes, write_image, write_masks, write_targets
from PIL import Image

from mdlstm_tk.data import UNLABELLED
from mdlstm_tk.data.masks import read_mask
from mdlstm_tk.data.spec import SampleId
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing, decode_image

GREY = RNG.integers(0, 256, (6, 7)).astype(np.uint8)
COLOURS = RNG.integers(0, 256, (6, 7, 3)).astype(np.uint8)
OPACITY = RNG.integers(0, 256, (6, 7)).astype(np.uint8)
GREYS: dict[str, Image.Image] = {  # grey images of types that store them differently
    "la.png": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(OPACITY)]),
    "rgb-without-colours.png": Image.fromarray(np.stack([GREY] * 3, axis=-1)),
    "deep.png": Image.fromarray(GREY.astype(np.uint16) * 257),
    "float.tif": Image.fromarray(GREY.astype(np.float32) / 255),
    "grey.gif": Image.fromarray(GREY),
}
COLOURED: dict[str, Image.Image] = {
    "p.png": Image.fromarray(COLOURS).quantize(16),
    "rgba.png": Image.fromarray(np.dstack([COLOURS, OPACITY])),
}


def save(folder: Path, images: dict[str, Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / name)


@pytest.mark.parametrize(("images", "channels"), [(GREYS, 1), (COLOURED, 3), (GREYS | COLOURED, 3)])
@pytest.mark.parametrize("resize", [None, (3, 4), (12, None), (None, 5)], ids=str)
def test_training_sees_what_an_exported_model_sees(
    images: dict[str, Image.Image], channels: int, resize: tuple[int | None, int | None], tmp_path: Path
) -> None:
    save(tmp_path / "a", images)
    save(tmp_path / "b", images)
    task = read(tmp_path, "classify", validation=0.0, resize=resize)
    assert (task.skipped, task.spec.channels) == ([], channels)
    assert task.spec.preprocessing == Preprocessing(channels, resize)
    grid = {None: (6, 7), (3, 4): (3, 4), (12, None): (12, 14), (None, 5): (4, 5)}[resize]
    assert task.spec.size == grid
    files = [tmp_path / "a" / name for name in sorted(images)]
    for file, (x, _) in zip(files, task.sets["train"], strict=False):
        expected = task.spec.preprocessing(decode_image(file.read_bytes(), file.name))
        assert np.array_equal(x, expected), file.name
        assert x.shape == (*grid, channels)
    x = np.stack([x for x, _ in task.sets["train"]])
    np.testing.assert_allclose(x.mean((0, 1, 2)), task.spec.mean, rtol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), task.spec.std, rtol=1e-5)


def test_colours_in_validation_images_do_not_make_training_images_coloured(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    save(tmp_path / "val/a", {"rgb.png": Image.fromarray(COLOURS)})
    task = read(tmp_path, "classify")
    assert task.spec.channels == 1
    assert task.sets["validation"][0][0].shape == (6, 7, 1)


def test_the_only_coloured_image_may_be_held_out(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    save(tmp_path / "a", {"rgb.png": Image.fromarray(COLOURS)})
    task = read(tmp_path, "classify", known={"train": (), "validation": [SampleId("", "a/rgb.png")]})
    assert (task.spec.channels, task.count("validation")) == (3, 1)
    assert task.batch(0, 0, 4).x.shape[-1] == len(task.spec.mean) == 3


@pytest.mark.parametrize("resize", [(3, 4), (3, None)])
def test_images_are_resized_with_their_masks_and_targets(
    resize: tuple[int, int | None], tmp_path: Path
) -> None:
    for k in range(4):
        mask = np.kron(RNG.integers(0, 2, (3, 4)), np.ones((2, 2), int))
        write_image(tmp_path / f"images/{k}.png", 200 * mask)
        write_image(tmp_path / f"masks/{k}.png", mask)
        write_image(tmp_path / f"targets/{k}.png", 100 * mask)
    task = read(tmp_path, "segment", validation=0.0, resize=resize)
    for x, y in task.sets["train"]:
        assert x.shape == (3, 4, 1)
        assert np.array_equal(x[..., 0] > 0.4, y)
    for x, y in read(tmp_path, "grid", validation=0.0, resize=resize).sets["train"]:
        np.testing.assert_allclose(x, 2 * y, atol=1e-6)


def test_targets_may_be_images(tmp_path: Path) -> None:
    task = read(write_targets(tmp_path), "grid", validation=0.0)
    assert (task.spec.outputs, task.spec.classes, task.spec.preprocessing) == (1, (), Preprocessing(1))
    for x, y in task.sets["train"]:
        np.testing.assert_allclose(x + y, 1, atol=1e-6)
    y = np.concatenate([y.ravel() for _, y in task.sets["train"]])
    moments = [*task.spec.target_mean, *task.spec.target_std]
    np.testing.assert_allclose([y.mean(), y.std()], moments, rtol=1e-6)


def test_colours_in_test_targets_make_no_outputs(tmp_path: Path) -> None:
    write_targets(tmp_path / "train")
    write_image(tmp_path / "test/images/0.png", GREY)
    write_image(tmp_path / "test/targets/0.png", COLOURS)
    task = read(tmp_path, "grid")
    assert task.spec.outputs == len(task.spec.target_mean) == 1
    assert task.batch(0, 0, 1, "test").y.shape == (1, 6, 7, 1)


def palette_mask(mask: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(colours)
    return image


CLASSES = RNG.integers(0, 3, (6, 5, 7))  # six masks
PALETTE = [0, 0, 0, 200, 10, 0, 0, 120, 255]
VALUES = np.array([0, 7, 9])
SORTED_PALETTE = (0, 0, 0, 0, 120, 255, 200, 10, 0)


def grey_mask(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(VALUES[mask].astype(np.uint8))


MASKS: dict[str, tuple[str, Callable[[np.ndarray], Image.Image], tuple[int, ...], tuple[int, ...]]] = {
    # suffix, how a mask of indices 0, 1, 2 is written, expected values and palette
    "L": (".png", grey_mask, (0, 7, 9), ()),
    "palette": (".png", lambda m: palette_mask(m, PALETTE), (0, 1, 2), tuple(PALETTE)),
    "palette of a GIF": (".gif", lambda m: palette_mask(m, PALETTE), (0, 1, 2), tuple(PALETTE)),
    "grey GIF": (".gif", grey_mask, (0, 7, 9), ()),
    "grey RGB": (".bmp", lambda m: grey_mask(m).convert("RGB"), (0, 7, 9), ()),
    "I;16": (".png", lambda m: Image.fromarray(np.uint16([0, 255, 299])[m]), (0, 255, 299), ()),
    "I": (".tif", lambda m: Image.fromarray(np.int32([0, 255, 70000])[m]), (0, 255, 70000), ()),
    "float": (".tif", lambda m: Image.fromarray(np.float32([0, 1, 2])[m]), (0, 1, 2), ()),
    "RGB": (".png", lambda m: palette_mask(m, PALETTE).convert("RGB"), (0, 1, 2), SORTED_PALETTE),
    "unknown": (".png", lambda m: Image.fromarray(np.uint8([0, 1, 255])[m]), (0, 1), ()),
    "0 and 255": (".png", lambda m: Image.fromarray(np.uint8([0, 255, 255])[m]), (0, 255), ()),
    "bits": (".png", lambda m: Image.fromarray(m > 0), (0, 255), ()),
}
INDICES = {
    "RGB": [0, 2, 1],
    "unknown": [0, 1, UNLABELLED],
    "0 and 255": [0, 1, 1],
    "bits": [0, 1, 1],
}


@pytest.mark.parametrize("mode", MASKS)
def test_masks_of_every_type_have_the_values_of_their_classes(mode: str, tmp_path: Path) -> None:
    suffix, make, values, palette = MASKS[mode]
    (tmp_path / "masks").mkdir()
    for k, mask in enumerate(CLASSES):
        write_image(tmp_path / f"images/{k}.png", 100 * mask)
        make(mask).save(tmp_path / f"masks/{k}{suffix}")
    (tmp_path / "classes.txt").write_text("sky\n")
    task = read(tmp_path, "segment", validation=0.0)
    assert (task.skipped, task.spec.mask_values, task.spec.mask_palette) == ([], values, palette)
    assert task.spec.classes[0] == "sky" and task.spec.classes[1] != "sky"
    assert any("unknown class" in line for line in task.summary) == (mode == "unknown")
    order = np.array(INDICES.get(mode, [0, 1, 2]))  # colours are sorted
    for mask, (_, y) in zip(CLASSES, task.sets["train"], strict=True):
        assert np.array_equal(order[mask], y)


def png(mask: np.ndarray, bits: int, colour_type: int = 0, channels: int = 1) -> bytes:
    """A PNG of a type that Pillow does not write. Rows fill whole bytes."""
    values = np.repeat(mask[..., None], channels, axis=-1)
    rows = np.packbits(values[..., None] >> np.arange(bits)[::-1] & 1, axis=None).reshape(len(mask), -1)
    header = struct.pack(">2I5B", *mask.shape[::-1], bits, colour_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"IDAT", content), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(mask: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, mask, **options)
    return file.getvalue()


def inverted(bits: int) -> bytes:
    """A TIFF of SMALL in 4 or 2 bits whose value 0 is white, which neither Pillow nor tifffile writes."""
    rows = np.packbits(SMALL[..., None] >> np.arange(bits)[::-1] & 1).tobytes()
    shorts = {256: 4, 257: 2, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: 2, 279: len(rows)}
    entries = [struct.pack("<2HIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()]
    start = 8 + len(rows)
    entries[5] = struct.pack("<2HII", 273, 4, 1, 8)
    header = b"II" + struct.pack("<HI", 42, start)
    return header + rows + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


SMALL = np.array([[0, 1, 2, 3], [3, 3, 1, 0]], np.uint8)
DEEP = SMALL.astype(np.uint16)
STORED: dict[str, tuple[bytes, np.ndarray]] = {  # a file and the values in it
    "PGM to 3": (b"P5 4 2 3\n" + SMALL.tobytes(), SMALL),
    "PGM to 1000": (b"P5 4 2 1000\n" + (300 * DEEP).astype(">u2").tobytes(), 300 * DEEP),
    "PGM to 65535": (b"P5 4 2 65535\n" + DEEP.astype(">u2").tobytes(), DEEP),
    "PGM in digits": (b"P2 4 2 3\n" + b" ".join(b"%d" % value for value in SMALL.ravel()), SMALL),
    "grey PPM to 3": (b"P6 4 2 3\n" + np.repeat(SMALL, 3).tobytes(), SMALL),
    "PNG of 2 bits": (png(SMALL, 2), SMALL),
    "PNG of 4 bits": (png(5 * SMALL, 4), 5 * SMALL),
    "TIFF of int8": (tiff(SMALL.astype(np.int8) - 1), SMALL.astype(int) - 1),
    "TIFF of int16": (tiff(SMALL.astype(np.int16) - 1), SMALL.astype(int) - 1),
    "TIFF of uint32": (tiff(SMALL.astype(np.uint32) + 2**31), SMALL.astype(int) + 2**31),
    "TIFF of 2 bits, white is zero": (inverted(2), SMALL),
    "TIFF of 4 bits, white is zero": (inverted(4), SMALL),
    "TIFF of 8 bits, white is zero": (tiff(SMALL, photometric="miniswhite"), SMALL),
    "TIFF of 16 bits, white is zero": (tiff(DEEP, photometric="miniswhite"), SMALL),
    "WebP without loss": (encoded(Image.fromarray(SMALL), "WEBP", lossless=True), SMALL),
    "WebP without loss, in chunks": (
        encoded(Image.fromarray(SMALL), "WEBP", lossless=True, exif=Image.Exif(), icc_profile=b"VP8 odd"),
        SMALL,
    ),
    "frames of WebP without loss": (
        encoded(
            *(Image.fromarray(SMALL), "WEBP"),
            lossless=True,
            save_all=True,
            append_images=[Image.fromarray(3 - SMALL)],
        ),
        SMALL,
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_masks_have_the_values_that_their_file_stores(name: str, tmp_path: Path) -> None:
    data, expected = STORED[name]
    (tmp_path / "mask").write_bytes(data)
    mask = read_mask(tmp_path / "mask")
    assert np.array_equal(mask.pixels, expected) and mask.palette is None and not mask.has_colours


ROUGH = Image.fromarray(100 * SMALL)
COMPRESSED = {
    "JPEG": encoded(ROUGH, "JPEG"),
    "TIFF of JPEG": encoded(ROUGH, "TIFF", compression="jpeg"),
    "several pictures in a JPEG": encoded(ROUGH, "MPO", save_all=True, append_images=[ROUGH]),
    "WebP": encoded(ROUGH, "WEBP"),
    "WebP in chunks": encoded(ROUGH, "WEBP", icc_profile=b"VP8L"),
    "frames of WebP": encoded(ROUGH, "WEBP", save_all=True, append_images=[ROUGH.rotate(180)]),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_masks_whose_compression_changes_values_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "mask").write_bytes(COMPRESSED[name])
    refused("its mask is a .* whose compression may change values", lambda: read_mask(tmp_path / "mask"))


@pytest.mark.parametrize("values", [[0, 1, 1], [0, 1, 2], [0, 1, 255]], ids=str)
def test_white_of_one_bit_is_no_unknown_class(values: list[int], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for k, mask in enumerate(CLASSES):
        write_image(tmp_path / f"images/{k}.png", 100 * mask)
        one_bit, several = Image.fromarray(mask > 0), Image.fromarray(np.uint8(values)[mask])
        (one_bit if k % 2 else several).save(tmp_path / f"masks/{k}.png")
    refused("some masks have one bit, whose white is 255, and others", lambda: read(tmp_path, "segment"))


LOSSY = {
    "PNG": png(DEEP, 16, colour_type=2, channels=3),
    "PNG with opacity": png(DEEP, 16, colour_type=4, channels=2),
    "PPM": b"P6 4 2 1000\n" + np.repeat(DEEP, 3).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", LOSSY)
def test_masks_whose_low_bits_are_not_read_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "mask").write_bytes(LOSSY[name])
    refused("its mask has 16 bits in each of several channels", lambda: read_mask(tmp_path / "mask"))


def test_palettes_that_differ_make_colours_the_classes(tmp_path: Path) -> None:
    """Programs that optimise palettes number the same colours differently in each file."""
    (tmp_path / "masks").mkdir()
    for k, mask in enumerate(CLASSES):
        write_image(tmp_path / f"images/{k}.png", 100 * mask)
        order = RNG.permutation(3) if k else np.array([1, 2, 0])
        colours = np.zeros((3, 3), int)
        colours[order] = np.reshape(PALETTE, (3, 3))
        palette_mask(order[mask], colours.ravel().tolist()).save(tmp_path / f"masks/{k}.png")
    task = read(tmp_path, "segment", validation=0.0)
    assert task.spec.classes == ("#000000", "#0078ff", "#c80a00")
    for mask, (_, y) in zip(CLASSES, task.sets["train"], strict=True):
        assert np.array_equal(np.array([0, 2, 1])[mask], y)


@pytest.mark.parametrize("twice", ["", "in each", "in some, which are longer"])
def test_a_colour_with_other_values_in_other_palettes_is_one_class(twice: str, tmp_path: Path) -> None:
    """A palette that has a colour twice keeps its values."""
    (tmp_path / "masks").mkdir()
    black, red, green = [0, 0, 0], [255, 0, 0], [0, 255, 0]
    for k in range(4):
        mask = np.array([[0, 1 + k % 2]] * 2)
        write_image(tmp_path / f"images/{k}.png", 100 * mask)
        palette = [*black, *(green if k % 2 and not twice else red), *red]
        palette = palette[: 6 if "some" in twice and k % 2 == 0 else None]
        palette_mask(mask, palette).save(tmp_path / f"masks/{k}.png")
    classes = read(tmp_path, "segment", validation=0.0).spec.classes
    assert classes == (("0", "1", "2") if twice else ("#000000", "#ff0000"))


@pytest.mark.parametrize("colours", [False, True])
def test_classes_that_no_training_mask_has_are_named(colours: bool, tmp_path: Path) -> None:
    for split, values in (("train", [0, 2, 2]), ("val", [0, 2, 7])):
        mask = np.array([values] * 3)
        write_image(tmp_path / split / "images/0.png", mask)
        write_image(tmp_path / split / "masks/0.png", mask[..., None] * [30, 0, 0] if colours else mask)
    named = f"classes without samples to train on: {'#d20000' if colours else '7'}"
    assert read(tmp_path, "segment").summary[-1] == named
    assert not any("to train on" in line for line in read(tmp_path / "train", "segment", 0.0).summary)


def test_names_of_classes_are_read_for_masks_alone(tmp_path: Path) -> None:
    write_masks(tmp_path)
    write_targets(tmp_path)
    (tmp_path / "classes.txt").write_bytes("été".encode("latin-1"))
    refused(r"classes\.txt is not a text in UTF-8", lambda: read(tmp_path, "segment"))
    assert read(tmp_path, "grid").spec.classes == ()


def test_names_of_classes_may_lie_beside_the_training_masks(tmp_path: Path) -> None:
    write_masks(tmp_path / "train")
    (tmp_path / "train/classes.txt").write_text("sky\nsea\n")
    assert read(tmp_path, "segment").spec.classes == ("sky", "sea")
    (tmp_path / "classes.txt").write_text("day\n")
    assert read(tmp_path, "segment").spec.classes == ("day", "1")


def test_names_of_values_that_no_mask_has_are_told(tmp_path: Path) -> None:
    for k in range(8):
        write_image(tmp_path / f"images/{k}.png", GREY)
        write_image(tmp_path / f"masks/{k}.png", GREY // 128 * 255)
    (tmp_path / "classes.txt").write_text("background\ncell\n\nnucleus\n")
    task = read(tmp_path, "segment")
    assert task.spec.classes == ("background", "255")
    assert "classes.txt names values that no mask has: cell (1), nucleus (3)" in task.summary
    (tmp_path / "classes.txt").write_text("255\n")
    refused("several values are called '255'; correct classes.txt", lambda: read(tmp_path, "segment"))


def test_masks_with_too_many_colours_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images/0.png", RNG.integers(0, 256, (30, 30)))
    write_image(tmp_path / "masks/0.png", RNG.integers(0, 256, (30, 30, 3)))
    refused("PNG", lambda: read(tmp_path, "segment"))


def test_photographs_that_were_taken_upright_fit_their_masks(tmp_path: Path) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (4, 9)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "images").mkdir()
    for k in range(4):
        image.save(tmp_path / f"images/{k}.jpg", exif=exif)
        write_image(tmp_path / f"masks/{k}.png", RNG.integers(0, 2, (9, 4)))
    task = read(tmp_path, "segment")
    assert (task.skipped, task.spec.size) == ([], (9, 4))


@pytest.mark.parametrize("name", ["1_mask.png", "1-gt.png", "1.jpg.png"])
def test_a_mask_of_nearly_the_same_name_is_named(name: str, tmp_path: Path) -> None:
    write_masks(tmp_path, 12)
    (tmp_path / "masks/1.png").rename(tmp_path / "masks" / name)
    (tmp_path / "images/10.png").unlink()  # then nothing fits the mask 10.png, which is another one than 1
    (reason,) = read(tmp_path, "segment").skipped
    assert reason.startswith("images/1.png") and name in reason and "to 1.png" in reason
    (tmp_path / "masks" / name).unlink()
    (reason,) = read(tmp_path, "segment").skipped
    assert "10" not in reason


def test_a_mask_that_is_replaced_by_a_larger_one_is_named(tmp_path: Path) -> None:
    task = read(write_masks(tmp_path), "segment")
    for k in range(8):
        write_image(tmp_path / f"masks/{k}.png", RNG.integers(0, 2, (9, 12)))
    with pytest.raises(InputError, match=r"png has changed .*: its target is 9x12, but the image is 5x7"):
        task.batch(0, 0, 1, "validation")


def test_images_of_numbers_that_float32_does_not_resolve_are_named(tmp_path: Path) -> None:
    for k in range(6):
        (tmp_path / f"{'ab'[k % 2]}").mkdir(exist_ok=True)
        x = 3e5 + 0.01 * RNG.random((5, 6))
        tifffile.imwrite(tmp_path / f"{'ab'[k % 2]}/{k}.tif", x.astype(np.float32))
    summary = read(tmp_path, "classify", validation=0.0).summary
    assert any("x is the same in all training samples as far as float32 resolves it" in s for s in summary)


@pytest.mark.parametrize(("part", "what"), [("images", "image"), ("targets", "target")])
def test_a_mixture_of_images_that_are_scaled_and_others_is_named(
    part: str, what: str, tmp_path: Path
) -> None:
    write_targets(tmp_path)
    assert not any("floats" in line for line in read(tmp_path, "grid").summary)
    pixels = np.asarray(Image.open(tmp_path / part / "3.png"), np.float32)
    (tmp_path / part / "3.png").unlink()
    tifffile.imwrite(tmp_path / part / "3.tif", pixels)
    (note,) = (line for line in read(tmp_path, "grid").summary if "floats" in line)
    assert note.startswith(f"1 {what} holds floats") and "3." in note
