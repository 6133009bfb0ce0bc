"""Batches: their order, padding, crops and distortion, and what metrics make of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusal import refused
from helpers.user_data import RNG, read, write_image

from mdlstm_tk.data import UNLABELLED, Batch, DatasetTask, DiagonalTask, Split, TaskSpec, batches
from mdlstm_tk.data.augmentation import distort
from mdlstm_tk.data.sampling import make_rng, stratified_mask
from mdlstm_tk.data.task import collate, read_batch
from mdlstm_tk.errors import InputError


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
    assert {*map(frozenset, seen[:16])} != {*map(frozenset, seen[16:])}
    padding = [
        1 - batch.sizes[:, 1].mean() / batch.x.shape[2] for batch in batches if batch.sizes is not None
    ]
    assert np.mean(padding) < 0.25  # batches in random order have about 0.4
    shard = task.batch(5, 3, 4, shard=slice(2, 4))
    assert [int(sample) for sample in shard.x[:, 0, 0, 0]] == seen[3][2:]


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


def test_stratified_mask_selects_a_share_of_each_group() -> None:
    groups = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    mask = stratified_mask(groups, 0.2, seed=0)
    counts = {name: int(mask[[group == name for group in groups]].sum()) for name in "abcd"}
    assert counts == {"a": 10, "b": 2, "c": 1, "d": 0}


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 40, 3), (1, 1, 1), (1, 7, 1)], ids=str)
def test_distortion_moves_image_and_mask_together(shape: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 4, shape[:2])
    image = np.repeat(mask[..., None], shape[2], axis=2).astype(np.float32)
    moved, target = distort([(image, mask)], [make_rng(3)], 1.0, with_targets=True)[0]
    assert (moved.shape, moved.dtype) == (shape, np.float32)
    assert set(np.unique(target)) <= set(np.unique(mask))
    assert np.abs(moved[..., 0] - target).mean() < 1
    again, _ = distort([(image, mask)], [make_rng(3)], 1.0, with_targets=True)[0]
    assert (moved == again).all()
    if min(shape[:2]) > 1:
        assert (moved != image).any()
    still, _ = distort([(image, mask)], [make_rng(3)], 0.0, with_targets=True)[0]
    np.testing.assert_allclose(still, image, atol=1e-5)


def test_samples_are_distorted_as_if_each_were_alone() -> None:
    """Whatever their number and extents."""
    rng, extents = (
        np.random.default_rng(0),
        [(8, 8), (70, 90), (1, 5), (8, 8), (70, 90), (5, 1), (130, 200)],
    )
    samples = [(rng.random((*e, 1), dtype=np.float32), rng.integers(0, 3, e)) for e in (*extents, *extents)]
    together = distort(samples, [make_rng(k) for k in range(len(samples))], 1.0, with_targets=True)
    for k, (sample, (x, y)) in enumerate(zip(samples, together, strict=True)):
        alone = distort([sample], [make_rng(k)], 1.0, with_targets=True)[0]
        assert (x == alone[0]).all() and (y == alone[1]).all()


def test_distortion_keeps_a_central_blob_near_the_centre() -> None:
    image = np.zeros((32, 32, 1), dtype=np.float32)
    image[14:18, 14:18] = 1
    rows = np.arange(32)[:, None, None]
    for seed in range(20):
        moved, _ = distort([(image, None)], [make_rng(seed)], 1.0, with_targets=False)[0]
        assert abs((moved * rows).sum() / moved.sum() - 15.5) < 5


def test_each_draw_of_a_sample_is_distorted_differently() -> None:
    image = make_rng(0).random((8, 8, 1)).astype(np.float32)
    spec = TaskSpec("one", "classify", 1, 1, (8, 8), ("a",))
    task = DatasetTask(spec, {"train": [(image, 0)], "validation": [(image, 0)]}, augment=1.0)
    seen = [x.tobytes() for step in range(3) for x in task.batch(0, step, 2).x]
    assert len(set(seen)) == 6
    assert (task.batch(0, 0, 2, "validation").x[0] == image).all()


def samples(target: Any, count: int = 4) -> list[tuple[Any, Any]]:
    return [(RNG.random((4, 5, 1), dtype=np.float32), target) for _ in range(count)]


MASKED = np.ma.masked_greater(RNG.random((4, 5, 1)).astype(np.float32), 0.5)
TARGETS: dict[str, Any] = {  # of a sample of 4×5, by kind
    "grid": MASKED,
    "classify": np.ma.masked_equal(1, 1),
    "segment": np.ma.masked_greater(np.ones((4, 5), int), 0),
    "regress": np.ma.array([0.5, 1.0], mask=[True, False]),
    "tag": np.ma.array([0.0, 1.0], mask=[True, False]),
    "transcribe": np.ma.array([1, 2], mask=[True, False]),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_masked_values_are_no_numbers(kind: str) -> None:
    for name, sample in (("y", (MASKED.filled(0), TARGETS[kind])), ("x", (MASKED, 1))):
        with pytest.raises(InputError, match=f"{name} has masked values; fill them"):
            collate(kind, [sample, sample])
    for x, y in ((MASKED[None], np.ones(1)), (MASKED.filled(0)[None], MASKED[None])):
        with pytest.raises(InputError, match="masked values"):
            Batch(x, y)


def test_arrays_of_a_batch_are_as_torch_takes_them() -> None:
    x, y = RNG.random((2, 4, 5, 1), dtype=np.float32), np.arange(2)
    plain = Batch(x, y)
    for other in (x[:, ::-1][:, ::-1].astype(">f4"), np.asfortranarray(x), x[::-1].copy()[::-1]):
        batch = Batch(other, y.astype(">i8")[::-1][::-1])
        assert torch.equal(torch.from_numpy(batch.x), torch.from_numpy(plain.x))
        assert torch.equal(torch.from_numpy(batch.y), torch.from_numpy(plain.y))
    with pytest.raises(InputError, match="y of a batch is of type list, expected an array"):
        Batch(x, [0, 1])  # type: ignore[arg-type]


def test_a_batch_has_as_many_samples_as_are_asked_for() -> None:
    class WithoutShard(DiagonalTask):
        def batch(self, seed: int, step: int, count: int, split: Split = "train", shard: Any = None) -> Any:
            return super().batch(seed, step, count, split)

    task = WithoutShard((4, 4))
    assert len(read_batch(task, 0, 0, 6).x) == 6
    message = "returned 6 samples of train, expected 3: those of `shard` among the 6 of a whole batch"
    with pytest.raises(InputError, match=message):
        read_batch(task, 0, 0, 6, shard=slice(0, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sets": {"train": samples(0), "val": samples(1)}},
            "'val', but splits are train, validation, test",
        ),
        ({"crop": (2,)}, "crop.* must be 2 positive extents"),
        ({"crop": (0, 2)}, "crop.* must be 2 positive extents"),
        ({"augment": float("nan")}, "augment.* must be a number that is not negative"),
        ({"augment": -1.0}, "augment.* must be a number that is not negative"),
    ],
    ids=str,
)
def test_options_of_a_data_set_are_checked(options: dict[str, Any], message: str) -> None:
    spec = TaskSpec("own", "classify", channels=1, outputs=2, size=(4, 5), classes=("no", "yes"))
    with pytest.raises(InputError, match=message):
        DatasetTask(spec, **{"sets": {"train": samples(0)}, **options})


def test_images_are_not_distorted_without_their_targets() -> None:
    for kind, size in (("grid", (2, 2)), ("density", (2, 2, 2))):
        with pytest.raises(InputError, match=r"distorts .*; use 0, got 0\.5"):
            DatasetTask(TaskSpec("numbers", kind, 1, 1, size), {}, augment=0.5)  # type: ignore[arg-type]


def test_collate_pads_samples_of_different_extents() -> None:
    samples = [
        (np.ones((2, 5, 1), np.float32), np.ones((2, 5), int)),
        (np.ones((3, 1, 1), np.float32), np.ones((3, 1), int)),
    ]
    batch = collate("segment", samples)
    assert batch.x.shape == (2, 3, 5, 1)
    assert batch.sizes is not None
    assert batch.sizes.tolist() == [[2, 5], [3, 1]]
    assert batch.x.sum() == 13
    assert (batch.y == UNLABELLED).sum() == 30 - 13
    assert collate("segment", samples[:1]).sizes is None


@pytest.mark.parametrize(
    ("kind", "samples", "message"),
    [
        ("classify", [((8, 8, 3), 0), ((8, 8, 1), 1)], "3 and 1 channels in x"),
        ("classify", [((8, 8, 1), 0), ((8, 1), 1)], "3 and 2 axes"),
        ("grid", [((4, 4, 1), (4, 4, 2)), ((4, 4, 1), (4, 4, 1))], "2 and 1 channels in y"),
        ("regress", [((4, 4, 1), [1.0, 2.0]), ((4, 4, 1), [3.0])], r"\(1,\) and \(2,\)"),
        ("tag", [((4, 4, 1), [1.0, 0.0]), ((4, 4, 1), [1.0])], r"\(1,\) and \(2,\)"),
    ],
)
def test_samples_of_a_batch_differ_in_their_extents_alone(
    kind: str, samples: list[tuple[Any, Any]], message: str
) -> None:
    """In either order: nothing that a sample lacks is made up."""
    ones = [(np.ones(x, np.float32), np.ones(y, np.float32) if kind == "grid" else y) for x, y in samples]
    refused(message, lambda: collate(kind, ones))
    with pytest.raises(InputError):
        collate(kind, ones[::-1])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_is_evaluated_on_each_of_its_samples_once(split: Split) -> None:
    """In order and undistorted, whatever training does with them."""
    extents = np.random.default_rng(0).integers(4, 9, (40, 2))
    samples = [(np.full((h, w, 1), k, np.float32), k % 2) for k, (h, w) in enumerate(extents.tolist())]
    spec = TaskSpec("t", "classify", 1, 2, (8, 8), classes=("a", "b"))
    sets: Any = {"train": samples, "validation": samples}
    for options in ({}, {"augment": 1.0}, {"crop": (4, 4)}, {"augment": 1.0, "crop": (3, 5)}):
        task = DatasetTask(spec, sets, extents=extents, **options)
        seen = list(batches(task, split, 0, 16))
        assert [int(x[0, 0, 0]) for batch in seen for x in batch.x] == list(range(40))
        assert all(np.array_equal(np.unique(x), [k]) for k, x in enumerate(seen[0].x) if not k)
        assert sum(len(batch.x) for batch in batches(task, split, 0, 16, slice(1, None, 2))) == 16
