"""Tasks: the random diagonal is exactly the seed's, and any batch of any task can be made again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from mdlstm_tk.data import (
    UNLABELLED,
    DiagonalTask,
    Digits,
    DigitStrings,
    GaussianField,
    Task,
    Textures,
    batches,
)
from mdlstm_tk.data.augment import distort
from mdlstm_tk.data.base import STREAMS, SampleTask, TaskSpec, collate, generator, shuffled, stratified
from mdlstm_tk.data.textures import BOUNDS
from mdlstm_tk.errors import InputError


@pytest.mark.parametrize("size", [(8, 8), (3, 3), (5, 9), (32, 7)])
def test_two_ones_on_a_diagonal_in_noise_and_the_target_shifted_left(size: tuple[int, int]) -> None:
    height, width = size
    batch = DiagonalTask(size).batch(seed=3, step=7, count=200)
    assert batch.x.shape == batch.y.shape == (200, height, width, 1)
    assert (batch.y == np.roll(batch.x, -1, axis=2)).all()
    for x, y, (row, column) in zip(batch.x[..., 0], batch.y[..., 0], batch.second, strict=True):
        ones = np.argwhere(x == 1)
        assert len(ones) == 2
        (r, s), (below, right) = ones
        assert (below, right) == (r + 1, s + 1)
        assert 1 <= r < height - 1
        assert 1 <= s < width - 1
        assert (row, column) == (r + 1, s)
        assert y[row, column] == 1
        noise = x[x != 1]
        assert noise.min() >= 0
        assert noise.max() < 0.1


def test_all_places_come_up() -> None:
    batch = DiagonalTask((5, 6)).batch(seed=0, step=0, count=2000)
    assert {tuple(place) for place in batch.second} == {(r + 1, s) for r in (1, 2, 3) for s in (1, 2, 3, 4)}


def test_the_numbers_of_a_batch_make_it_again_and_differ_otherwise() -> None:
    task = DiagonalTask((8, 8))
    first = task.batch(1, 2, 4).x
    assert (task.batch(1, 2, 4).x == first).all()
    for other in (task.batch(2, 2, 4), task.batch(1, 3, 4), task.batch(1, 2, 4, "validation")):
        assert not np.array_equal(other.x, first)


def test_the_base_rate_is_the_mean_of_targets() -> None:
    task = DiagonalTask((8, 12))
    assert task.batch(0, 0, 4000).y.mean() == pytest.approx(task.spec.base_rate, rel=0.01)


@pytest.mark.parametrize("size", [(2, 8), (8, 2), (1, 1), (8,), (8, 8, 8)])
def test_sizes_without_room_for_the_diagonal_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 3x3, got"):
        DiagonalTask(size)


TASKS: dict[str, Callable[[], Task]] = {
    "diagonal": lambda: DiagonalTask((5, 8)),
    "digits": lambda: Digits(seed=0, validation=0.1, augment=1.0),
    "digit-strings": lambda: DigitStrings(seed=0, validation=0.1, augment=1.0),
    "gaussian-field": lambda: GaussianField((6, 9)),
    "textures": lambda: Textures((20, 33), augment=1.0),
}


@pytest.mark.parametrize("name", TASKS)
def test_any_batch_can_be_made_again_in_parts_and_differs_otherwise(name: str) -> None:
    task = TASKS[name]()
    for split in STREAMS:
        whole = task.batch(3, 2, 8, split)
        again = TASKS[name]().batch(3, 2, 8, split)
        assert (whole.x == again.x).all()
        assert (whole.y == again.y).all()
        for part in (slice(0, 4), slice(4, 8)):
            piece = task.batch(3, 2, 8, split, part)
            extents = tuple(slice(extent) for extent in piece.x.shape[1:])
            assert (piece.x == whole.x[part][(slice(None), *extents)]).all()
            assert len(piece.y) == 4
    train = task.batch(3, 2, 8).x
    for other in (task.batch(4, 2, 8).x, task.batch(3, 1, 8).x, task.batch(3, 2, 8, "test").x):
        assert train.shape != other.shape or not np.array_equal(train, other)


@pytest.mark.parametrize("name", TASKS)
def test_facts_are_what_batches_have(name: str) -> None:
    task = TASKS[name]()
    spec, batch = task.spec, task.batch(0, 0, 16)
    assert spec.name == task.name == name
    assert spec.kind == task.kind
    assert batch.x.dtype == np.float32
    assert batch.x.shape[-1] == spec.channels
    assert all(extent <= most for extent, most in zip(batch.x.shape[1:-1], spec.size, strict=True))
    if spec.kind != "grid":
        most = spec.outputs - 1
        assert UNLABELLED <= batch.y.min() <= batch.y.max() <= most
        assert len(spec.classes) == spec.outputs - (spec.kind == "transcribe")
    judged = list(batches(task, "test", 0, 50))
    assert sum(len(batch.x) for batch in judged) == task.count("test") > 0
    assert all(len(batch.x) <= 50 for batch in judged)


@pytest.mark.parametrize("name", TASKS)
def test_measures_are_nothing_for_the_truth_and_something_otherwise(name: str) -> None:
    task = TASKS[name]()
    batch = task.batch(0, 0, 5, "test")
    perfect = batch.y
    if task.kind in ("classify", "segment"):
        perfect = np.eye(task.outputs, dtype=np.float32)[batch.y]
    elif task.kind == "transcribe":  # each character, then a blank
        spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(len(batch.y), -1)
        perfect = np.eye(task.outputs, dtype=np.float32)[spaced]
    assert all(total == 0 for total, _ in task.measure(perfect, batch).values())
    wrong = np.roll(perfect, 1, axis=-1) if task.kind != "grid" else perfect + 1
    assert all(total > 0 and count > 0 for total, count in task.measure(wrong, batch).values())


def test_each_sample_comes_once_in_each_reading_and_in_another_order() -> None:
    seen = [shuffled(7, 10, range(start, start + 4)) for start in range(0, 40, 4)]
    order = [index for part in seen for index in part]
    readings = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(reading) == list(range(10)) for reading in readings)
    assert len({tuple(reading) for reading in readings}) == 4
    assert order != [k for start in range(0, 40, 4) for k in shuffled(8, 10, range(start, start + 4))]


def test_a_stratified_share_has_a_share_of_each_group() -> None:
    groups = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    mask = stratified(groups, 0.2, seed=0)
    counts = {name: int(mask[[group == name for group in groups]].sum()) for name in "abcd"}
    assert counts == {"a": 10, "b": 2, "c": 1, "d": 0}
    assert not stratified(groups, 0.0, seed=0).any()
    assert (stratified(groups, 0.2, seed=1) != mask).any()


@pytest.mark.parametrize("seed", [0, 5])
def test_no_digit_is_both_trained_on_and_tested_with(seed: int) -> None:
    task = Digits(seed, validation=0.1)
    images = {split: {x.tobytes() for x, _ in task.sets[split]} for split in STREAMS}
    assert len(task.sets["test"]) == pytest.approx(0.2 * 1797, abs=5)
    assert not images["test"] & (images["train"] | images["validation"])
    assert not images["train"] & images["validation"]
    strings = DigitStrings(seed).split
    assert not set(strings["test"]) & (set(strings["train"]) | set(strings["validation"]))
    assert sum(map(len, strings.values())) == 1797


def test_strings_have_the_digits_that_their_labels_say() -> None:
    task = DigitStrings(seed=0)
    batch = task.batch(0, 0, 64, "test")
    assert batch.sizes is not None
    lengths = (batch.y > 0).sum(axis=1)
    assert set(lengths) == set(range(3, 9))
    assert ((batch.sizes[:, 1] >= 8 * lengths) & (batch.sizes[:, 1] <= 11 * lengths)).all()
    ink = {index: task.images[index].sum() for index in task.split["test"]}
    for x, row, width in zip(batch.x, batch.y, batch.sizes[:, 1], strict=True):
        assert (x[:, width:] == 0).all()
        for k in row[row > 0]:
            assert any(task.digits[index] == k - 1 for index in ink)


def test_the_parts_of_the_photographs_do_not_overlap() -> None:
    task = Textures((64, 64))
    bounds = sorted(BOUNDS.values())
    assert all(a[1] <= b[0] for a, b in pairwise(bounds))
    for surface in range(len(task.spec.classes)):
        widths = [task.parts[split][surface].shape[1] for split in STREAMS]
        joined = np.concatenate([task.parts[split][surface] for split in STREAMS], axis=1)
        assert joined.shape[1] == sum(widths)
        assert abs(joined.mean()) < 0.2
    batch = task.batch(0, 0, 40, "test")
    pieces = [len(np.unique(y)) for y in batch.y]
    assert set(pieces) == {2, 3, 4}
    assert set(np.unique(batch.y)) == set(range(6))


def test_fields_have_the_spectrum_that_they_should() -> None:
    for anisotropic in (False, True):
        task = GaussianField((16, 24), anisotropic)
        batch = task.batch(0, 0, 3000)
        assert (batch.y[:, :, :-1] == batch.x[:, :, 1:]).all()
        assert (batch.y[:, :, -1] == 0).all()
        assert batch.x.std() == pytest.approx(task.spec.std[0], rel=0.03)
        power = np.square(np.abs(np.fft.fft2(batch.x[..., 0]))).mean(axis=0)
        assert power[0, 1] / power[0, 2] == pytest.approx(16, rel=0.15)
        assert power[2, 0] / power[4, 0] == pytest.approx(16, rel=0.15)
        diagonal = power[1, 1] / power[0, 1]
        assert diagonal == pytest.approx(0 if anisotropic else 1 / 4, abs=0.04)


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 40, 3), (1, 1, 1), (1, 7, 1)], ids=str)
def test_distortion_moves_image_and_mask_together_and_not_far(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, shape[:2])
    image = np.repeat(mask[..., None], shape[2], axis=2).astype(np.float32)
    moved, target = distort(image, mask, generator(3), 1.0, with_target=True)
    assert moved.shape == shape
    assert moved.dtype == np.float32
    assert set(np.unique(target)) <= set(np.unique(mask))
    assert np.abs(moved[..., 0] - target).mean() < 1
    again, _ = distort(image, mask, generator(3), 1.0, with_target=True)
    assert (moved == again).all()
    if min(shape[:2]) > 1:
        assert (moved != image).any()
    still, _ = distort(image, mask, generator(3), 0.0, with_target=True)
    np.testing.assert_allclose(still, image, atol=1e-5)


def test_a_blob_in_the_middle_stays_about_there() -> None:
    image = np.zeros((32, 32, 1), dtype=np.float32)
    image[14:18, 14:18] = 1
    rows = np.arange(32)[:, None, None]
    for seed in range(20):
        moved, _ = distort(image, None, generator(seed), 1.0, with_target=False)
        assert abs((moved * rows).sum() / moved.sum() - 15.5) < 5


def test_samples_of_different_extents_are_padded_and_say_so() -> None:
    samples = [
        (np.ones((2, 5, 1), np.float32), np.ones((2, 5))),
        (np.ones((3, 1, 1), np.float32), np.ones((3, 1))),
    ]
    batch = collate("segment", samples)
    assert batch.x.shape == (2, 3, 5, 1)
    assert batch.sizes is not None
    assert batch.sizes.tolist() == [[2, 5], [3, 1]]
    assert batch.x.sum() == 13
    assert (batch.y == UNLABELLED).sum() == 30 - 13
    assert collate("segment", samples[:1]).sizes is None


def test_a_sample_is_distorted_anew_each_time_it_comes() -> None:
    image = generator(0).random((8, 8, 1)).astype(np.float32)
    spec = TaskSpec("one", "classify", 1, 1, (8, 8), ("a",))
    task = SampleTask(spec, {"train": [(image, 0)], "validation": [(image, 0)]}, augment=1.0)
    seen = [x.tobytes() for step in range(3) for x in task.batch(0, step, 2).x]
    assert len(set(seen)) == 6
    assert (task.batch(0, 0, 2, "validation").x[0] == image).all()
