"""The built-in tasks: their data is what it should be, and every batch is reproducible."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers.refusal import refused

from mdlstm_tk.data import SPLITS, UNLABELLED, DiagonalTask, TaskSpec, batches
from mdlstm_tk.data.builtin import textures
from mdlstm_tk.data.builtin.textures import COLUMNS
from mdlstm_tk.density.fashion import FOLDER
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import TrainConfig, make_task
from mdlstm_tk.training.tasks import BUILT_IN


@pytest.mark.parametrize("size", [(8, 8), (3, 3), (5, 9), (32, 7)])
def test_diagonal_samples_are_two_ones_in_noise_and_targets_are_shifted(size: tuple[int, int]) -> None:
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


def test_the_initial_prediction_is_the_mean_of_the_targets() -> None:
    task = DiagonalTask((8, 12))
    assert task.batch(0, 0, 4000).y.mean() == pytest.approx(task.spec.target_mean[0], rel=0.01)


@pytest.mark.parametrize("size", [(3, 3), (23, 23)])
def test_half_of_the_validation_samples_are_on_larger_grids(size: tuple[int, int]) -> None:
    task = DiagonalTask(size)
    counts: Counter[int] = Counter()
    for batch in batches(task, "validation", 0, task.evaluation_batch):
        counts[batch.x.shape[1]] += len(batch.x)
    assert counts == {size[0]: 64, 4 * size[0]: 64}


@pytest.mark.parametrize("size", [(2, 8), (8, 2), (1, 1), (8,), (8, 8, 8)])
def test_sizes_too_small_for_the_diagonal_are_refused(size: tuple[int, ...]) -> None:
    refused("3x3", lambda: DiagonalTask(size))


OWN_SIZE = {"digits", "digit-strings", "digits-binary", "digits-grey", "fashion"}


def make(name: str, **settings: Any) -> Any:
    """A built-in task, with grids of 20×33, or 5×6, if it generates them."""
    if name == "fashion" and not FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    size = "" if name in OWN_SIZE else "5x6" if name == "ising" else "20x33"
    return make_task(TrainConfig(**{"task": name, "size": size, "augment": 1.0, **settings}))


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
    assert TaskSpec.from_json(json.loads(json.dumps(spec.__dict__))) == spec
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


SPEC = {"name": "x", "kind": "grid", "channels": 1, "outputs": 1, "size": [8, 8]}


@pytest.mark.parametrize(
    "values", [[], {}, SPEC | {"channels": "1"}, SPEC | {"size": 8}, SPEC | {"preprocessing": 1}]
)
def test_a_stored_spec_that_describes_no_task_is_refused(values: Any) -> None:
    assert TaskSpec.from_json(SPEC).size == (8, 8)
    refused("describes no task", lambda: TaskSpec.from_json(values))


@pytest.mark.parametrize("name", BUILT_IN)
def test_metrics_are_zero_for_the_targets_and_positive_otherwise(name: str) -> None:
    task = make(name)
    batch = task.batch(0, 0, 5, "test")
    perfect = batch.y
    if task.kind in ("classify", "segment"):
        perfect = np.eye(task.spec.outputs, dtype=np.float32)[batch.y]
    elif task.kind == "transcribe":  # each character, then a blank
        spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(len(batch.y), -1)
        perfect = np.eye(task.spec.outputs, dtype=np.float32)[spaced]
    elif task.kind == "density":  # log-probabilities
        perfect = np.zeros_like(batch.x)
    assert all(total == 0 for total, _ in task.measure(perfect, batch).values())
    numbers = {"grid": perfect + 1, "density": perfect - 1}
    wrong = numbers.get(task.kind, np.roll(perfect, 1, axis=-1))
    assert all(total > 0 and count > 0 for total, count in task.measure(wrong, batch).values())


@pytest.mark.parametrize("seed", [0, 5])
def test_no_digit_is_in_two_splits(seed: int) -> None:
    task = make("digits", seed=seed)
    images = {split: {x.tobytes() for x, _ in task.sets[split]} for split in SPLITS}
    assert len(task.sets["test"]) == pytest.approx(0.2 * 1797, abs=5)
    assert not images["test"] & (images["train"] | images["validation"])
    assert not images["train"] & images["validation"]
    strings = make("digit-strings", seed=seed).indices
    assert not set(strings["test"]) & (set(strings["train"]) | set(strings["validation"]))
    assert sum(map(len, strings.values())) == 1797


def test_digit_strings_match_their_labels() -> None:
    task = make("digit-strings")
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
    task = make("textures", size="64")
    bounds = sorted(COLUMNS.values())
    assert all(a[1] <= b[0] for a, b in pairwise(bounds))
    for surface in range(len(task.spec.classes)):
        whole = np.concatenate([task.photographs[split][surface] for split in SPLITS], axis=1)
        assert abs(whole.mean()) < 0.2
    batch = task.batch(0, 0, 40, "test")
    assert {len(np.unique(y)) for y in batch.y} == {2, 3, 4}
    assert set(np.unique(batch.y)) == set(range(6))


def test_photographs_to_train_on_do_not_depend_on_those_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data, before = pytest.importorskip("skimage.data"), make("textures", size="64").photographs["train"]
    for name in textures.PHOTOGRAPHS.values():
        image = getattr(data, name)().copy()
        image[:, int(COLUMNS["train"][1] * image.shape[1]) :] = 7
        monkeypatch.setattr(data, name, lambda image=image: image)
    monkeypatch.setattr(textures, "_load_photographs", textures._load_photographs.__wrapped__)
    after = make("textures", size="64").photographs["train"]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))


def test_gaussian_fields_have_power_spectrum_k_to_the_minus_4() -> None:
    for name, ratio in (("gaussian-field", 1 / 4), ("gaussian-field-anisotropic", 0)):
        task = make(name, size="16x24")
        batch = task.batch(0, 0, 3000)
        assert (batch.y[:, :, :-1] == batch.x[:, :, 1:]).all()
        assert (batch.y[:, :, -1] == 0).all()
        assert batch.x.std() == pytest.approx(task.spec.std[0], rel=0.03)
        power = np.square(np.abs(np.fft.fft2(batch.x[..., 0]))).mean(axis=0)
        assert power[0, 1] / power[0, 2] == pytest.approx(16, rel=0.15)
        assert power[2, 0] / power[4, 0] == pytest.approx(16, rel=0.15)
        assert power[1, 1] / power[0, 1] == pytest.approx(ratio, abs=0.04)


@pytest.mark.parametrize("name", sorted(OWN_SIZE))
def test_a_size_that_the_data_of_a_task_do_not_have_is_refused(name: str) -> None:
    size = make(name).spec.size
    assert make(name, size="x".join(map(str, size))).spec.size == size
    with pytest.raises(
        InputError, match=rf"{name} brings data of size {size[0]}x{size[1]}, got size 5x?5?"
    ):
        make(name, size="5")
