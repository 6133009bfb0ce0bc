"""Arrays in `.npz` files, of images and of volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.refusal import refused
from helpers.user_data import RNG, read, write_arrays

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data import UNLABELLED, DatasetTask, DiagonalTask, Task
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_names
from mdlstm_tk.training import TrainConfig, build, make_task, register_task, tasks
from mdlstm_tk.training.networks import windows_of


@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "transcribe"])
def test_arrays_are_read_unchanged(tmp_path: Path, kind: str) -> None:
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


VOLUMES = RNG.random((8, 3, 4, 5)).astype(np.float32)
MASKS = (VOLUMES > 0.5).astype(int)
AXES = {  # arrays, kind; expected size, channels
    "five axes": ({"x": VOLUMES[..., None], "y": VOLUMES}, "grid", (3, 4, 5), 1),
    "five axes in both": ({"x": VOLUMES[..., None], "y": VOLUMES[..., None]}, "grid", (3, 4, 5), 1),
    "masks of volumes": ({"x": VOLUMES, "y": MASKS}, "segment", (3, 4, 5), 1),
    "classes of volumes": ({"x": VOLUMES, "y": np.arange(8) % 2, "ndim": 3}, "classify", (3, 4, 5), 1),
    "sizes": ({"x": VOLUMES, "y": VOLUMES, "sizes": [[3, 4, 5], [2, 3, 4]] * 4}, "grid", (3, 4, 5), 1),
    "masks of volumes with a last axis": (
        {"x": VOLUMES[..., None], "y": MASKS[..., None]},
        "segment",
        (3, 4, 5),
        1,
    ),
    "a last axis in both": ({"x": VOLUMES[..., :1], "y": VOLUMES[..., :1]}, "grid", (3, 4), 1),
    "masks with a last axis": ({"x": VOLUMES[..., :1], "y": MASKS[..., :1]}, "segment", (3, 4), 1),
    "masks of channels": ({"x": VOLUMES, "y": MASKS[..., :1]}, "segment", (3, 4), 5),
    "images with channels": ({"x": VOLUMES, "y": np.arange(8) % 2}, "classify", (3, 4), 5),
}


@pytest.mark.parametrize("case", AXES)
def test_volumes_are_told_from_images_with_channels(case: str, tmp_path: Path) -> None:
    arrays, kind, size, channels = AXES[case]
    np.savez(tmp_path / "volumes.npz", **arrays)
    task = read(tmp_path / "volumes.npz", kind, validation=0.25)  # type: ignore[arg-type]
    assert (task.spec.size, task.spec.channels, task.skipped) == (size, channels, [])
    assert any("ndim=3" in line for line in task.summary) == (channels == 5)
    batch = task.batch(0, 0, 6)
    assert batch.x.shape == (6, *size, channels)
    assert (batch.sizes is not None) == (case == "sizes")
    if len(size) == 3:
        cropped = read(tmp_path / "volumes.npz", kind, crop=(2, 3, 3))  # type: ignore[arg-type]
        assert cropped.batch(0, 0, 6).x.shape == (6, 2, 3, 3, 1)
    with pytest.raises(InputError, match=f"has {5 - len(size)} extents, but samples have {len(size)} axes"):
        read(tmp_path / "volumes.npz", kind, crop=(2, 2, 2)[: 5 - len(size)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "unused"), [("classify", "size"), ("density", "size, y")])
def test_arrays_that_are_not_used_are_named(kind: str, unused: str, tmp_path: Path) -> None:
    x, y = RNG.random((8, 4, 5)), np.arange(8) % 2
    np.savez(tmp_path / "set.npz", x=x, y=y, ndim=2, size=np.full((8, 2), 3))
    summary = read(tmp_path / "set.npz", kind).summary
    assert f"arrays of {tmp_path / 'set.npz'}, left out: {unused}" in summary


def test_large_arrays_stay_on_disk(tmp_path: Path) -> None:
    x = RNG.random((9, 700, 700)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(9) % 2)
    task = read(tmp_path / "x.npz", "classify", validation=0.0)
    stored = task.sets["train"].samples[0].read_x.args[0]  # type: ignore[attr-defined]
    assert isinstance(stored.base, np.memmap)
    for (sample, _), expected in zip(task.sets["train"], x, strict=True):
        assert np.array_equal(sample[..., 0], expected)


def test_hundreds_of_classes_and_unknown_positions_of_arrays(tmp_path: Path) -> None:
    y = np.arange(-1, 299).reshape(3, 10, 10)
    np.savez(tmp_path / "m.npz", x=y, y=y)
    task = read(tmp_path / "m.npz", "segment", validation=0.0)
    assert task.spec.mask_values == tuple(range(299))
    (_, first), *_, (_, last) = task.sets["train"]
    assert (first[0, 0], last[-1, -1]) == (UNLABELLED, 298)


REFUSED = {  # arrays in place of those of `write_arrays`, kind, message
    "objects": ({"x": np.array([{}] * 10)}, "grid", r"x\.npz"),
    "flat x": ({"x": np.ones((10, 4))}, "grid", r"x is float64 \(10, 4\).* with 2 axes of the grid"),
    "complex x": ({"x": np.ones((10, 4, 4), complex)}, "grid", r"x is complex128"),
    "x without samples": ({"x": np.ones((0, 5, 6))}, "grid", r"x is float64 \(0, 5, 6\)"),
    "texts for numbers": ({"y": np.full((10, 5, 6), "a")}, "grid", r"y is <U1 \(10, 5, 6\)"),
    "numbers for classes": ({}, "classify", r"float32 \(10, 5, 6\)"),
    "wrong length of y": ({"y": np.arange(9)}, "classify", r"int64 \(9,\)"),
    "wrong grid of y": ({"y": np.ones((10, 6, 5), int)}, "segment", r"\(10, 6, 5\) for x \(10, 5, 6\)"),
    "several ndim": ({"ndim": [2, 2]}, "grid", r"ndim is \[2, 2\], expected the number of grid axes"),
    "a text for ndim": ({"ndim": "3"}, "grid", "ndim is 3, expected the number of grid axes"),
    "wrong sizes": ({"sizes": [[5, 6]]}, "grid", r"sizes is int64 \(1, 2\), expected integers \(10, 2\)"),
    "masks in colours": (
        {"x": np.ones((10, 5, 6, 3)), "y": np.ones((10, 5, 6, 3), int)},
        "segment",
        r"y is \(10, 5, 6, 3\), which may be .* ndim=3",
    ),
    "one mask value": ({"y": np.ones((10, 5, 6), int)}, "segment", "value 1"),
    "classes beyond int64": (
        {"y": np.full((10, 5, 6), 2**63, np.uint64)},
        "segment",
        "has the class 9223372036854775808, expected classes below",
    ),
    "volumes of texts": ({"x": np.ones((10, 2, 3, 4, 1))}, "transcribe", "needs two"),
    "nothing usable": ({"x": np.full((10, 2, 2), np.nan), "y": np.arange(10)}, "classify", "sample 0.*NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_cannot_be_used_are_one_line(case: str, tmp_path: Path) -> None:
    arrays, kind, message = REFUSED[case]
    path = write_arrays(tmp_path / "x.npz", kind if kind in ("segment", "transcribe") else "grid", **arrays)
    with pytest.raises(InputError, match=message) as refused:
        read(path, kind)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_targets_of_all_splits_have_the_same_channels(tmp_path: Path) -> None:
    for name, channels in (("train", 3), ("val", 1)):
        write_arrays(tmp_path / f"{name}.npz", "grid", y=np.ones((10, 5, 6, channels)))
    refused("y has 1 channel in one split and 3 in another", lambda: read(tmp_path, "grid"))


def test_channels_that_float32_does_not_resolve_are_named(tmp_path: Path) -> None:
    x = np.stack([RNG.random((8, 4, 5)), 1e9 + RNG.random((8, 4, 5)), np.zeros((8, 4, 5))], axis=-1)
    np.savez(tmp_path / "x.npz", x=x, y=1_700_000_000 + np.arange(160).reshape(8, 4, 5) // 4)
    notes = [line for line in read(tmp_path / "x.npz", "grid").summary if " is the same in" in line]
    assert [note.partition(" is the same")[0] for note in notes] == ["x", "y"]
    assert "in channel 1 (about 1e+09); if" in notes[0] and "in channel 0 (about 1.7e+09); if" in notes[1]
    np.savez(tmp_path / "x.npz", x=x[..., :1], y=1e6 + np.arange(160).reshape(8, 4, 5))
    assert not any(" is the same in" in line for line in read(tmp_path / "x.npz", "grid").summary)


@pytest.mark.filterwarnings("error")
def test_single_samples_that_cannot_be_used_are_skipped(tmp_path: Path) -> None:
    x = RNG.random((12, 4, 4))
    x[3, 0, 0] = np.nan
    x[5, 0] = 1e300, -1e300, 0, 0
    np.savez(tmp_path / "n.npz", x=x, y=np.arange(12), sizes=[[4, 4]] * 11 + [[5, 4]])
    skipped = read(tmp_path / "n.npz", "classify").skipped
    assert [line.split(":")[0] for line in skipped] == ["sample 3", "sample 5", "sample 11"]


@pytest.mark.parametrize("kind", [kind for kind in kind_names() if kind != "baselines"])  # has no arrays
def test_copies_and_copies_with_another_target_are_counted_and_named(tmp_path: Path, kind: str) -> None:
    x = np.random.default_rng(0).random((4, 6, 6))
    targets = {"classify": [*"abcd"], "transcribe": [*"abcd"], "segment": x > 0.5}
    targets |= {"regress": [1, 2, 3, 4], "tag": [[1, 1], [0, 1], [1, 0], [0, 0]]}
    y = np.asarray(targets.get(kind, x))
    order = [0, 1, 2, 3, 2, 1]
    np.savez(
        tmp_path / "x.npz", x=x[order], y=np.concatenate([y[order[:5]], y[:1]])
    )  # the last one is wrong
    summary = "; ".join(read(tmp_path / "x.npz", kind, validation=0.0).summary)
    named = "first 'sample 5' of 'sample 1'"
    if kind == "density":  # which has no targets
        assert "2 samples are copies of one; first 'sample 4' of 'sample 2'" in summary
    else:
        assert "1 sample is a copy of one; first 'sample 4' of 'sample 2'" in summary
        assert f"1 sample is a copy of one with another target; {named}" in summary


def test_a_run_on_sequences_trains_again_with_its_own_settings(tmp_path: Path) -> None:
    x = np.ones((4, 9, 2))
    np.savez(tmp_path / "x.npz", x=x, y=x, ndim=1)
    config = TrainConfig(task="grid", data=str(tmp_path / "x.npz"))
    assert make_task(replace(config, size=format_size(make_task(config).spec.size))).spec.size == (9,)
    refused("size 8 is not the size", lambda: make_task(replace(config, size="8")))


@pytest.mark.parametrize("size", [(9,), (5, 9), (3, 5, 9)], ids=str)
def test_one_extent_of_a_setting_stands_for_all_axes_of_the_data(
    size: tuple[int, ...], tmp_path: Path
) -> None:
    x = RNG.random((4, *size))
    np.savez(tmp_path / "x.npz", x=x, y=x > 0.5, ndim=len(size))
    config = TrainConfig(task="segment", data=str(tmp_path / "x.npz"), hidden=2, windows="2")
    windows = (2,) * len(size)
    network, task = build(config)
    assert windows_of(config, task.spec) == (windows,)
    assert network(torch.zeros(1, *size, 1)).shape == (1, *size, 2)
    assert build(replace(config, windows=format_size(windows)))[1].spec.size == size
    assert build(replace(config, crop="3"))[1].spec.size == (3,) * len(size)
    refused("each of windows must be one extent, or", lambda: build(replace(config, windows="2x2x2x2")))
    refused("crop", lambda: build(replace(config, crop="2x2x2x2")))


def test_long_sequences_get_windows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((2, 5000))
    np.savez(tmp_path / "x.npz", x=x, y=x > 0.5, ndim=1)
    network, task = build(TrainConfig(task="segment", data=str(tmp_path / "x.npz"), hidden=1))
    assert (task.spec.size, network(torch.zeros(1, 9, 1)).shape) == ((5000,), (1, 9, 2))


def test_the_positions_of_a_task_are_counted_along_its_own_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_registered", {})

    @register_task("a-sequence", kind="grid")
    def make(config: TrainConfig) -> Task:
        return DatasetTask(replace(diagonal, size=config.grid[:1]), {"train": [(x, x)]})

    x, diagonal = np.zeros((5000, 1), np.float32), DiagonalTask((3, 3)).spec
    config = TrainConfig(task="a-sequence", size="5000")
    assert make_task(config).spec.size == (5000,)
    refused("at most", lambda: make_task(replace(config, size="5000x5000")))
    refused("at most", lambda: make_task(replace(config, task="diagonal")))
