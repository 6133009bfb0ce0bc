"""Masks as programs save them: values survive reading, encoding and writing, or the file is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import samples, save, write
from PIL import Image

from mdlstm_tk.data.masks import Mask, MaskClasses, read_mask, resize_nearest
from mdlstm_tk.data.task import UNLABELLED
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import configure, make_task

RNG = np.random.default_rng(0)
INDICES = RNG.integers(0, 3, (6, 9))
COLOURS = np.array([[0, 0, 0], [200, 30, 30], [10, 90, 250]], np.uint8)
PALETTE = [*COLOURS.ravel().tolist(), *[9] * 60]


def classes_of(*masks: Mask) -> MaskClasses:
    return MaskClasses.of([kind_named("segment").summary(mask) for mask in masks])


def stored(form: str) -> Image.Image:
    match form:
        case "L":
            return Image.fromarray(np.array([3, 70, 200], np.uint8)[INDICES])
        case "I;16":
            return Image.fromarray(np.array([3, 700, 60000], np.uint16)[INDICES])
        case "P":
            image = Image.fromarray(INDICES.astype(np.uint8), "P")
            image.putpalette(PALETTE)
            return image
        case "RGB":
            return Image.fromarray(COLOURS[INDICES])
        case "RGBA":
            return Image.fromarray(np.dstack([COLOURS[INDICES], np.full((6, 9), 255, np.uint8)]))
        case "grey RGB":
            return Image.fromarray(np.repeat(np.array([3, 70, 200], np.uint8)[INDICES][..., None], 3, -1))
    return Image.fromarray(INDICES > 0)


FORMS = ("L", "I;16", "P", "RGB", "RGBA", "grey RGB", "1")
SUFFIXES = (".png", ".tif", ".bmp")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_classes_of_a_mask_survive_its_file(form: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"mask{suffix}"
    try:
        stored(form).save(file)
    except (OSError, KeyError):
        pytest.skip(f"Pillow writes no {form} as {suffix}")
    mask = read_mask(file)
    black = Image.new(stored(form).mode, (9, 6))  # alone, it has no colours
    if form == "P":
        black.putpalette(PALETTE)
    black.save(file)
    classes = classes_of(mask, read_mask(file)) if form in ("P", "RGB", "RGBA", "1") else classes_of(mask)
    expected = INDICES > 0 if form == "1" else INDICES
    encoded = classes.encode(mask)
    order = {"RGB": [0, 2, 1], "RGBA": [0, 2, 1]}.get(form, [0, 1, 2])  # by red, green and blue
    assert np.array_equal(encoded, np.array(order)[expected.astype(int)])
    values = {"L": (3, 70, 200), "grey RGB": (3, 70, 200), "I;16": (3, 700, 60000), "1": (0, 255)}
    assert classes.values == values.get(form, (0, 1, 2))
    if form in ("P", "RGB", "RGBA"):
        colours = np.reshape(classes.palette, (-1, 3))
        assert np.array_equal(colours[encoded], COLOURS[INDICES])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_upright_as_images_are(orientation: int, tmp_path: Path) -> None:
    image = stored("L")
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "mask.png", exif=exif)
    from PIL import ImageOps

    assert np.array_equal(read_mask(tmp_path / "mask.png").pixels, ImageOps.exif_transpose(image))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_masks_are_refused(form: str, tmp_path: Path) -> None:
    stored("L").save(tmp_path / "mask", form)
    with pytest.raises(InputError):
        read_mask(tmp_path / "mask")


@pytest.mark.parametrize(("one", "other"), [("L", "P"), ("P", "RGB"), ("1", "L"), ("L", "RGB")])
def test_masks_saved_in_two_ways_are_refused(one: str, other: str, tmp_path: Path) -> None:
    data = write(tmp_path, "segment", "folder", samples("segment", 6))
    for k, file in enumerate(sorted((data / "masks").iterdir())):
        image = stored(one if k % 2 else other)
        image.resize(Image.open(data / "images" / file.name).size, Image.Resampling.NEAREST).save(file)
    with pytest.raises(InputError) as raised:
        make_task(configure(task="segment", data=str(data)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("count", [1, 2, 256, 257])
def test_masks_have_two_classes_and_at_most_256_colours(count: int) -> None:
    colours = np.arange(count) * 0x010203 % 0x1000000
    masks = [Mask(colours[:1], "colours"), Mask(colours, "colours")]
    if count not in (2, 256):
        with pytest.raises(InputError):
            classes_of(*masks)
        return
    parts = np.reshape(classes_of(*masks).palette, (-1, 3))
    assert sorted((parts @ [1 << 16, 1 << 8, 1]).tolist()) == sorted(colours.tolist())


def test_two_palettes_are_refused() -> None:
    masks = []
    for shift in (0, 3):
        image = stored("P")
        image.putpalette([*PALETTE[shift:], *PALETTE[:shift]])
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        file: Any = type("File", (), {"read_bytes": lambda self, b=buffer: b.getvalue()})()
        masks.append(read_mask(file))
    with pytest.raises(InputError):
        classes_of(*masks)
    with pytest.raises(InputError):
        classes_of(masks[0]).encode(masks[1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({0: 60, 255: 40}, (0, 255)),
        ({0: 60, 128: 0.05, 255: 40}, (0, 255)),  # a stray pixel
        ({0: 60, **dict.fromkeys(range(1, 255), 0.03), 255: 40}, (0, 255)),  # soft edges
        ({0: 1, 1: 0.5, 2: 0.001, 255: 98}, (0, 1, 2)),  # scribbles
        ({0: 60, 1: 0.001, 255: 40}, (0, 255)),
        ({0: 60, 7: 10, 255: 20, 299: 10}, (0, 7, 255, 299)),
    ],
)
def test_255_is_no_class_beside_two_others(
    values: dict[int, float], expected: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    mask = Mask(np.repeat([*values], [round(1000 * share) for share in values.values()]))
    assert classes_of(mask).values == expected
    assert bool(caplog.records) == ({*values, 255} != {*expected, 255})
    if 1 in values:  # names say that it is a class
        named = mask._replace(names=("a", "b"))
        assert classes_of(named).values[:2] == (0, 1) and 255 not in classes_of(named).values


def test_classes_have_names(tmp_path: Path) -> None:
    content = [(x, np.where(y == 200, 255, y // 7).astype(np.uint8)) for x, y in samples("segment")]
    data = write(tmp_path, "segment", "split folders", content)
    (data / "classes.txt").write_text("background\ncell\n", encoding="utf-8")
    task = make_task(configure(task="segment", data=str(data), augment=0.0))
    assert task.spec.classes == ("background", "cell") and task.spec.decoding["mask_values"] == (0, 1)
    batch = next(task.evaluation_batches("test", 0))
    assert {*np.unique(batch.y)} == {UNLABELLED, 0, 1}
    task = make_task(configure(task="segment", data=str(data / "train"), augment=0.0))
    assert task.spec.classes == ("background", "cell")
    other = write(data / "other", "segment", "folder", content)  # no split of the folder above
    assert make_task(configure(task="segment", data=str(other))).spec.classes == ("0", "1")
    (data / "classes.txt").write_text("Straße", encoding="latin-1")
    with pytest.raises(InputError, match="UTF-8"):
        make_task(configure(task="segment", data=str(data)))
    with_two = [(x, np.where(x > 100, 255, 0).astype(np.uint8)) for x, _ in samples("segment")]
    data = write(tmp_path / "b", "segment", "folder", with_two)
    task = make_task(configure(task="segment", data=str(data)))
    assert task.spec.decoding["mask_values"] == (0, 255)


def test_a_mask_is_resized_to_the_value_at_each_centre() -> None:
    mask = np.arange(12).reshape(3, 4)
    assert np.array_equal(resize_nearest(mask, (3, 4)), mask)
    assert np.array_equal(resize_nearest(mask, (6, 8)), mask.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(resize_nearest(mask, (1, 2)), mask[1:2, 1::2])


def test_a_mask_of_another_grid_than_its_image_is_left_out(tmp_path: Path) -> None:
    data = write(tmp_path, "segment", "folder")
    save(data / "masks" / "a1.png", np.zeros((3, 3), np.uint8))
    task = make_task(configure(task="segment", data=str(data)))
    assert sum(map(len, task.names.values())) == 23
