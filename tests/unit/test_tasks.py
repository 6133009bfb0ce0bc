"""The built-in tasks: their data is what it should be, and every batch is reproducible."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from helpers.checkout import ROOT

from mdlstm_tk.data import (
    SPLITS,
    UNLABELLED,
    Batch,
    DatasetTask,
    DiagonalTask,
    Digits,
    DigitStrings,
    GaussianField,
    Task,
    TaskSpec,
    Textures,
    batches,
)
from mdlstm_tk.data.augmentation import distort
from mdlstm_tk.data.builtin.fashion import FOLDER
from mdlstm_tk.data.builtin.textures import COLUMNS
from mdlstm_tk.data.collate import collate
from mdlstm_tk.data.metrics import METRICS
from mdlstm_tk.data.sampling import make_rng, shuffled_indices, stratified_mask
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import TrainConfig, make_task
from mdlstm_tk.training.tasks import BUILT_IN


@pytest.mark.parametrize("size", [(8, 8), (3, 3), (5, 9), (32, 7)])
def test_diagonal_samples_are_two_ones_in_noise_and_the_target_is_shifted_left(
    size: tuple[int, int],
) -> None:
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


def test_the_second_one_appears_at_all_positions() -> None:
    batch = DiagonalTask((5, 6)).batch(seed=0, step=0, count=2000)
    assert {tuple(position) for position in batch.second} == {
        (r + 1, s) for r in (1, 2, 3) for s in (1, 2, 3, 4)
    }


def test_diagonal_batches_depend_on_seed_step_and_split() -> None:
    task = DiagonalTask((8, 8))
    first = task.batch(1, 2, 4).x
    assert (task.batch(1, 2, 4).x == first).all()
    for other in (task.batch(2, 2, 4), task.batch(1, 3, 4), task.batch(1, 2, 4, "validation")):
        assert not np.array_equal(other.x, first)


def test_the_initial_prediction_is_the_mean_of_the_targets() -> None:
    task = DiagonalTask((8, 12))
    assert task.batch(0, 0, 4000).y.mean() == pytest.approx(task.spec.target_mean[0], rel=0.01)


@pytest.mark.parametrize("size", [(2, 8), (8, 2), (1, 1), (8,), (8, 8, 8)])
def test_sizes_too_small_for_the_diagonal_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="3x3"):
        DiagonalTask(size)


def make(name: str) -> Task:
    """A built-in task, with grids of 20×33, or 5×6, if it generates them."""
    if name == "fashion" and not FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    size = "5x6" if name == "ising" else "20x33"
    return make_task(TrainConfig(task=name, size=size, augment=1.0))


@pytest.mark.parametrize("name", BUILT_IN)
def test_batches_are_reproducible_whole_and_in_shards(name: str) -> None:
    task = make(name)
    for split in SPLITS:
        whole = task.batch(3, 2, 8, split)
        again = make(name).batch(3, 2, 8, split)
        assert (whole.x == again.x).all()
        assert (whole.y == again.y).all()
        for shard in (slice(0, 4), slice(4, 8)):
            part = task.batch(3, 2, 8, split, shard)
            extents = tuple(slice(extent) for extent in part.x.shape[1:])
            assert (part.x == whole.x[shard][(slice(None), *extents)]).all()
            assert len(part.y) == 4
    train = task.batch(3, 2, 8).x
    for other in (task.batch(4, 2, 8).x, task.batch(3, 1, 8).x, task.batch(3, 2, 8, "test").x):
        assert train.shape != other.shape or not np.array_equal(train, other)


@pytest.mark.parametrize("name", BUILT_IN)
def test_batches_match_the_task_spec(name: str) -> None:
    task = make(name)
    spec, batch = task.spec, task.batch(0, 0, 16)
    assert spec.name == task.name == name
    assert spec.kind == task.kind
    assert batch.x.dtype == np.float32
    assert batch.x.shape[-1] == spec.channels
    assert all(extent <= largest for extent, largest in zip(batch.x.shape[1:-1], spec.size, strict=True))
    if spec.kind == "density":
        levels = batch.x * (max(spec.outputs, 2) - 1)
        assert set(np.unique(levels)) == set(range(max(spec.outputs, 2)))
    elif spec.kind != "grid":
        assert UNLABELLED <= batch.y.min() <= batch.y.max() <= spec.outputs - 1
        assert len(spec.classes) == spec.outputs - (spec.kind == "transcribe")
    test_batches = list(batches(task, "test", 0, 50))
    assert sum(len(batch.x) for batch in test_batches) == task.count("test") > 0
    assert all(len(batch.x) <= 50 for batch in test_batches)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_spec_survives_json(name: str) -> None:
    spec = make(name).spec
    assert TaskSpec.from_json(json.loads(json.dumps(spec.__dict__))) == spec


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_task_is_documented(name: str) -> None:
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text, f"docs/training.md needs a row for '{name}' in its table of built-in tasks"


@pytest.mark.parametrize("name", BUILT_IN)
def test_metrics_are_zero_for_the_targets_and_positive_otherwise(name: str) -> None:
    task = make(name)
    batch = task.batch(0, 0, 5, "test")
    perfect = batch.y
    if task.kind in ("classify", "segment"):
        perfect = np.eye(task.outputs, dtype=np.float32)[batch.y]
    elif task.kind == "transcribe":  # each character, then a blank
        spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(len(batch.y), -1)
        perfect = np.eye(task.outputs, dtype=np.float32)[spaced]
    elif task.kind == "density":  # log-probabilities
        perfect = np.zeros_like(batch.x)
    assert all(total == 0 for total, _ in task.measure(perfect, batch).values())
    numbers = {"grid": perfect + 1, "density": perfect - 1}
    wrong = numbers.get(task.kind, np.roll(perfect, 1, axis=-1))
    assert all(total > 0 and count > 0 for total, count in task.measure(wrong, batch).values())


@pytest.mark.parametrize(
    ("predicted", "target", "edits"),
    [
        ("abc", "abc", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
    ],
)
def test_character_error_is_the_edit_distance(predicted: str, target: str, edits: int) -> None:
    alphabet = tuple("abcdefghijklmnopqrstuvwxyz")
    spec = TaskSpec("words", "transcribe", 1, 27, (1, 20), alphabet)
    path = [0, *(k for c in predicted for k in (1 + alphabet.index(c), 0))]  # a blank after each character
    y = np.array([[1 + alphabet.index(c) for c in target] + [0]])
    metrics = METRICS["transcribe"](
        np.eye(27, dtype=np.float32)[path][None], Batch(np.zeros((1, 1, 20, 1), np.float32), y), spec
    )
    assert metrics == {"character_error": (edits, len(target)), "string_error": (edits > 0, 1)}


def test_squared_error_leaves_out_padding() -> None:
    x = np.zeros((2, 2, 3, 1), np.float32)
    batch = Batch(x, x + 1, np.array([[2, 3], [1, 2]]))
    spec = TaskSpec("numbers", "grid", 1, 1, (2, 3))
    assert METRICS["grid"](x, batch, spec) == {"mse": (8.0, 8)}


def shuffle_in_fours(seed: int) -> list[int]:
    """Draw four epochs of ten samples, four draws per call."""
    steps = range(0, 40, 4)
    return [index for start in steps for index in shuffled_indices(seed, 10, range(start, start + 4))]


def test_each_epoch_has_every_sample_once_and_an_order_of_its_own() -> None:
    order = shuffle_in_fours(seed=7)
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order != shuffle_in_fours(seed=8)


def test_stratified_mask_selects_a_share_of_each_group() -> None:
    groups = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    mask = stratified_mask(groups, 0.2, seed=0)
    counts = {name: int(mask[[group == name for group in groups]].sum()) for name in "abcd"}
    assert counts == {"a": 10, "b": 2, "c": 1, "d": 0}
    assert not stratified_mask(groups, 0.0, seed=0).any()
    assert (stratified_mask(groups, 0.2, seed=1) != mask).any()


@pytest.mark.parametrize("seed", [0, 5])
def test_no_digit_is_in_two_splits(seed: int) -> None:
    task = Digits(seed, validation=0.1)
    images = {split: {x.tobytes() for x, _ in task.sets[split]} for split in SPLITS}
    assert len(task.sets["test"]) == pytest.approx(0.2 * 1797, abs=5)
    assert not images["test"] & (images["train"] | images["validation"])
    assert not images["train"] & images["validation"]
    strings = DigitStrings(seed).indices
    assert not set(strings["test"]) & (set(strings["train"]) | set(strings["validation"]))
    assert sum(map(len, strings.values())) == 1797


def test_digits_in_black_and_white_are_those_in_grey_above_a_threshold_and_the_same_in_all_runs() -> None:
    binary, grey = make("digits-binary"), make("digits-grey")
    dark, light = [], []
    for split in SPLITS:
        white, levels = (
            task.batch(0, 0, 400, split).x > 0.5 if task is binary else task.batch(0, 0, 400, split).x
            for task in (binary, grey)
        )
        dark += [image[~mask].max() for image, mask in zip(levels, white, strict=True)]
        light += [image[mask].min() for image, mask in zip(levels, white, strict=True)]
    assert (np.array(dark) < np.array(light)).all()  # each image has a threshold,
    assert max(dark) < 0.7 + 1 / 16
    assert min(light) > 0.3 - 1 / 16
    assert max(dark) > 0.6 > 0.4 > min(light)  # and others have other thresholds
    other = make_task(TrainConfig(task="digits-binary", seed=1))
    images = [
        {image.tobytes() for split in SPLITS for image in task.batch(0, 0, task.count(split), split).x}
        for task in (binary, other)
    ]
    assert images[0] == images[1]


def test_digit_strings_match_their_labels() -> None:
    task = DigitStrings(seed=0)
    batch = task.batch(0, 0, 64, "test")
    assert batch.sizes is not None
    lengths = (batch.y > 0).sum(axis=1)
    assert set(lengths) == set(range(3, 9))
    assert ((batch.sizes[:, 1] >= 8 * lengths) & (batch.sizes[:, 1] <= 11 * lengths)).all()
    test_digits = set(task.digits[task.indices["test"]])
    for x, row, width in zip(batch.x, batch.y, batch.sizes[:, 1], strict=True):
        assert (x[:, width:] == 0).all()
        assert {k - 1 for k in row[row > 0]} <= test_digits


def test_splits_of_the_photographs_do_not_overlap() -> None:
    task = Textures((64, 64))
    bounds = sorted(COLUMNS.values())
    assert all(a[1] <= b[0] for a, b in pairwise(bounds))
    for surface in range(len(task.spec.classes)):
        whole = np.concatenate([task.photographs[split][surface] for split in SPLITS], axis=1)
        assert abs(whole.mean()) < 0.2
    batch = task.batch(0, 0, 40, "test")
    assert {len(np.unique(y)) for y in batch.y} == {2, 3, 4}
    assert set(np.unique(batch.y)) == set(range(6))


def test_gaussian_fields_have_power_spectrum_k_to_the_minus_4() -> None:
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
def test_distortion_moves_image_and_mask_together(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, shape[:2])
    image = np.repeat(mask[..., None], shape[2], axis=2).astype(np.float32)
    moved, target = distort(image, mask, make_rng(3), 1.0, with_target=True)
    assert moved.shape == shape
    assert moved.dtype == np.float32
    assert set(np.unique(target)) <= set(np.unique(mask))
    assert np.abs(moved[..., 0] - target).mean() < 1
    again, _ = distort(image, mask, make_rng(3), 1.0, with_target=True)
    assert (moved == again).all()
    if min(shape[:2]) > 1:
        assert (moved != image).any()
    still, _ = distort(image, mask, make_rng(3), 0.0, with_target=True)
    np.testing.assert_allclose(still, image, atol=1e-5)


def test_distortion_keeps_a_central_blob_near_the_centre() -> None:
    image = np.zeros((32, 32, 1), dtype=np.float32)
    image[14:18, 14:18] = 1
    rows = np.arange(32)[:, None, None]
    for seed in range(20):
        moved, _ = distort(image, None, make_rng(seed), 1.0, with_target=False)
        assert abs((moved * rows).sum() / moved.sum() - 15.5) < 5


def test_collate_pads_samples_of_different_extents() -> None:
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


def test_each_draw_of_a_sample_is_distorted_differently() -> None:
    image = make_rng(0).random((8, 8, 1)).astype(np.float32)
    spec = TaskSpec("one", "classify", 1, 1, (8, 8), ("a",))
    task = DatasetTask(spec, {"train": [(image, 0)], "validation": [(image, 0)]}, augment=1.0)
    seen = [x.tobytes() for step in range(3) for x in task.batch(0, step, 2).x]
    assert len(set(seen)) == 6
    assert (task.batch(0, 0, 2, "validation").x[0] == image).all()
