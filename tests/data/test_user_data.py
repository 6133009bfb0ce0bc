"""A user's own data: every layout is read, what cannot be used is named, and networks train on it."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.training import quick, resume, run_in
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
from mdlstm_tk.errors import InputError
from mdlstm_tk.report import draw_run
from mdlstm_tk.text.encoding import TextExtent, texts_without_room
from mdlstm_tk.training import Run, build, default_config, load_checkpoint, new_job, predict, resume_job
from mdlstm_tk.training.networks import columns_per_step, fit_config
from mdlstm_tk.training.tasks import load_task, make_task


def test_class_folders_get_a_stratified_split_and_are_scaled(tmp_path: Path) -> None:
    task = read(write_classes(tmp_path / "signs", {"10": 8, "9": 4, "no": 8}), "classify")
    assert task.spec.classes == ("9", "10", "no")
    assert task.spec.name == "signs"
    assert (task.spec.channels, task.spec.outputs, task.spec.size) == (1, 3, (6, 9))
    labels = {split: [int(y) for _, y in task.sets[split]] for split in ("train", "validation")}
    assert [labels["validation"].count(k) for k in range(3)] == [1, 2, 2]
    assert [labels["train"].count(k) for k in range(3)] == [3, 6, 6]
    data, classes = task.summary
    assert all(text in data for text in (str(tmp_path / "signs"), "15", "5", "6x9"))
    assert "9 (4), 10 (8), no (8)" in classes
    other = read(tmp_path / "signs", "classify", seed=1)
    assert other.names["validation"] != task.names["validation"]
    again = read(tmp_path / "signs", "classify", seed=1, known=task.identities)
    assert again.names["validation"] == task.names["validation"]
    with pytest.raises(InputError, match="signs: all samples that are left were held out"):
        read(
            tmp_path / "signs",
            "classify",
            known={"train": (), "validation": [*chain(*task.identities.values())]},
        )


USED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "classes": ("classify", lambda path: write_classes(path, {"a": 6, "b": 6})),
    "masks": ("segment", lambda path: write_masks(path, 12)),
    "targets": ("grid", lambda path: write_targets(path, 12)),
    "texts": ("transcribe", lambda path: write_texts(path, 12)),
}


@pytest.mark.parametrize("name", USED)
def test_to_be_evaluated_samples_are_divided_by_what_a_run_did_with_them(name: str, tmp_path: Path) -> None:
    """Whatever files are called, and in which folders they lie."""
    kind, write = USED[name]
    write(tmp_path / "data")
    trained = read(tmp_path / "data", kind)
    before: Any = {split: {each.digest for each in ids} for split, ids in trained.identities.items()}
    seen: Any = {"known": trained.identities, "learned": trained.identities["train"]}
    again = read(tmp_path / "data", kind, **seen)
    assert again.identities == trained.identities
    write(tmp_path / "other")  # files of the same names with other content
    for path in ("other", "both"):
        shutil.copytree(tmp_path / "other", tmp_path / "both" / "val", dirs_exist_ok=True)
        shutil.copytree(tmp_path / "data", tmp_path / "both" / "train", dirs_exist_ok=True)
        task = read(tmp_path / path, kind, **seen)
        after = {split: {each.digest for each in ids} for split, ids in task.identities.items()}
        assert len(after.pop("test")) == task.count("test") == 12
        assert after == (before if path == "both" else {"train": set()})
        assert len(task.batch(0, 0, 12, "test").x) == 12


def test_files_that_cannot_be_used_are_named_and_skipped(tmp_path: Path) -> None:
    write_classes(tmp_path / "signs", {"a": 4, "b": 4})
    content = (tmp_path / "signs/b/0.png").read_bytes()
    bad = {"a/text.png": b"not an image", "b/cut.png": content[: len(content) // 2]}
    bad |= dict.fromkeys([f"b/empty{k:02}.png" for k in range(11)], b"")
    for name, data in bad.items():
        (tmp_path / "signs" / name).write_bytes(data)
    (tmp_path / "signs/empty").mkdir()
    (tmp_path / "signs/a/photo.heic").write_text("")
    (tmp_path / "signs/notes.txt").write_text("")
    (tmp_path / "signs/a/._0.png").write_text("")  # a note of a file manager
    task = read(tmp_path / "signs", "classify")
    assert [line.split(":")[0] for line in task.skipped] == list(bad)
    for text in ("skipped 13", "a/text.png", "1 .heic, 1 .txt", "without images, left out: empty"):
        assert any(text in line for line in task.summary), text
    assert "empty07" in task.summary[-2] and "3 more" in task.summary[-1]
    write_masks(tmp_path / "cells")
    (tmp_path / "cells/masks/1.png").unlink()
    write_image(tmp_path / "cells/masks/2.png", np.zeros((3, 3)))
    (tmp_path / "cells/masks/4.png").write_text("not an image")
    write_image(tmp_path / "cells/masks/5.tif", np.zeros((5, 8)))
    write_image(tmp_path / "cells/images/6.jpg", np.zeros((5, 7)))
    reasons = {line.split(": ")[0]: line for line in read(tmp_path / "cells", "segment").skipped}
    assert set(reasons) == {
        f"images/{name}" for name in ("1.png", "2.png", "4.png", "5.png", "6.jpg", "6.png")
    }
    assert "masks/5.png and masks/5.tif have one name" in reasons["images/5.png"]
    assert "images/6.jpg and images/6.png have one name" in reasons["images/6.png"]
    assert "3x3" in reasons["images/2.png"] and "5x7" in reasons["images/2.png"]
    assert "its mask" in reasons["images/4.png"]
    (tmp_path / "cells/masks/4.png").unlink()
    write_image(tmp_path / "cells/masks/4.jpg", np.zeros((5, 7)))
    assert any("4.png: its mask is a JPEG" in line for line in read(tmp_path / "cells", "segment").skipped)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 3})
    write_classes(tmp_path / "elsewhere", {"b": 3})
    try:
        (data / "b").symlink_to(tmp_path / "elsewhere/b")
    except OSError:
        pytest.skip("this user may not make links")
    (data / "a/loop").symlink_to(data)
    (data / "a/broken.png").symlink_to(data / "gone.png")
    task = read(data, "classify")
    assert task.spec.classes == ("a", "b")
    assert task.skipped == ["a/broken.png: it is a link to a file that is not there"]
    (data / "a/broken.png").unlink()
    (data / "0").symlink_to(data / "a")
    assert {file.parent.name for file in find_files(data)} == {"0", "b"}


@pytest.mark.parametrize("setting", ["size", "resize", "crop"])
@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "transcribe"])
@pytest.mark.parametrize("is_arrays", [True, False])
def test_a_size_that_is_refused_comes_with_advice_that_is_not(
    kind: str, setting: str, is_arrays: bool, tmp_path: Path
) -> None:
    path = write_arrays(tmp_path / "x.npz", kind) if is_arrays else WRITERS[FOLDERS[kind]](tmp_path)
    line = ""
    try:
        make_task(quick(path, kind, **{"resize": "", setting: "3"}))
    except InputError as error:
        line = str(error)
    assert line or not (setting == "size" or (is_arrays and setting == "resize"))
    assert not line or "leave it out" in line
    for other in {"resize", "crop"} - {setting}:
        if line and f"use --{other}" in line:
            make_task(quick(path, kind, **{"resize": "", other: "3"}))


WRITERS: dict[str, Callable[[Path], Path]] = {
    "classify": lambda path: write_classes(path / "d", {"a": 9, "b": 9}),
    "segment": lambda path: write_masks(path / "d"),
    "transcribe": lambda path: write_texts(path / "d"),
    "grid": lambda path: write_arrays(path / "d.npz", "grid"),
    "grid of images": lambda path: write_targets(path / "d"),
}
FOLDERS = {
    "grid": "grid of images",
    "classify": "classify",
    "segment": "segment",
    "transcribe": "transcribe",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_network_trains_on_the_data_and_predicts_without_it(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path)
    kind = kind.split()[0]
    config = quick(path, kind)
    run, task = run_in(tmp_path / "run", config), make_task(config)
    draw_run(run, task)
    assert run.prediction.exists()
    assert all(np.isfinite(value) for value in run.read_result()["errors"].values())
    batch, in_worker = (each.batch(0, 0, 4) for each in (task, pickle.loads(pickle.dumps(task))))
    assert np.array_equal(batch.x, in_worker.x) and np.array_equal(batch.y, in_worker.y)
    path.rename(tmp_path / "moved-away")
    checkpoint = load_checkpoint(run.best)
    assert checkpoint.spec == replace(task.spec, mixed_sizes=task.has_mixed_sizes)
    prediction = predict(checkpoint.network(), batch, torch.device("cpu"))
    assert prediction.shape[-1] == checkpoint.spec.outputs
    if path.suffix == ".npz":  # an untrained network predicts the mean of the targets
        assert prediction.mean().item() == pytest.approx(task.spec.target_mean[0], abs=5)


def test_the_command_describes_the_data(tmp_path: Path) -> None:
    write_classes(tmp_path / "signs", {"a": 9, "b": 9})
    (tmp_path / "signs/a/bad.png").write_text("")
    options = ("--steps", "4", "--hidden", "3", "--batch-size", "4", "--resize", "4x*")
    done = mdlstm("train", "--data", "signs", "--task", "classify", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    for text in ("a (9), b (9)", "a/bad.png", "resized to 4x6", "GB"):
        assert text in done.err
    assert "mdlstm export runs/signs-md-4x6 --form scan" in done.err


def write_mixed(path: Path, count: int = 24) -> Path:
    """Write images of two classes, of many sizes."""
    for k in range(count):
        extents = (4 + k % 5, 5 + 3 * (k % 4))
        write_image(path / "ab"[k % 2] / f"{k}.png", RNG.integers(0, 256, extents))
    return path


@pytest.mark.parametrize(
    "settings", [{}, {"crop": "5x6"}, {"cache": 0, "workers": 2}, {"resize": "4x*"}], ids=str
)
def test_training_on_mixed_sizes_resumes_exactly(settings: dict[str, object], tmp_path: Path) -> None:
    config = quick(write_mixed(tmp_path / "data"), "classify", augment=1.0, **settings)
    whole = run_in(tmp_path / "whole", config)
    parts = resume(run_in(tmp_path / "parts", replace(config, steps=3)), steps=config.steps)
    assert parts.metrics.read_bytes() == whole.metrics.read_bytes()
    assert parts.last.read_bytes() == whole.last.read_bytes()


def test_what_is_kept_in_memory_is_bounded_and_changes_nothing(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    tasks = {count: read(tmp_path, "classify", cache_bytes=count) for count in (0, 500, 10**6)}
    for step in range(12):
        batches = [task.batch(0, step, 4) for task in tasks.values()]
        assert all(np.array_equal(batch.x, batches[0].x) for batch in batches)
    cached = {count: task.sets["train"]._cache for count, task in tasks.items()}  # type: ignore[attr-defined]
    assert all(sum(x.nbytes for x, _ in samples.values()) <= count for count, samples in cached.items())
    assert [len(cached[0]), len(cached[10**6])] == [0, 18]


def test_a_file_that_vanishes_during_training_is_named(tmp_path: Path) -> None:
    task = read(write_classes(tmp_path, {"a": 2, "b": 2}), "classify", validation=0.0)
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(InputError, match=r"a/1\.png"):
        list(task.sets["train"])


def without_room(config: Any) -> list[TextExtent]:
    network, task = build(config)
    return texts_without_room(columns_per_step(network), task)


def test_texts_longer_than_their_images_are_reported(tmp_path: Path) -> None:
    y = np.array(["abcd", "aabb", "abcde", "abc"])
    np.savez(tmp_path / "t.npz", x=RNG.random((4, 6, 7)), y=y, sizes=[[6, 7]] * 3 + [[6, 4]])
    config = default_config("transcribe", str(tmp_path / "t.npz"), "md")
    config = config.updated({"validation": 0.0}, "test")
    # with two pixels per step there are 4, 4, 4 and 2 steps, but CTC needs 4, 6, 5 and 3
    assert [each.text for each in without_room(config)] == ["aabb", "abcde", "abc"]
    assert without_room(config.updated({"windows": "2x1,2x1"}, "test")) == []
    note = new_job(config, tmp_path / "run").notes[-2]
    assert note.startswith("3 texts need more steps") and "'sample 1: aabb', 'sample 2: abcde'" in note
    assert "--windows 2x1" in note
    lines = replace(config, model="lines")  # eight pixels per step
    assert len(without_room(lines)) == 4
    with pytest.raises(InputError, match=r"^4 texts .*'sample 0: abcd'.* all that .*; try .*--resize"):
        new_job(lines, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_large_images_get_windows(tmp_path: Path) -> None:
    photos = write_classes(tmp_path / "photos", {"a": 2, "b": 2}, (240, 320))
    config = default_config("classify", str(photos))
    assert fit_config(config, make_task(config)).windows == "8x8"
    assert fit_config(replace(config, windows="4"), make_task(config)).windows == "4"
    small = default_config("classify", str(write_classes(tmp_path / "small", {"a": 2, "b": 2}, (30, 40))))
    assert fit_config(small, make_task(small)).windows == ""
    rng = np.random.default_rng(0)
    for k in range(8):  # 16x1000 and 1000x16 have 16000 positions, 1000x1000 would have a million
        extents = (16, 1000) if k % 2 else (1000, 16)
        write_image(tmp_path / "long" / "ab"[k // 4] / f"{k}.png", rng.integers(0, 256, extents))
    long = default_config("classify", str(tmp_path / "long")).updated({"batch_size": 2}, "test")
    task = make_task(long)
    assert fit_config(long, task).windows == "2x2"
    assert task.spec.size == (1000, 1000)
    assert {task.largest_batch(seed, 2) for seed in range(9)} <= {(16, 1000), (1000, 16), (1000, 1000)}
    together = {task.batch(0, k, 2).x.shape[1:3] for k in range(-(-task.count("train") // 2))}
    assert task.largest_batch(0, 2) == max(together, key=np.prod)
    lines = tmp_path / "lines"
    for name in ("0.png", "1.png"):
        write_image(lines / name, RNG.integers(0, 256, (128, 600)))
    mark = "\u200f"  # of direction, which is invisible
    (lines / "labels.tsv").write_text(f"0.png\t{'ab' * 70}\n1.png\t{mark}\n", encoding="utf-8")
    changes = {"validation": 0, "resize": ""}
    config = default_config("transcribe", str(lines), "md").updated(changes, "test")
    network, task = build(config)
    columns = network.network.stride[1]  # type: ignore[union-attr, index]
    assert (fit_config(config, task).windows, columns) == ("8x4,2x1", 4)  # 150 steps for 140 characters


def test_data_are_found_from_another_folder_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    write_masks(home / "data")
    monkeypatch.chdir(home)
    run_in(Path("runs/r"), quick(Path("data"), "segment", steps=3))
    config = load_checkpoint(home / "runs/r/last.safetensors").config
    assert (config.data, config.data_from_run) == (str(home / "data"), "../../data")
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.move(home, tmp_path / "moved")) / "runs/r"
    resume(Run(folder), steps=5)
    assert load_checkpoint(folder / "last.safetensors").config.data == str(tmp_path / "moved/data")
    with pytest.raises(InputError, match=r"not at dat;.*--data PATH"):
        resume_job(folder, {"steps": 6, "data": "dat"})
    shutil.move(tmp_path / "moved/data", tmp_path / "elsewhere")
    with pytest.raises(InputError, match="--data PATH"):
        resume_job(folder, {"steps": 6})
    resume(Run(folder), steps=6, data="elsewhere")


def test_a_run_is_not_continued_on_other_data(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", quick(write_classes(tmp_path / "ab", {"a": 4, "b": 4}), "classify"))
    other = write_classes(tmp_path / "ac", {"a": 4, "c": 4})
    with pytest.raises(InputError, match=r"ac is not what .*: new classes 'c' and no samples of 'b'"):
        resume_job(run.folder, {"steps": 9, "data": str(other)})
    checkpoint = load_checkpoint(run.last)
    with pytest.raises(InputError, match="--data PATH"):
        load_task(checkpoint.config, checkpoint.spec)
    assert load_task(checkpoint.config, checkpoint.spec, str(tmp_path / "ab")).spec.name == "ab"


@pytest.mark.parametrize("kind", ["grid", "classify", "segment"])
def test_volumes_train_from_the_command_line(kind: str, tmp_path: Path) -> None:
    x = RNG.random((12, 4, 5, 6)).astype(np.float32)
    y = {"grid": np.roll(x, 1, axis=1), "classify": np.arange(12) % 2, "segment": (x > 0.5).astype(int)}
    np.savez(tmp_path / "volumes.npz", x=x[..., None], y=y[kind])
    np.save(tmp_path / "one.npy", x[0])
    options = ("--steps", "2", "--hidden", "3", "--batch-size", "4", "-o", "run")
    for arguments in (
        ("train", "--data", "volumes.npz", "--task", kind, *options),
        ("report", "run", "--data", "volumes.npz"),
        ("export", "run", "--size", "4x5x6"),
        ("infer", "one.npy", "-m", "run/model-4x5x6.onnx", "--raw", "-o", "y.npy"),
    ):
        done = mdlstm(*arguments, cwd=tmp_path)
        assert done.code == 0, done.err
    assert (tmp_path / "run/prediction.png").exists() and (tmp_path / "y.npy").exists()
    assert "slice in the middle" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    refused = mdlstm("train", "--data", "volumes.npz", "--task", kind, "--model", "snake", cwd=tmp_path)
    assert refused.code == 2 and "'snake' is for" in refused.err


def test_test_images_of_another_size_make_the_sizes_mixed(tmp_path: Path) -> None:
    for split, width in (("train", 6), ("test", 8)):
        for k in range(4):
            write_image(tmp_path / split / f"{k}.png", RNG.integers(0, 256, (6, width)))
    assert read(tmp_path, "density").has_mixed_sizes
    shutil.rmtree(tmp_path / "test")
    assert not read(tmp_path, "density").has_mixed_sizes
