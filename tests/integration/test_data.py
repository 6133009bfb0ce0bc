"""People's own data: every layout is read, bad samples are named, and a network trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from PIL import Image

from mdlstm_tk.data import UNLABELLED
from mdlstm_tk.data.base import Kind
from mdlstm_tk.data.folders import DataTask, read_data
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import (
    Run,
    TrainConfig,
    build,
    configure,
    default_config,
    load_checkpoint,
    predict,
    train,
)
from mdlstm_tk.training.evaluation import evaluate_run
from mdlstm_tk.training.networks import texts_without_room
from mdlstm_tk.viz.run_pictures import draw_run

RNG = np.random.default_rng(0)


def read(path: Path, kind: Kind, validation: float = 0.25, seed: int = 0) -> DataTask:
    return read_data(path, kind, validation, seed, augment=0.0)


def image(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) if mode is None else array).save(path)
    return path


def classes(path: Path, counts: dict[str, int], extents: tuple[int, int] = (6, 9)) -> Path:
    """Images whose brightness is their class."""
    for level, (name, count) in enumerate(counts.items()):
        for k in range(count):
            image(path / name / f"{k}.png", RNG.integers(60 * level, 60 * level + 40, extents))
    return path


def masks(path: Path, count: int = 8) -> Path:
    for k in range(count):
        mask = RNG.integers(0, 2, (5, 7 + k % 2))
        image(path / "images" / f"{k}.png", 200 * mask)
        image(path / "masks" / f"{k}.png", mask)
    return path


def texts(path: Path, count: int = 8) -> Path:
    lines = []
    for k in range(count):
        text = "".join(RNG.choice(list("ab c"), 2 + k % 3))
        image(path / f"{k}.png", RNG.integers(0, 255, (6, 8 * len(text))))
        lines.append(f"{k}.png\t{text}x")
    (path / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def arrays(path: Path, kind: str, **more: Any) -> Path:
    x = RNG.random((10, 5, 6)).astype(np.float32)
    y = {
        "grid": 100 + 10 * x,
        "classify": RNG.integers(0, 3, 10),
        "segment": (x > 0.5).astype(np.int64),
        "transcribe": np.array(["ab", "b", "abc"] * 3 + ["c"]),
    }[kind]
    np.savez(path, **{"x": x, "y": y, **more})
    return path


def test_class_folders_are_split_by_class_and_scaled(tmp_path: Path) -> None:
    task = read(classes(tmp_path / "signs", {"10": 8, "9": 4, "no": 8}), "classify")
    assert task.spec.classes == ("9", "10", "no")
    assert task.spec.name == "signs"
    assert (task.spec.channels, task.spec.outputs, task.spec.size) == (1, 3, (6, 9))
    found = {split: [int(y) for _, y in task.sets[split]] for split in ("train", "validation")}
    assert [found["validation"].count(k) for k in range(3)] == [1, 2, 2]
    assert [found["train"].count(k) for k in range(3)] == [3, 6, 6]
    x = np.stack([x for x, _ in task.sets["train"]])
    assert 0 <= x.min() < x.max() <= 1
    np.testing.assert_allclose([x.mean(), x.std()], [*task.spec.mean, *task.spec.std], rtol=1e-5)
    assert task.summary == [
        f"{tmp_path / 'signs'}: 15 for train, 5 for validation; 6x9, 1 channel",
        "3 classes: 9 (4), 10 (8), no (8)",
    ]
    other = read(tmp_path / "signs", "classify", seed=1)
    assert any(
        (a != b).any() for (a, _), (b, _) in zip(task.sets["train"], other.sets["train"], strict=True)
    )


def test_given_parts_are_used_as_they_are(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        classes(tmp_path / part, {"a": count, "b": count})
    task = read(tmp_path, "classify")
    assert [task.count(split) for split in ("train", "validation", "test")] == [8, 4, 6]
    for part in ("train", "val"):
        (tmp_path / "packed").mkdir(exist_ok=True)
        arrays(tmp_path / "packed" / f"{part}.npz", "classify")
    assert read(tmp_path / "packed", "classify").count("validation") == 10


def test_masks_give_classes_of_cells_and_255_is_unknown(tmp_path: Path) -> None:
    masks(tmp_path)
    image(tmp_path / "masks/3.png", np.array([[0, 1, 255, 7, 7, 1, 0, 0]] * 5))
    (tmp_path / "classes.txt").write_text("sky\nearth\n")
    task = read(tmp_path, "segment", validation=0.0)
    assert task.spec.classes == ("sky", "earth", "7")
    assert task.spec.size == (5, 8)
    assert task.sets["train"][3][1][0].tolist() == [0, 1, UNLABELLED, 2, 2, 1, 0, 0]
    batch = task.batch(0, 0, 8)
    assert batch.sizes is not None
    assert set(batch.sizes[:, 1].tolist()) == {7, 8}


def test_masks_of_0_and_255_are_two_classes(tmp_path: Path) -> None:
    for k in range(3):
        mask = RNG.integers(0, 2, (4, 4)) * 255
        image(tmp_path / "images" / f"{k}.png", mask)
        image(tmp_path / "masks" / f"{k}.png", mask)
    task = read(tmp_path, "segment", validation=0.0)
    assert task.spec.classes == ("0", "255")
    assert all(((x[..., 0] > 0.5) == y).all() for x, y in task.sets["train"])


def test_transcripts_have_an_alphabet(tmp_path: Path) -> None:
    task = read(texts(tmp_path), "transcribe", validation=0.0)
    assert task.spec.classes == (" ", "a", "b", "c", "x")
    assert task.spec.outputs == 6
    _, y = task.sets["train"][0]
    line = (tmp_path / "labels.tsv").read_text().splitlines()[0].split("\t")[1]
    assert "".join(task.spec.classes[k - 1] for k in y) == line


def test_texts_without_room_for_their_characters_are_named(tmp_path: Path) -> None:
    texts = np.array(["abcd", "aabb", "abcde", "abc"])
    np.savez(tmp_path / "t.npz", x=RNG.random((4, 6, 7)), y=texts, sizes=[[6, 7]] * 3 + [[6, 4]])
    config = default_config("transcribe", str(tmp_path / "t.npz")).updated({"validation": 0.0}, "test")
    # a column is two pixels: there are 4, 4, 4 and 2, and 4, 6, 5 and 3 are needed
    assert texts_without_room(*build(config)) == ["sample 1", "sample 2", "sample 3"]
    assert texts_without_room(*build(config.updated({"windows": "2x1,2x1"}, "test"))) == []


@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "transcribe"])
def test_arrays_are_read_as_they_are(tmp_path: Path, kind: Kind) -> None:
    sizes = np.stack([np.full(10, 5), np.arange(10) % 6 + 1], axis=1)
    task = read(arrays(tmp_path / "set.npz", kind, sizes=sizes), kind, validation=0.0)
    with np.load(tmp_path / "set.npz") as file:
        x, y = file["x"], file["y"]
    for k, (one, target) in enumerate(task.sets["train"]):
        assert (one[..., 0] == x[k, :, : sizes[k, 1]]).all()
        if kind == "grid":
            assert (target[..., 0] == y[k, :, : sizes[k, 1]]).all()
        elif kind == "segment":
            assert (target == y[k, :, : sizes[k, 1]]).all()
    if kind == "grid":
        assert task.spec.target_mean[0] == pytest.approx(105, abs=1)


def test_colours_and_sixteen_bits(tmp_path: Path) -> None:
    image(tmp_path / "a/grey.png", RNG.integers(0, 255, (4, 5)))
    image(tmp_path / "a/colour.png", RNG.integers(0, 255, (4, 5, 3)))
    image(tmp_path / "b/deep.png", np.full((4, 5), 32768, dtype=np.uint16), "I;16")
    image(tmp_path / "b/palette.gif", RNG.integers(0, 255, (4, 5)))
    task = read(tmp_path, "classify", validation=0.0)
    assert task.spec.channels == 3
    by_mean = [x.mean() for x, _ in task.sets["train"]]
    assert any(abs(mean - 0.5) < 1e-3 for mean in by_mean)
    assert all(x.shape == (4, 5, 3) and x.max() <= 1 for x, _ in task.sets["train"])


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    classes(tmp_path / "c", {"a": 3, "b": 3})
    (tmp_path / "c/a/text.png").write_text("no image")
    whole = (tmp_path / "c/b/0.png").read_bytes()
    (tmp_path / "c/b/cut.png").write_bytes(whole[: len(whole) // 2])
    task = read(tmp_path / "c", "classify")
    assert len(task.skipped) == 2
    assert all("cannot be read as an image" in line for line in task.skipped)
    assert "skipped 2 that cannot be used:" in task.summary
    assert any("a/text.png" in line for line in task.summary)

    masks(tmp_path / "s")
    (tmp_path / "s/masks/1.png").unlink()
    image(tmp_path / "s/masks/2.png", np.zeros((3, 3)))
    image(tmp_path / "s/masks/4.png", np.zeros((5, 7, 3)))
    skipped = " ".join(read(tmp_path / "s", "segment").skipped)
    assert "1.png: it has no mask" in skipped
    assert "2.png: its mask is 3x3, it is 5x7" in skipped
    assert "4.png: its mask has mode RGB" in skipped

    texts(tmp_path / "t")
    with (tmp_path / "t/labels.tsv").open("a") as file:
        file.write("gone.png\tabc\n0.png\t\n")
    assert read(tmp_path / "t", "transcribe").skipped == [
        "gone.png: there is no such file",
        "0.png: its text is empty",
    ]

    x = RNG.random((12, 4, 4))
    x[3, 0, 0] = np.nan
    np.savez(tmp_path / "n.npz", x=x, y=np.arange(12), sizes=[[4, 4]] * 11 + [[5, 4]])
    assert [line.split(":")[0] for line in read(tmp_path / "n.npz", "classify").skipped] == [
        "sample 3",
        "sample 11",
    ]
    task = read(classes(tmp_path / "many", {"a": 2, "b": 1}), "classify")
    for k in range(13):
        (tmp_path / f"many/a/bad{k}.png").write_text("")
    assert read(tmp_path / "many", "classify").summary[-1] == "  and 3 more"


def empty(path: Path) -> Path:
    path.mkdir()
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tabless(path: Path) -> Path:
    texts(path)
    (path / "labels.tsv").write_text("0.png ab\n")
    return path


BAD = {
    "nothing there": (lambda p: p / "no", "classify", "there is no such file or folder"),
    "empty folder": (
        lambda p: empty(p / "e"),
        "classify",
        "nothing to train on was found; a classify task takes",
    ),
    "no masks": (lambda p: classes(p / "c", {"images": 2}), "segment", "lacks images/ or masks/"),
    "no labels": (lambda p: classes(p / "c", {"a": 2}), "transcribe", "lacks labels.tsv"),
    "no tab": (lambda p: tabless(p / "t"), "transcribe", "line 1 has no tab"),
    "a grid's folder": (lambda p: empty(p / "g"), "grid", "is a folder; a grid task takes an .npz"),
    "another file": (lambda p: written(p / "x.csv", b"1,2"), "grid", "is no .npz file and no folder"),
    "damaged": (lambda p: written(p / "x.npz", b"PK\x03\x04 no"), "grid", "cannot be read as .npz"),
    "objects": (
        lambda p: arrays(p / "x.npz", "grid", x=np.array([{}] * 10)),
        "grid",
        "cannot be read as .npz of numbers and texts",
    ),
    "no y": (lambda p: np.savez(p / "x.npz", x=np.ones((3, 4, 4))) or p / "x.npz", "grid", "lacks x or y"),
    "flat x": (
        lambda p: arrays(p / "x.npz", "grid", x=np.ones((10, 4))),
        "grid",
        r"x is float64 \(10, 4\)",
    ),
    "y of another kind": (lambda p: arrays(p / "x.npz", "grid"), "classify", r"y is float32 \(10, 5, 6\)"),
    "y of another length": (
        lambda p: arrays(p / "x.npz", "classify", y=np.arange(9)),
        "classify",
        r"y is int64 \(9,\)",
    ),
    "y of another grid": (
        lambda p: arrays(p / "x.npz", "segment", y=np.ones((10, 6, 5), int)),
        "segment",
        r"for x \(10, 5, 6, 1\)",
    ),
    "bad sizes": (
        lambda p: arrays(p / "x.npz", "grid", sizes=[[5, 6]]),
        "grid",
        r"expected whole numbers \(10, 2\)",
    ),
    "all bad": (
        lambda p: arrays(p / "x.npz", "classify", x=np.full((10, 2, 2), np.nan)),
        "classify",
        "nothing to train on was found.*sample 0: it holds NaN",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    make, kind, message = BAD[name]
    with pytest.raises(InputError, match=message):
        read(make(tmp_path), kind)  # type: ignore[arg-type]


MAKERS = {
    "classify": lambda path: classes(path / "d", {"a": 9, "b": 9}),
    "segment": lambda path: masks(path / "d"),
    "transcribe": lambda path: texts(path / "d"),
    "grid": lambda path: arrays(path / "d.npz", "grid"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_network_trains_on_it_and_is_used_without_it(kind: Kind, tmp_path: Path) -> None:
    path = MAKERS[kind](tmp_path)
    config = default_config(kind, str(path)).updated(
        {"steps": 6, "hidden": 3, "batch_size": 4, "evaluate_every": 3, "validation": 0.25}, "test"
    )
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    _, task = build(config)
    train(config, run, task=task)
    draw_run(run, task)
    errors = evaluate_run(run, task, 1.0)["errors"]
    assert all(np.isfinite(value) for value in errors.values())
    path.rename(tmp_path / "moved away")
    checkpoint = load_checkpoint(run.best)
    assert checkpoint.spec == task.spec
    batch = task.batch(0, 0, 2, "validation")
    whole = predict(checkpoint.network(), batch, torch.device("cpu"))
    assert whole.shape[-1] == checkpoint.spec.outputs
    if kind == "grid":  # a network that knows nothing predicts the mean of the targets
        assert whole.mean().item() == pytest.approx(task.spec.target_mean[0], abs=5)


def test_the_command_says_what_it_found_and_resumes(tmp_path: Path) -> None:
    classes(tmp_path / "signs", {"a": 9, "b": 9})
    (tmp_path / "signs/a/bad.png").write_text("")
    quick = ("--steps", "4", "--hidden", "3", "--batch-size", "4")
    done = mdlstm("train", "--data", "signs", "--task", "classify", *quick, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2 classes: a (9), b (9)" in done.err
    assert "skipped 1 that cannot be used:" in done.err
    assert "next: mdlstm export runs/signs-md-6x9 --size 6x9" in done.err
    done = mdlstm("train", "--resume", "runs/signs-md-6x9", "--steps", "6", cwd=tmp_path)
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "runs/signs-md-6x9/last.safetensors").step == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": "signs"}, "--data needs --task: grid, classify"),
        ({"data": "signs", "task": "digits"}, "--data takes --task grid, classify, segment, transcribe"),
        ({"task": "classify"}, "there is no task 'classify'; choose one of diagonal.*or give --data"),
        ({"task": "digits", "model": "conv"}, "model 'conv' is for tasks of kind segment"),
    ],
)
def test_tasks_that_cannot_be_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure(given)


def test_defaults_leave_out_what_a_network_lacks() -> None:
    config = default_config("textures", model="conv")
    assert (config.model, config.cell, config.windows) == ("conv", "", "2,2")
    assert default_config("textures").cell != ""
    assert default_config("classify", "x.npz").augment == 0
    assert default_config("classify", "folder").augment > 0
    assert default_config("diagonal") == TrainConfig()
