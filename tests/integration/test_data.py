"""User data: every layout is read, unusable samples are reported, and networks train on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
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

from mdlstm_tk import MDLSTM
from mdlstm_tk.data import UNLABELLED, Kind
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import (
    build,
    configure,
    default_config,
    load_checkpoint,
    new_job,
    predict,
    train,
)
from mdlstm_tk.training.networks import texts_without_room
from mdlstm_tk.viz.run_pictures import draw_run


def test_class_folders_get_a_stratified_split_and_are_scaled(tmp_path: Path) -> None:
    task = read(write_classes(tmp_path / "signs", {"10": 8, "9": 4, "no": 8}), "classify")
    assert task.spec.classes == ("9", "10", "no")
    assert task.spec.name == "signs"
    assert (task.spec.channels, task.spec.outputs, task.spec.size) == (1, 3, (6, 9))
    labels = {split: [int(y) for _, y in task.sets[split]] for split in ("train", "validation")}
    assert [labels["validation"].count(k) for k in range(3)] == [1, 2, 2]
    assert [labels["train"].count(k) for k in range(3)] == [3, 6, 6]
    x = np.stack([x for x, _ in task.sets["train"]])
    assert 0 <= x.min() < x.max() <= 1
    np.testing.assert_allclose([x.mean(), x.std()], [*task.spec.mean, *task.spec.std], rtol=1e-5)
    data, labels_found = task.summary
    assert all(text in data for text in (str(tmp_path / "signs"), "15", "5", "6x9"))
    assert "9 (4), 10 (8), no (8)" in labels_found
    other = read(tmp_path / "signs", "classify", seed=1)
    assert any(
        (a != b).any() for (a, _), (b, _) in zip(task.sets["train"], other.sets["train"], strict=True)
    )


def test_splits_of_the_data_are_used(tmp_path: Path) -> None:
    for folder, count in (("train", 4), ("val", 2), ("test", 3)):
        write_classes(tmp_path / folder, {"a": count, "b": count})
    task = read(tmp_path, "classify")
    assert [task.count(split) for split in ("train", "validation", "test")] == [8, 4, 6]
    (tmp_path / "arrays").mkdir()
    for name in ("train", "val"):
        write_arrays(tmp_path / "arrays" / f"{name}.npz", "classify")
    assert read(tmp_path / "arrays", "classify").count("validation") == 10


def test_mask_values_are_classes_and_255_is_unknown(tmp_path: Path) -> None:
    write_masks(tmp_path)
    write_image(tmp_path / "masks/3.png", np.array([[0, 1, 255, 7, 7, 1, 0, 0]] * 5))
    (tmp_path / "classes.txt").write_text("sky\nearth\n")
    task = read(tmp_path, "segment", validation=0.0)
    assert task.spec.classes == ("sky", "earth", "7")
    assert task.spec.size == (5, 8)
    assert task.sets["train"][3][1][0].tolist() == [0, 1, UNLABELLED, 2, 2, 1, 0, 0]
    assert any("255" in line for line in task.summary)
    batch = task.batch(0, 0, 8)
    assert batch.sizes is not None
    assert set(batch.sizes[:, 1].tolist()) == {7, 8}


def test_masks_of_0_and_255_are_two_classes(tmp_path: Path) -> None:
    for k in range(3):
        mask = RNG.integers(0, 2, (4, 4)) * 255
        write_image(tmp_path / "images" / f"{k}.png", mask)
        write_image(tmp_path / "masks" / f"{k}.png", mask)
    task = read(tmp_path, "segment", validation=0.0)
    assert task.spec.classes == ("0", "255")
    assert not any("unknown" in line for line in task.summary)
    assert all(((x[..., 0] > 0.5) == y).all() for x, y in task.sets["train"])


def test_the_characters_of_the_texts_are_the_classes(tmp_path: Path) -> None:
    task = read(write_texts(tmp_path), "transcribe", validation=0.0)
    assert task.spec.classes == (" ", "a", "b", "c", "x")
    assert task.spec.outputs == 6
    _, y = task.sets["train"][0]
    line = (tmp_path / "labels.tsv").read_text().splitlines()[0].split("\t")[1]
    assert "".join(task.spec.classes[k - 1] for k in y) == line


def test_texts_longer_than_their_images_are_reported(tmp_path: Path) -> None:
    y = np.array(["abcd", "aabb", "abcde", "abc"])
    np.savez(tmp_path / "t.npz", x=RNG.random((4, 6, 7)), y=y, sizes=[[6, 7]] * 3 + [[6, 4]])
    config = default_config("transcribe", str(tmp_path / "t.npz")).updated({"validation": 0.0}, "test")
    # with two pixels per step there are 4, 4, 4 and 2 steps, but CTC needs 4, 6, 5 and 3
    assert texts_without_room(*build(config)) == ["sample 1", "sample 2", "sample 3"]
    assert texts_without_room(*build(config.updated({"windows": "2x1,2x1"}, "test"))) == []


@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "transcribe"])
def test_arrays_are_read_unchanged(tmp_path: Path, kind: Kind) -> None:
    sizes = np.stack([np.full(10, 5), np.arange(10) % 6 + 1], axis=1)
    task = read(write_arrays(tmp_path / "set.npz", kind, sizes=sizes), kind, validation=0.0)
    with np.load(tmp_path / "set.npz") as file:
        x, y = file["x"], file["y"]
    for k, (sample, target) in enumerate(task.sets["train"]):
        assert (sample[..., 0] == x[k, :, : sizes[k, 1]]).all()
        if kind == "grid":
            assert (target[..., 0] == y[k, :, : sizes[k, 1]]).all()
        elif kind == "segment":
            assert (target == y[k, :, : sizes[k, 1]]).all()
    if kind == "grid":
        assert task.spec.target_mean[0] == pytest.approx(105, abs=1)


def test_grey_coloured_and_16_bit_images_get_three_channels_in_0_to_1(tmp_path: Path) -> None:
    write_image(tmp_path / "a/grey.png", RNG.integers(0, 255, (4, 5)))
    write_image(tmp_path / "a/colour.png", RNG.integers(0, 255, (4, 5, 3)))
    write_image(tmp_path / "b/deep.png", np.full((4, 5), 32768, dtype=np.uint16))
    write_image(tmp_path / "b/palette.gif", RNG.integers(0, 255, (4, 5)))
    task = read(tmp_path, "classify", validation=0.0)
    assert task.spec.channels == 3
    means = [x.mean() for x, _ in task.sets["train"]]
    assert any(abs(mean - 0.5) < 1e-3 for mean in means)
    assert all(x.shape == (4, 5, 3) and x.max() <= 1 for x, _ in task.sets["train"])


def test_unreadable_images_are_skipped(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a/text.png").write_text("not an image")
    content = (tmp_path / "b/0.png").read_bytes()
    (tmp_path / "b/truncated.png").write_bytes(content[: len(content) // 2])
    task = read(tmp_path, "classify")
    assert [line.split(":")[0] for line in task.skipped] == ["a/text.png", "b/truncated.png"]
    assert any("skipped 2" in line for line in task.summary)
    assert any("a/text.png" in line for line in task.summary)


def test_samples_with_missing_and_misfit_masks_are_skipped(tmp_path: Path) -> None:
    write_masks(tmp_path)
    (tmp_path / "masks/1.png").unlink()
    write_image(tmp_path / "masks/2.png", np.zeros((3, 3)))
    (tmp_path / "masks/4.png").write_text("not an image")
    reasons = {line.split(": ")[0]: line for line in read(tmp_path, "segment").skipped}
    assert set(reasons) == {"images/1.png", "images/2.png", "images/4.png"}
    assert "3x3" in reasons["images/2.png"] and "5x7" in reasons["images/2.png"]
    assert "mask" in reasons["images/4.png"]


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


def test_missing_images_and_empty_texts_are_skipped(tmp_path: Path) -> None:
    write_texts(tmp_path)
    with (tmp_path / "labels.tsv").open("a") as file:
        file.write("gone.png\tabc\n0.png\t\n")
    assert [line.split(":")[0] for line in read(tmp_path, "transcribe").skipped] == ["gone.png", "0.png"]


def test_arrays_with_nan_and_wrong_sizes_are_skipped(tmp_path: Path) -> None:
    x = RNG.random((12, 4, 4))
    x[3, 0, 0] = np.nan
    np.savez(tmp_path / "n.npz", x=x, y=np.arange(12), sizes=[[4, 4]] * 11 + [[5, 4]])
    skipped = read(tmp_path / "n.npz", "classify").skipped
    assert [line.split(":")[0] for line in skipped] == ["sample 3", "sample 11"]


def test_a_long_list_of_skipped_samples_is_shortened(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 1})
    for k in range(13):
        (tmp_path / f"a/bad{k}.png").write_text("")
    summary = read(tmp_path, "classify").summary
    assert sum("bad" in line for line in summary) == 10
    assert "3" in summary[-1]


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_labels_without_tab(path: Path) -> Path:
    write_texts(path)
    (path / "labels.tsv").write_text("0.png ab\n")
    return path


def write_labels_outside(path: Path) -> Path:
    write_texts(path)
    (path / "labels.tsv").write_text("../0.png\tab\n")
    return path


def write_mixed_splits(path: Path) -> Path:
    write_targets(path / "val")
    write_arrays(path / "train.npz", "grid")
    return path


UNREADABLE = {  # what to write below a folder, the kind of the task, and what the message must contain
    "missing": (lambda p: p / "no", "classify", r"no such"),
    "empty folder": (lambda p: make_folder(p / "e"), "classify", r"subfolder.*\.npz"),
    "no masks": (lambda p: write_classes(p / "c", {"images": 2}), "segment", r"images/.*masks/"),
    "no labels": (lambda p: write_classes(p / "c", {"a": 2}), "transcribe", r"labels\.tsv"),
    "no tab": (lambda p: write_labels_without_tab(p / "t"), "transcribe", r"line 1.*tab"),
    "no targets": (lambda p: write_classes(p / "c", {"images": 2}), "grid", r"targets/.*images/"),
    "one class": (lambda p: write_classes(p / "c", {"only": 2}), "classify", r"'only'"),
    "one mask value": (
        lambda p: write_arrays(p / "x.npz", "segment", y=np.ones((10, 5, 6), int)),
        "segment",
        r"value 1",
    ),
    "text outside": (lambda p: write_labels_outside(p / "t"), "transcribe", r"line 1.*'\.\./0\.png'"),
    "mixed splits": (lambda p: write_mixed_splits(p / "m"), "grid", r"val.*\.npz"),
    "other file type": (lambda p: write_file(p / "x.csv", b"1,2"), "grid", r"x\.csv.*\.npz"),
    "damaged": (lambda p: write_file(p / "x.npz", b"PK\x03\x04 no"), "grid", r"x\.npz"),
    "objects": (lambda p: write_arrays(p / "x.npz", "grid", x=np.array([{}] * 10)), "grid", r"x\.npz"),
    "no y": (lambda p: np.savez(p / "x.npz", x=np.ones((3, 4, 4))) or p / "x.npz", "grid", r"x or y"),
    "flat x": (
        lambda p: write_arrays(p / "x.npz", "grid", x=np.ones((10, 4))),
        "grid",
        r"float64 \(10, 4\)",
    ),
    "wrong kind of y": (lambda p: write_arrays(p / "x.npz", "grid"), "classify", r"float32 \(10, 5, 6\)"),
    "wrong length of y": (
        lambda p: write_arrays(p / "x.npz", "classify", y=np.arange(9)),
        "classify",
        r"int64 \(9,\)",
    ),
    "wrong grid of y": (
        lambda p: write_arrays(p / "x.npz", "segment", y=np.ones((10, 6, 5), int)),
        "segment",
        r"\(10, 6, 5\).*\(10, 5, 6, 1\)",
    ),
    "wrong sizes": (
        lambda p: write_arrays(p / "x.npz", "grid", sizes=[[5, 6]]),
        "grid",
        r"sizes.*\(10, 2\)",
    ),
    "no usable sample": (
        lambda p: write_arrays(p / "x.npz", "classify", x=np.full((10, 2, 2), np.nan)),
        "classify",
        r"sample 0.*NaN",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_data_is_an_error(name: str, tmp_path: Path) -> None:
    write, kind, message = UNREADABLE[name]
    with pytest.raises(InputError, match=message):
        read(write(tmp_path), kind)  # type: ignore[arg-type]


WRITERS = {
    "classify": lambda path: write_classes(path / "d", {"a": 9, "b": 9}),
    "segment": lambda path: write_masks(path / "d"),
    "transcribe": lambda path: write_texts(path / "d"),
    "grid": lambda path: write_arrays(path / "d.npz", "grid"),
    "grid of images": lambda path: write_targets(path / "d"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_network_trains_on_the_data_and_predicts_without_it(kind: Kind, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path)
    kind = kind.split()[0]  # type: ignore[assignment]
    config = default_config(kind, str(path)).updated(
        {"steps": 6, "hidden": 3, "batch_size": 4, "evaluate_every": 3, "validation": 0.25}, "test"
    )
    job = new_job(config, tmp_path / "run")
    errors = train(job)["errors"]
    run, task = job.run, job.task
    draw_run(run, task)
    assert all(np.isfinite(value) for value in errors.values())
    path.rename(tmp_path / "moved-away")
    checkpoint = load_checkpoint(run.best)
    assert checkpoint.spec == task.spec
    batch = task.batch(0, 0, 2, "validation")
    prediction = predict(checkpoint.network(), batch, torch.device("cpu"))
    assert prediction.shape[-1] == checkpoint.spec.outputs
    if kind == "grid" and path.is_file():  # an untrained network predicts the mean of the targets
        assert prediction.mean().item() == pytest.approx(task.spec.target_mean[0], abs=5)


def test_the_command_describes_the_data_and_resumes(tmp_path: Path) -> None:
    write_classes(tmp_path / "signs", {"a": 9, "b": 9})
    (tmp_path / "signs/a/bad.png").write_text("")
    quick = ("--steps", "4", "--hidden", "3", "--batch-size", "4")
    done = mdlstm("train", "--data", "signs", "--task", "classify", *quick, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "a (9), b (9)" in done.err
    assert "a/bad.png" in done.err
    assert "GB" in done.err
    assert "mdlstm export runs/signs-md-6x9 --size 6x9" in done.err
    done = mdlstm("train", "--resume", "runs/signs-md-6x9", "--steps", "6", cwd=tmp_path)
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "runs/signs-md-6x9/last.safetensors").step == 6


def test_crops_for_a_segmenter_are_named_with_the_error_and_fit_the_proposed_export(tmp_path: Path) -> None:
    write_masks(tmp_path / "cells")
    flags = ("--task", "segment", "--crop", "3", "--steps", "2", "--hidden", "3", "-o", "run")
    done = mdlstm("train", "--data", "cells", *flags, cwd=tmp_path)
    assert done.code == 0, done.err
    best = next(line for line in done.err.splitlines() if line.startswith("best weights"))
    assert "cropped to 3:" in best
    for command in (("report", "run"), ("info", "run"), ("report", "run", "--data", "cells")):
        following = mdlstm(*command, cwd=tmp_path).err.splitlines()[-1]
        assert following == done.err.splitlines()[-1] == "next: mdlstm export run --form scan"
    cells = [m.cell for m in load_checkpoint(tmp_path / "run/best.safetensors").network().modules()
             if isinstance(m, MDLSTM)]  # fmt: skip
    assert cells == ["stable"]  # whose state does not grow on whole images


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data": "signs"}, "data needs task"),
        ({"data": "signs", "task": "digits"}, "'digits'"),
        ({"task": "classify"}, "'classify' is a kind of data.*diagonal"),
        ({"task": "digits", "model": "raster"}, r"'raster'.*grid"),
    ],
)
def test_impossible_tasks_are_errors(flags: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure(flags)


def test_defaults_omit_settings_that_the_network_does_not_have() -> None:
    config = default_config("grid", "folder", model="snake")
    assert (config.model, config.directions) == ("snake", "")
    assert default_config("grid", "folder").directions == "all"
    assert default_config("classify", "x.npz").augment == 0
    assert default_config("classify", "folder").augment > 0
