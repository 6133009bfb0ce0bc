"""The files of users: what is read, left out with a reason, or refused."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import samples, save, write

from mdlstm_tk.data.files import files_below
from mdlstm_tk.data.order import digest_of
from mdlstm_tk.data.task import Dataset
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import configure, make_task


def read(path: Path, kind: str, **settings: Any) -> Dataset:
    task = make_task(configure(task=kind, data=str(path), **{"augment": 0.0, **settings}))
    assert isinstance(task, Dataset)
    return task


def count(task: Dataset) -> int:
    return sum(map(len, task.names.values()))


def test_samples_that_cannot_be_read_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither hidden files, results and circles of links are samples, nor numbers that are not finite."""
    data = write(tmp_path / "images", "classify", "folder")
    before, (text, empty, half, *_) = files_below(data), sorted(data.rglob("*.png"))
    save(data / "class 0" / ".hidden.png", np.zeros((4, 4), np.uint8))
    save(data / "class 0" / "a1.out.png", np.zeros((4, 4), np.uint8))
    (data / "class 0" / "circle").symlink_to(data / "class 0")
    assert files_below(data) == before
    for file, content in ((text, b"no image"), (empty, b""), (half, half.read_bytes()[:60])):
        file.write_bytes(content)
    assert count(read(data, "classify")) == 21
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert all(any(file.name in warning for warning in warnings) for file in (text, empty, half))
    x = np.random.default_rng(0).random((8, 4, 5))
    for name in ("x", "y"):
        arrays = {"x": x, "y": x.copy()}
        arrays[name] = x.copy()
        arrays[name][1:4, 2, 1] = np.nan, np.inf, 1e300
        np.savez(tmp_path / "d.npz", **arrays)
        assert count(read(tmp_path / "d.npz", "grid")) == 5


MISTAKES = {  # what people do wrong with files: kind, and how the right data set is spoilt
    "no such path": ("classify", lambda path: path / "elsewhere"),
    "one class": ("classify", lambda path: write(path, "classify", "folder", samples("classify")[::3])),
    "no masks": ("segment", lambda path: (path / "masks").rename(path / "labels")),
    "no table": ("tag", lambda path: (path / "tags.csv").rename(path / "labels.csv")),
    "images alone": ("regress", lambda path: (path / "targets.csv").unlink()),
    "labels between commas": ("tag", lambda path: edit(path / "tags.csv", "dark;even", "dark,even")),
    "a row twice": ("regress", lambda path: edit(path / "targets.csv", "a1.png", "a2.png")),
    "another heading": ("regress", lambda path: edit(path / "targets.csv", "file,", "image,")),
    "a mask twice": ("segment", lambda path: save(path / "masks/a1.bmp", samples("segment")[0][1])),
    "split without train": ("segment", lambda path: nest(path, "test")),
    "two validations": ("segment", lambda path: [nest(path, name) for name in ("val", "dev", "train")]),
    "splits one folder too deep": ("segment", lambda path: deepen(path)),
    "constant number": ("regress", lambda path: constant(path / "targets.csv")),
    "prefixes that no file has": ("tag", lambda path: divide(path, '{"train": ["z"]}')),
    "no splits": ("tag", lambda path: divide(path, "[]")),
}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def divide(path: Path, text: str) -> None:
    (path / "splits.json").write_text(text)


def nest(path: Path, name: str) -> None:
    write(path / name, "segment", "folder", samples("segment", 4))
    for folder in ("images", "masks"):
        if (path / folder).exists():
            for file in (path / folder).iterdir():
                file.unlink()
            (path / folder).rmdir()


def deepen(path: Path) -> None:
    for split in ("train", "test"):
        for folder in ("images", "masks"):
            (path / folder / split).mkdir()
            for file in [*(path / folder).glob("*.png")][:12]:
                file.rename(path / folder / split / file.name)


def constant(file: Path) -> None:
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *(f"{row.split(',')[0]},5,{row.split(',')[2]}" for row in rows)]))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_layout_are_refused(mistake: str, tmp_path: Path) -> None:
    kind, spoil = MISTAKES[mistake]
    data = tmp_path / "data"
    if mistake != "one class":
        write(data, kind, "folder")
    path = spoil(data)
    with pytest.raises(InputError) as raised:
        read(path if isinstance(path, Path) and mistake == "no such path" else data, kind)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


ARRAYS: dict[str, dict[str, Any]] = {
    "empty file": {"cut": 0},
    "file without its end": {"cut": 400},
    "y missing": {"y": None},
    "fewer targets": {"y": np.zeros(3, int)},
    "texts as x": {"x": np.full((8, 4, 5), "a")},
    "too few axes": {"x": np.zeros((8, 4))},
    "sizes of other axes": {"sizes": np.ones((8, 3), int)},
    "sizes too large": {"sizes": np.full((8, 2), 9)},
    "no extents": {"sizes": np.zeros((8, 2), int)},
    "objects": {"y": np.array([None] * 8)},
}


@pytest.mark.parametrize("wrong", ARRAYS)
def test_arrays_that_are_no_data_set_are_refused(wrong: str, tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "d.npz"
    arrays: dict[str, Any] = {"x": rng.random((8, 4, 5)), "y": np.arange(8) % 2, **ARRAYS[wrong]}
    cut = arrays.pop("cut", None)
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError) as raised:
        read(file, "classify")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_arrays_have_any_number_of_axes(ndim: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((9, *range(3, 3 + ndim), 2)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=(x[..., 0] > 0.5).astype(int), ndim=ndim)
    task = read(tmp_path / "d.npz", "segment")
    assert task.spec.size == tuple(range(3, 3 + ndim)) and task.spec.channels == 2
    batch = task.batch(0, 0, 4)
    assert np.array_equal(batch.y, batch.x[..., 0] > 0.5)


@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "regress", "tag"])
@pytest.mark.parametrize("layout", ["folder", "arrays"])
def test_tasks_can_be_pickled(kind: str, layout: str, tmp_path: Path) -> None:
    """As workers need it under every way to start processes."""
    task = read(write(tmp_path, kind, layout), kind)
    copy = pickle.loads(pickle.dumps(task))
    one, other = (each.batch(3, 1, 5) for each in (task, copy))
    assert all(a is b is None or np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_room_in_memory_samples_are_read_again(tmp_path: Path) -> None:
    data = write(tmp_path, "segment", "folder")
    with_room, without = (read(data, "segment", cache=cache) for cache in (64, 0))
    for step in range(3):
        one, other = (task.batch(0, step, 6) for task in (with_room, without))
        assert np.array_equal(one.x, other.x) and np.array_equal(one.y, other.y)
    for file in (data / "images").iterdir():
        file.unlink()
    with_room.batch(0, 0, 6)
    with pytest.raises(InputError):
        without.batch(0, 0, 6)


def test_digests_tell_values_apart() -> None:
    a = np.arange(3000)
    b = a.copy()
    b[1500] = 0
    values = [a, b, a.astype(np.int32), a[None], (a, "x"), (b, "x"), "1", 1, {"a": 1}, {"a": 2}]
    values += [("ab", "c"), ("a", "bc")]
    digests = [digest_of(value) for value in values]
    assert len({*digests}) == len(values)
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


def test_images_of_one_grey_channel_and_of_colours_are_one_data_set(tmp_path: Path) -> None:
    """One channel if all training images are grey, however they are saved; else three."""
    data = write(tmp_path, "classify", "folder")
    grey = read(data, "classify")
    for file in [*data.rglob("*.png")][::2]:
        from PIL import Image

        with Image.open(file) as image:
            image.convert("RGB").save(file)
    again = read(data, "classify")
    assert again.spec.channels == grey.spec.channels == 1
    assert again.digests == grey.digests
    save(data / "class 0" / "red.png", np.dstack([np.full((6, 7), v, np.uint8) for v in (250, 0, 0)]))
    assert read(data, "classify").spec.channels == 3
