"""Images and masks of every type are read as `infer` reads them, and masks keep their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.user_data import RNG, read, write_classes, write_image, write_masks, write_targets
from PIL import Image

from mdlstm_tk.data import UNLABELLED
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing, decode_image

GREY = RNG.integers(0, 256, (6, 7)).astype(np.uint8)
COLOURS = RNG.integers(0, 256, (6, 7, 3)).astype(np.uint8)
OPACITY = RNG.integers(0, 256, (6, 7)).astype(np.uint8)
GREYS: dict[str, Image.Image] = {  # grey images of every type that has any
    "l.png": Image.fromarray(GREY),
    "la.png": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(OPACITY)]),
    "rgb-without-colours.png": Image.fromarray(np.stack([GREY] * 3, axis=-1)),
    "bits.png": Image.fromarray(GREY > 99),
    "deep.png": Image.fromarray(GREY.astype(np.uint16) * 257),
    "grey.jpg": Image.fromarray(GREY),
    "grey.tif": Image.fromarray(GREY),
    "deep.tiff": Image.fromarray(GREY.astype(np.uint16) * 257),
    "float.tif": Image.fromarray(GREY.astype(np.float32) / 255),
    "grey.bmp": Image.fromarray(GREY),
    "grey.gif": Image.fromarray(GREY),
    "grey.pgm": Image.fromarray(GREY),
}
COLOURED: dict[str, Image.Image] = {
    "p.png": Image.fromarray(COLOURS).quantize(16),
    "rgb.png": Image.fromarray(COLOURS),
    "rgba.png": Image.fromarray(np.dstack([COLOURS, OPACITY])),
    "rgb.jpg": Image.fromarray(COLOURS),
    "rgb.tif": Image.fromarray(COLOURS),
    "rgb.bmp": Image.fromarray(COLOURS),
    "p.gif": Image.fromarray(COLOURS).quantize(16),
    "rgb.webp": Image.fromarray(COLOURS),
    "rgb.ppm": Image.fromarray(COLOURS),
}


def save(folder: Path, images: dict[str, Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / name)


@pytest.mark.parametrize(("images", "channels"), [(GREYS, 1), (COLOURED, 3), (GREYS | COLOURED, 3)])
def test_training_sees_what_an_exported_model_sees(
    images: dict[str, Image.Image], channels: int, tmp_path: Path
) -> None:
    save(tmp_path / "a", images)
    save(tmp_path / "b", images)
    task = read(tmp_path, "classify", validation=0.0)
    assert (task.skipped, task.spec.channels) == ([], channels)
    assert task.spec.preprocessing == Preprocessing(channels)
    files = [tmp_path / "a" / name for name in sorted(images)]
    for file, (x, _) in zip(files, task.sets["train"], strict=False):
        expected = task.spec.preprocessing(decode_image(file.read_bytes(), file.name))
        assert np.array_equal(x, expected), file.name
        assert x.shape == (6, 7, channels)
    x = np.stack([x for x, _ in task.sets["train"]])
    np.testing.assert_allclose(x.mean((0, 1, 2)), task.spec.mean, rtol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), task.spec.std, rtol=1e-5)


def test_colours_in_validation_images_do_not_make_training_images_coloured(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    save(tmp_path / "val/a", {"rgb.png": Image.fromarray(COLOURS)})
    task = read(tmp_path, "classify")
    assert task.spec.channels == 1
    assert task.sets["validation"][0][0].shape == (6, 7, 1)


def test_images_are_resized_with_their_masks_and_targets(tmp_path: Path) -> None:
    for k in range(4):
        mask = np.kron(RNG.integers(0, 2, (3, 4)), np.ones((2, 2), int))
        write_image(tmp_path / f"images/{k}.png", 200 * mask)
        write_image(tmp_path / f"masks/{k}.png", mask)
        write_image(tmp_path / f"targets/{k}.png", 100 * mask)
    task = read(tmp_path, "segment", validation=0.0, resize=(3, 4))
    assert (task.spec.size, task.spec.preprocessing) == ((3, 4), Preprocessing(1, (3, 4)))
    for x, y in task.sets["train"]:
        assert x.shape == (3, 4, 1)
        assert np.array_equal(x[..., 0] > 0.4, y)
    for x, y in read(tmp_path, "grid", validation=0.0, resize=(3, 4)).sets["train"]:
        np.testing.assert_allclose(x, 2 * y, atol=1e-6)


def test_targets_may_be_images(tmp_path: Path) -> None:
    task = read(write_targets(tmp_path), "grid", validation=0.0)
    assert (task.spec.outputs, task.spec.classes, task.spec.preprocessing) == (1, (), Preprocessing(1))
    for x, y in task.sets["train"]:
        np.testing.assert_allclose(x + y, 1, atol=1e-6)
    y = np.concatenate([y.ravel() for _, y in task.sets["train"]])
    np.testing.assert_allclose([y.mean(), y.std()], [*task.spec.target_mean, *task.spec.target_std])


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
    "LA": (".png", lambda m: grey_mask(m).convert("LA"), (0, 7, 9), ()),
    "grey RGB": (".bmp", lambda m: grey_mask(m).convert("RGB"), (0, 7, 9), ()),
    "I;16": (".png", lambda m: Image.fromarray(np.uint16([0, 255, 299])[m]), (0, 255, 299), ()),
    "I": (".tif", lambda m: Image.fromarray(np.int32([0, 255, 70000])[m]), (0, 255, 70000), ()),
    "float": (".tif", lambda m: Image.fromarray(np.float32([0, 1, 2])[m]), (0, 1, 2), ()),
    "RGB": (".png", lambda m: palette_mask(m, PALETTE).convert("RGB"), (0, 1, 2), SORTED_PALETTE),
    "RGBA": (".tif", lambda m: palette_mask(m, PALETTE).convert("RGBA"), (0, 1, 2), SORTED_PALETTE),
}  # fmt: skip


@pytest.mark.parametrize("mode", MASKS)
def test_masks_of_every_type_have_the_values_of_their_classes(mode: str, tmp_path: Path) -> None:
    suffix, make, values, palette = MASKS[mode]
    (tmp_path / "masks").mkdir()
    for k, mask in enumerate(CLASSES):
        write_image(tmp_path / f"images/{k}.png", 100 * mask)
        make(mask).save(tmp_path / f"masks/{k}{suffix}")
    task = read(tmp_path, "segment", validation=0.0)
    assert (task.skipped, task.spec.mask_values, task.spec.mask_palette) == ([], values, palette)
    order = np.array([0, 2, 1] if mode in ("RGB", "RGBA") else [0, 1, 2])  # colours are sorted
    for mask, (_, y) in zip(CLASSES, task.sets["train"], strict=True):
        assert np.array_equal(order[mask], y)


def test_bits_are_the_values_0_and_255(tmp_path: Path) -> None:
    write_masks(tmp_path)
    for file in (tmp_path / "masks").iterdir():
        Image.open(file).point(lambda v: 255 * v).convert("1").save(file)
    assert read(tmp_path, "segment").spec.mask_values == (0, 255)


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


def test_hundreds_of_classes_and_unknown_positions_of_arrays(tmp_path: Path) -> None:
    y = np.arange(-1, 299).reshape(3, 10, 10)
    np.savez(tmp_path / "m.npz", x=y, y=y)
    task = read(tmp_path / "m.npz", "segment", validation=0.0)
    assert task.spec.mask_values == tuple(range(299))
    (_, first), *_, (_, last) = task.sets["train"]
    assert (first[0, 0], last[-1, -1]) == (UNLABELLED, 298)


def test_masks_with_too_many_colours_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images/0.png", RNG.integers(0, 256, (30, 30)))
    write_image(tmp_path / "masks/0.png", RNG.integers(0, 256, (30, 30, 3)))
    with pytest.raises(InputError, match="PNG"):
        read(tmp_path, "segment")


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "empty").mkdir()
    (tmp_path / "a/photo.heic").write_text("")
    (tmp_path / "a/._0.png").write_text("")
    task = read(tmp_path, "classify")
    assert task.skipped == []
    assert any(".heic" in line for line in task.summary)
    assert any("empty" in line for line in task.summary)
