"""User data are read when they are needed, in batches of similar samples, and found again later."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.training import resume, run_in
from helpers.user_data import RNG, read, write_arrays, write_classes, write_image, write_masks, write_texts
from PIL import Image

from mdlstm_tk.data import Kind
from mdlstm_tk.errors import InputError
from mdlstm_tk.report import write_report
from mdlstm_tk.training import (
    Run,
    TrainConfig,
    build,
    default_config,
    load_checkpoint,
    new_job,
    resume_job,
    train,
)
from mdlstm_tk.training.memory import LIBRARY_BYTES, estimate_memory
from mdlstm_tk.training.networks import fit_config
from mdlstm_tk.training.tasks import make_task

QUICK = {"steps": 6, "hidden": 3, "batch_size": 4, "evaluate_every": 3, "validation": 0.25}


def write_mixed(path: Path, count: int = 24) -> Path:
    """Write images of two classes, of many sizes."""
    for k in range(count):
        extents = (4 + k % 5, 5 + 3 * (k % 4))
        write_image(path / "ab"[k % 2] / f"{k}.png", RNG.integers(0, 256, extents))
    return path


def quick(path: Path, kind: Kind, **settings: object) -> TrainConfig:
    return default_config(kind, str(path)).updated({**QUICK, **settings}, "test")


def test_batches_hold_similar_samples_and_epochs_hold_all(tmp_path: Path) -> None:
    widths = np.random.default_rng(0).permutation(np.arange(4, 68))
    x = np.arange(64, dtype=np.float32)[:, None, None] * np.ones((1, 3, 67), np.float32)
    sizes = np.stack([np.full(64, 3), widths], axis=1)
    np.savez(tmp_path / "lines.npz", x=x, y=np.array(["a", "b"] * 32), sizes=sizes)
    task = read(tmp_path / "lines.npz", "transcribe", validation=0.0)
    batches = [task.batch(5, step, 4) for step in range(32)]
    seen = [[int(sample) for sample in batch.x[:, 0, 0, 0]] for batch in batches]
    for epoch in (seen[:16], seen[16:]):
        assert sorted(sample for batch in epoch for sample in batch) == list(range(64))
    assert seen[:16] != seen[16:]
    padding = [
        1 - batch.sizes[:, 1].mean() / batch.x.shape[2] for batch in batches if batch.sizes is not None
    ]
    assert np.mean(padding) < 0.25  # batches in random order have about 0.4
    shard = task.batch(5, 3, 4, shard=slice(2, 4))
    assert [int(sample) for sample in shard.x[:, 0, 0, 0]] == seen[3][2:]


def test_what_is_kept_in_memory_is_bounded_and_changes_nothing(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    tasks = {count: read(tmp_path, "classify", cache_bytes=count) for count in (0, 500, 10**6)}
    for step in range(12):
        batches = [task.batch(0, step, 4) for task in tasks.values()]
        assert all(np.array_equal(batch.x, batches[0].x) for batch in batches)
    for count, task in tasks.items():
        kept = sum(x.nbytes for x, _ in task.sets["train"]._kept.values())  # type: ignore[attr-defined]
        assert kept <= count
    assert len(tasks[0].sets["train"]._kept) == 0  # type: ignore[attr-defined]
    assert len(tasks[10**6].sets["train"]._kept) == 18  # type: ignore[attr-defined]


def test_a_file_that_vanishes_during_training_is_named(tmp_path: Path) -> None:
    task = read(write_classes(tmp_path, {"a": 2, "b": 2}), "classify", validation=0.0)
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(InputError, match=r"a/1\.png"):
        list(task.sets["train"])


def test_large_arrays_stay_on_disk(tmp_path: Path) -> None:
    x = RNG.random((9, 700, 700)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(9) % 2)
    task = read(tmp_path / "x.npz", "classify", validation=0.0)
    stored = task.sets["train"].samples[0].read_x.args[0]  # type: ignore[attr-defined]
    assert isinstance(stored.base, np.memmap)
    for (sample, _), expected in zip(task.sets["train"], x, strict=True):
        assert np.array_equal(sample[..., 0], expected)


def test_crops_are_random_in_training_and_central_in_validation(tmp_path: Path) -> None:
    index = np.arange(70).reshape(7, 10)
    for k in range(8):
        write_image(tmp_path / f"images/{k}.png", index)
        write_image(tmp_path / f"masks/{k}.png", index)
    task = read(tmp_path, "segment", crop=(3, 4))
    assert (task.spec.size, task.has_mixed_sizes) == ((3, 4), True)
    batch = task.batch(0, 0, 6)
    assert np.array_equal(np.rint(255 * batch.x[..., 0]), batch.y)
    assert len({int(y[0, 0]) for y in batch.y}) > 1
    assert np.array_equal(batch.y, task.batch(0, 0, 6).y)
    assert not np.array_equal(batch.y, task.batch(0, 1, 6).y)
    assert (task.batch(0, 0, 2, "validation").y == index[2:5, 3:7]).all()


@pytest.mark.parametrize("settings", [{}, {"crop": "5x6"}, {"cache": 0, "workers": 2}])
def test_training_on_mixed_sizes_resumes_to_the_same_bytes(
    settings: dict[str, object], tmp_path: Path
) -> None:
    config = quick(write_mixed(tmp_path / "data"), "classify", augment=1.0, **settings)
    whole = run_in(tmp_path / "whole", config)
    parts = run_in(tmp_path / "parts", replace(config, steps=3))
    resume(parts, steps=config.steps)
    assert parts.metrics.read_bytes() == whole.metrics.read_bytes()
    assert parts.last.read_bytes() == whole.last.read_bytes()


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("transcribe", {"crop": "4"}, "--resize"),
        ("classify", {"size": "9"}, "resize=9"),
        ("classify", {"resize": "9"}, "arrays"),
    ],
)
def test_sizes_that_cannot_be_honoured_are_refused(
    kind: Kind, settings: dict[str, object], named: str, tmp_path: Path
) -> None:
    path = write_texts(tmp_path / "t") if kind == "transcribe" else write_arrays(tmp_path / "x.npz", kind)
    with pytest.raises(InputError, match=named):
        make_task(quick(path, kind, **settings))


def test_built_in_tasks_take_neither_resize_nor_crop() -> None:
    for key in ("resize", "crop"):
        with pytest.raises(InputError, match=f"{key} goes with data"):
            make_task(TrainConfig().updated({key: "8"}, "test"))


def write_photos(path: Path, extents: tuple[int, int]) -> Path:
    for k in range(4):
        write_image(path / "ab"[k % 2] / f"{k}.png", RNG.integers(0, 256, extents))
    return path


def test_large_images_get_windows(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", (240, 320))
    config = default_config("classify", str(photos))
    assert fit_config(config, make_task(config)).windows == "8x8"
    assert fit_config(replace(config, windows="4"), make_task(config)).windows == "4"
    small = default_config("classify", str(write_photos(tmp_path / "small", (30, 40))))
    assert fit_config(small, make_task(small)).windows == ""
    lines = tmp_path / "lines"
    write_image(lines / "0.png", RNG.integers(0, 256, (128, 600)))
    (lines / "labels.tsv").write_text("0.png\t" + "ab" * 70 + "\n")
    config = default_config("transcribe", str(lines)).updated({"validation": 0}, "test")
    network, task = build(config)
    columns = network.network.stride[1]  # type: ignore[union-attr, index]
    assert (fit_config(config, task).windows, columns) == ("8x4,2x1", 4)  # 150 steps for 140 characters


def test_images_that_are_kept_count_as_memory(tmp_path: Path) -> None:
    config = quick(write_photos(tmp_path / "photos", (32, 32)), "classify")
    task = make_task(config)
    one, two = (estimate_memory(replace(config, workers=count), task, 8) for count in (0, 2))
    assert one is not None and two is not None
    assert one.cache == LIBRARY_BYTES + 4 * 32 * 32
    assert two.cache == LIBRARY_BYTES + 2 * 4 * 32 * 32 + 4 * 8 * 32 * 32 * 4
    assert one.batch > 8 * 32 * 32 * 4 * 7 * 3 * 4  # gates and c of four directions of three units


def test_data_are_found_from_another_folder_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    write_masks(home / "data")
    monkeypatch.chdir(home)
    train(new_job(quick(Path("data"), "segment", steps=3), Path("runs/r")))
    config = load_checkpoint(home / "runs/r/last.safetensors").config
    assert (config.data, config.data_from_run) == (str(home / "data"), "../../data")
    monkeypatch.chdir(tmp_path)
    train(resume_job(home / "runs/r", {"steps": 4}))
    folder = Path(shutil.move(home, tmp_path / "moved")) / "runs/r"
    train(resume_job(folder, {"steps": 5}))
    assert load_checkpoint(folder / "last.safetensors").config.data == str(tmp_path / "moved/data")
    with pytest.raises(InputError, match=r"not at dat;.*--data"):
        resume_job(folder, {"steps": 6, "data": "dat"})
    elsewhere = shutil.move(tmp_path / "moved/data", tmp_path / "elsewhere")
    with pytest.raises(InputError, match="--data"):
        resume_job(folder, {"steps": 6})
    messages: list[str] = []
    write_report(Run(folder), on_message=messages.append)
    assert any("--data" in message and str(tmp_path) in message for message in messages)
    messages.clear()
    write_report(Run(folder), on_message=messages.append, data=str(elsewhere))
    assert not any("--data" in message for message in messages)
    train(resume_job(folder, {"steps": 6, "data": "elsewhere"}))


def test_a_run_is_not_continued_on_other_data(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", quick(write_classes(tmp_path / "ab", {"a": 4, "b": 4}), "classify"))
    other = write_classes(tmp_path / "abc", {"a": 4, "b": 4, "c": 4})
    with pytest.raises(InputError, match=r"abc.*new classes 'c'"):
        resume_job(run.folder, {"steps": 9, "data": str(other)})


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
