"""Layouts of a user's own data: the folders of splits, files that make no sample, and what is refused."""

from __future__ import annotations

import errno
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import draw_page
from helpers.refusal import refused
from helpers.user_data import (
    RNG,
    read,
    write_arrays,
    write_classes,
    write_image,
    write_masks,
    write_targets,
    write_texts,
)

from mdlstm_tk.data.folders import find_files
from mdlstm_tk.data.spec import SPLITS
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_names
from mdlstm_tk.training import TrainConfig, default_config


def test_splits_of_the_data_are_used(tmp_path: Path) -> None:
    for folder, count in (("train", 4), ("val", 2), ("test", 3)):
        write_classes(tmp_path / folder, {"a": count, "b": count})
    task = read(tmp_path, "classify")
    assert [task.count(split) for split in ("train", "validation", "test")] == [8, 4, 6]
    assert not any("to train on" in line for line in task.summary)
    for name in ("train", "test"):
        (tmp_path / name).rename(tmp_path / name.title())
    assert read(tmp_path, "classify").names == task.names
    (tmp_path / "val/a").rename(tmp_path / "val/A")
    assert "classes without samples to train on: A" in read(tmp_path, "classify").summary
    (tmp_path / "arrays").mkdir()
    for name in ("train", "val"):
        write_arrays(tmp_path / "arrays" / f"{name}.npz", "classify")
    assert read(tmp_path / "arrays", "classify").count("validation") == 10


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_samples_is_not_replaced_by_others(split: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 4, "b": 4})
    write_image(tmp_path / split / "0.png", np.zeros((6, 9)))  # in no folder of a class
    with pytest.raises(InputError, match=f"{split} has no usable samples; leave it out, or correct it"):
        read(tmp_path, "classify")


def test_what_lies_beside_the_splits_is_named(tmp_path: Path) -> None:
    for name in ("train", "dev", "extra"):
        write_classes(tmp_path / name, {"a": 4, "b": 4})
    task = read(tmp_path, "classify")
    assert (task.count("train"), task.count("validation")) == (8, 8)
    assert any(line.startswith("beside train, left out: extra; splits are") for line in task.summary)


STRAY: dict[str, tuple[Callable[[Path], Path], str, list[str]]] = {  # data, a file beside them, notes
    "classify": (
        lambda path: write_classes(path, {"a": 4, "b": 4}),
        "0.png",
        ["images in no folder of a class, left out: 1"],
    ),
    "segment": (
        write_masks,
        "masks/8.png",
        ["files in masks/ without an image of the same name, left out: 1"],
    ),
    "grid": (write_targets, "more/0.png", ["images outside images/ and targets/, left out: 1"]),
}


@pytest.mark.parametrize("kind", STRAY)
def test_notes_on_a_split_name_it(kind: str, tmp_path: Path) -> None:
    write, stray, notes = STRAY[kind]
    for split in ("train", "test"):
        write(tmp_path / split)
    write_image(tmp_path / "test" / stray, np.eye(3))
    summary = read(tmp_path, kind).summary
    assert f"test/: {notes[0]}" in summary and f"train/: {notes[0]}" not in summary


@pytest.mark.parametrize("kind", STRAY)
def test_images_that_are_not_used_are_counted(kind: str, tmp_path: Path) -> None:
    write, stray, notes = STRAY[kind]
    before = read(write(tmp_path / "train"), kind).summary
    write_image(tmp_path / "train" / stray, np.eye(3))
    write_image(tmp_path / "0.png", np.eye(3))
    assert [line for line in read(tmp_path / "train", kind).summary if line not in before] == notes
    assert "images beside train, left out: 1" in read(tmp_path, kind).summary


UNREADABLE: dict[str, tuple[str, Callable[[Path], object], str, str]] = {  # path, writer, kind, message
    "missing": ("no", lambda p: None, "classify", "no file or folder"),
    "empty folder": ("e", Path.mkdir, "classify", r"subfolder.*\.npz"),
    "no masks": ("c", lambda p: write_classes(p, {"images": 2}), "segment", "masks/ is missing.*images/"),
    "one class": ("c", lambda p: write_classes(p, {"only": 2}), "classify", "'only'"),
    "mixed splits": (
        "m",
        lambda p: (write_targets(p / "val"), write_arrays(p / "train.npz", "grid")),
        "grid",
        r"val.*\.npz",
    ),
    "two of one split": (
        "m",
        lambda p: [write_classes(p / name, {"a": 2, "b": 2}) for name in ("train", "val", "dev")],
        "classify",
        "m has dev and val, which all are for validation; keep one",
    ),
    "splits below a class": (
        "m",
        lambda p: [write_classes(p / "b" / name, {"a": 2}) for name in ("train", "test")],
        "classify",
        "m/b has train and test, but .* move them to .*m/train/b and .*m/test/b",
    ),
    "splits below images": (
        "m",
        lambda p: [
            write_image(p / folder / name / "0.png", np.eye(3))
            for folder in ("images", "masks")
            for name in ("Train", "val")
        ],
        "segment",
        "m/images has Train and val, but .* move them to .*m/Train/images and .*m/val/images",
    ),
    "no train": ("m", lambda p: write_masks(p / "Test"), "segment", "m has Test but no train; put"),
    "other file type": ("x.csv", lambda p: p.write_text("1,2"), "grid", r"x\.csv.*\.npz"),
    "damaged": ("x.npz", lambda p: p.write_bytes(b"PK\3\4 no"), "grid", r"x\.npz"),
    "no y": ("x.npz", lambda p: np.savez(p, x=np.ones((3, 4, 4))), "grid", "y is missing"),
    "a control character": ("c", lambda p: write_classes(p, {"a\x1bb": 2, "b": 2}), "classify", "control"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_data_of_another_layout_are_one_line(case: str, tmp_path: Path) -> None:
    name, write, kind, message = UNREADABLE[case]
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as refused:
        read(tmp_path / name, kind)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("splits", [(), ("train", "val"), ("train", "dev", "test")], ids=len)
@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_capital_letters_in_names_change_nothing(
    splits: Sequence[str], suffix: str, tmp_path: Path
) -> None:
    def settings_and_counts(data: Path) -> tuple[TrainConfig, list[int]]:
        config, task = replace(default_config("grid", str(data)), data=""), read(data, "grid")
        return config, [task.count(name) for name in SPLITS]

    data = tmp_path / ("data" if splits else f"data{suffix}")
    paths = [data / f"{split}{suffix}" for split in splits] or [data]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write_arrays(path, "grid") if suffix else write_targets(path)
    before = settings_and_counts(data)
    paths = [path.rename(path.with_name(path.name.upper())) for path in paths]
    assert settings_and_counts(data if splits else paths[0]) == before


def test_the_reasons_of_skipped_samples_stand_beside_what_is_missing(tmp_path: Path) -> None:
    names = [b"b"] * 6 + [b"\xff"] * 6
    np.savez(tmp_path / "x.npz", x=RNG.random((12, 4, 4)), y=names)
    with pytest.raises(InputError, match=r"sample 6: its name is not Unicode; .*; a task of kind classify"):
        read(tmp_path / "x.npz", "classify")


def test_a_name_in_another_unicode_form_is_told(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for k, name in enumerate((composed, "a", "b", "c")):
        write_image(tmp_path / f"{name}.png", np.eye(3) * k)
    table = "file,size\n" + "".join(f"{name}.png,{k}\n" for k, name in enumerate((decomposed, *"abc")))
    (tmp_path / "targets.csv").write_text(table, encoding="utf-8")
    (line,) = read(tmp_path, "regress").skipped
    assert "there is no such file, but one whose name has its accents in another Unicode form" in line


def write_names(kind: str, path: Path, name: str) -> None:
    """Write data of a kind in which a class, a label or a number has a name."""
    if kind == "classify":
        write_classes(path, {name: 4, "b": 4})
    elif kind == "arrays":
        path.parent.mkdir(exist_ok=True)
        write_arrays(path.with_suffix(".npz"), "classify", y=np.array([name, "b"] * 5))
    else:
        write_masks(path)
        write_table(path, "targets.csv", name, lambda k: k)
        write_table(path, "tags.csv", "labels", lambda k: name if k % 2 else "b")
        (path / "classes.txt").write_text(f"b\n{name}\n", encoding="utf-8")


@pytest.mark.parametrize("kind", ["classify", "arrays", "tag", "regress", "segment"])
def test_names_in_another_unicode_form_are_the_same(kind: str, tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):
        write_names(kind, tmp_path / "data" / split, unicodedata.normalize(form, "élan"))
    task = read(tmp_path / "data", "classify" if kind == "arrays" else kind)
    assert task.spec.classes == (("élan",) if kind == "regress" else ("b", "élan"))
    assert task.count("validation") > 0 and not any("without samples" in line for line in task.summary)


def write_table(path: Path, name: str, header: str, rows: Callable[[int], object]) -> None:
    """Write the table of the images in images/."""
    files = sorted(path.glob("images/*.png"))
    lines = [f"{file.relative_to(path)},{rows(k)}" for k, file in enumerate(files)]
    (path / name).write_text("\n".join([f"file,{header}", *lines]), encoding="utf-8")


DIVIDED: dict[str, tuple[Callable[[Path], object], list[str]]] = {  # data, the prefixes of three splits
    "classify": (lambda p: write_classes(p, {"a": 6, "b": 6}), ["0", "1", "b/2"]),
    "segment": (write_masks, ["images/0", "1", "2.png"]),
    "grid": (write_targets, ["images/0", "1", "2.png"]),
    "regress": (
        lambda p: (write_masks(p, 12), write_table(p, "targets.csv", "size", lambda k: k)),
        ["images/1", "0", "2.png"],
    ),
    "tag": (
        lambda p: (write_masks(p), write_table(p, "tags.csv", "labels", lambda k: "ab"[k % 2])),
        ["images/0", "1", "2"],
    ),
    "density": (write_masks, ["images/0", "images/1", "masks/2.png"]),
    "transcribe": (write_texts, ["0", "1", "2"]),
    "baselines": (lambda p: [draw_page(p / f"{k}") for k in range(4)], ["0", "1.xml", "2"]),
}


@pytest.mark.parametrize("kind", kind_names())
def test_splits_json_divides_the_samples_of_every_kind(kind: str, tmp_path: Path) -> None:
    write, prefixes = DIVIDED[kind]
    write(tmp_path)
    names = ("train", "valid", "test")
    splits = {name: [prefix] for name, prefix in zip(names, prefixes, strict=True)}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    task = read(tmp_path, kind)
    for split, prefix in zip(("train", "validation", "test"), prefixes, strict=True):
        assert task.names[split]
        assert all(prefix in name for name in task.names[split])
    assert any(line.startswith("files that splits.json does not name, left out: ") for line in task.summary)
    assert not any("other types" in line for line in task.summary)


def write_deeper(path: Path) -> Path:
    """Write images/train, images/test and masks of the same names."""
    for name in ("train", "test"):
        write_masks(path / name)
        for folder in ("images", "masks"):
            (path / folder).mkdir(exist_ok=True)
            (path / name / folder).rename(path / folder / name)
        (path / name).rmdir()
    return path


def test_splits_one_folder_deeper_are_those_of_splits_json(tmp_path: Path) -> None:
    splits = {"train": ["images/train"], "test": ["images/test"]}
    (write_deeper(tmp_path) / "splits.json").write_text(json.dumps(splits))
    task = read(tmp_path, "segment")
    assert [task.count(split) for split in ("train", "validation", "test")] == [6, 2, 8]
    assert all("/test/" in name for name in task.names["test"])


@pytest.mark.parametrize("table", ["labels.tsv", "tags.csv"])
def test_a_table_of_another_kind_names_no_samples(table: str, tmp_path: Path) -> None:
    (write_deeper(tmp_path) / table).write_text("")
    with pytest.raises(InputError, match="but folders of splits lie directly in"):
        read(tmp_path, "segment")


def test_a_splits_json_that_names_no_sample_is_refused(tmp_path: Path) -> None:
    (write_masks(tmp_path) / "splits.json").write_text("{}")
    with pytest.raises(InputError, match=r"no usable training samples \(files that splits\.json does not"):
        read(tmp_path, "segment")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"train": ["images/0"], "test": ["images/1"], "test": ["images/2"]}',
            "has 'test' more than once",
        ),
        ('{"train": ["images/0"], "valid": []}', "names no prefix for valid; name one, or leave valid out"),
        ('{"train": ["images/0"], "test": ["images/0"]}', "'images/0' in two splits"),
    ],
)
def test_each_split_is_named_once_with_prefixes_of_its_own(
    content: str, message: str, tmp_path: Path
) -> None:
    (write_masks(tmp_path) / "splits.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path, "segment")


def test_a_splits_json_beside_folders_of_splits_is_named(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_masks(tmp_path / name)
    (tmp_path / "splits.json").write_text('{"train": ["images/0"]}')
    task = read(tmp_path, "segment", validation=0.0)
    assert (task.count("train"), task.count("test")) == (8, 8)
    assert "splits.json, left out: train and test are the splits" in task.summary
    for file in (tmp_path / "test").rglob("*.png"):
        file.unlink()
    for name in ("test/images", "test/masks", "test"):
        (tmp_path / name).rmdir()
    assert read(tmp_path, "segment", validation=0.0).names["train"] == ["images/0.png"]


def test_the_folder_of_a_class_called_train_is_named(tmp_path: Path) -> None:
    """It is taken for the training split."""
    with pytest.raises(InputError, match="train: no usable training samples"):
        read(write_classes(tmp_path, {"car": 2, "train": 2}), "classify")


def test_a_folder_that_may_be_listed_but_not_entered_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()

    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", denied)  # whoever runs the tests may be allowed everything
    refused(f"cannot read {tmp_path}: Permission denied", lambda: find_files(tmp_path))
