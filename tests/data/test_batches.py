"""Batches depend on seed, step and shard alone, hold every sample once in an epoch, and waste little."""

from __future__ import annotations

from collections import Counter
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlstm_tk.data import Batch, Dataset, Task, TaskSpec
from mdlstm_tk.data.order import bucketed_draws, shape_order, shuffled
from mdlstm_tk.data.task import UNLABELLED, collate
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import configure, make_task
from mdlstm_tk.training.tasks import BUILT_IN, task_defaults

SIZES = {"gaussian-field": "9x6", "gaussian-field-anisotropic": "6", "textures": "12x9"}


def built_in(name: str) -> Task:
    size = {"size": SIZES[name]} if name in SIZES else {}
    return make_task(configure(task=name, **size))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_batch_of_a_task_follows_from_its_number(name: str) -> None:
    """Equal arguments give equal samples, in any order and process; a shard is a part of the batch."""
    one, other = built_in(name), built_in(name)
    first = one.batch(5, 3, 6)
    assert not np.array_equal(first.x, one.batch(5, 4, 6).x)
    again = other.batch(5, 3, 6)
    assert all(a is b is None or np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    shards = [one.batch(5, 3, 6, shard=slice(rank, None, 2)) for rank in range(2)]
    for k, x in enumerate(first.x):
        part = shards[k % 2]
        grid = part.x.shape[1:-1] if part.sizes is None else part.sizes[k // 2]
        region = tuple(map(slice, grid))
        assert np.array_equal(part.x[k // 2][region], x[region])
    assert first.x.dtype == np.float32 and first.x.shape[-1] == one.spec.channels


@pytest.mark.parametrize("name", BUILT_IN)
def test_splits_of_a_task_have_as_many_samples_as_it_says(name: str) -> None:
    task = built_in(name)
    for split in ("validation", "test"):
        batches = list(task.evaluation_batches(split, 0))
        assert sum(len(batch.x) for batch in batches) == task.count(split)
        parts = [b for rank in range(3) for b in task.evaluation_batches(split, 0, slice(rank, None, 3))]
        assert sorted(b.x.tobytes() for b in parts) == sorted(b.x.tobytes() for b in batches)


def test_the_diagonal_is_that_of_the_original_task() -> None:
    task = built_in("diagonal")
    for split in ("train", "validation"):
        x, y, _ = task.batch(0, 0, 64, split)
        assert np.array_equal(y, np.roll(x, -1, axis=2))
        ones = np.argwhere(x[..., 0] == 1).reshape(64, 2, 3)
        assert (ones[:, 1, 1:] - ones[:, 0, 1:] == 1).all()
        assert (np.sort(x.reshape(64, -1))[:, :-2] < 0.1).all()
        assert y.mean() == pytest.approx(task.spec.target_mean[0], rel=0.05)
    assert task.batch(0, 64 // 16, 16, "validation").x.shape == (16, 32, 32, 1)
    with pytest.raises(InputError):
        make_task(configure(size="2x9"))


def test_textures_of_splits_never_overlap_and_fields_have_their_spectrum() -> None:
    task: Any = built_in("gaussian-field")
    x = task.batch(0, 0, 400).x[..., 0]
    spectrum = np.square(np.abs(np.fft.fft2(x))).mean(0)
    wanted = np.square(task.amplitude) * x[0].size
    assert np.allclose(spectrum[0, 1:3], wanted[0, 1:3], rtol=0.3) and spectrum[0, 0] < 1e-6
    assert x.std() == pytest.approx(task.spec.std[0], rel=0.1)
    sums = {"numbers": np.array([[x.size, 0, 0, np.square(x).sum(), 0]])}  # predicts 0
    assert task.measures(sums, task.spec)["unexplained"] == pytest.approx(1, rel=0.2)
    textures: Any = built_in("textures")
    for parts in zip(*textures.photographs.values(), strict=True):
        assert len({part.tobytes() for part in parts}) == 3 and sum(part.shape[1] for part in parts) <= 1000


shapes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


@settings(max_examples=40)
@given(extents=shapes, count=st.integers(1, 9), seed=st.integers(0, 9))
def test_every_epoch_has_every_sample_once(extents: list[Any], count: int, seed: int) -> None:
    total = len(extents)
    assert sorted(shuffled(seed, total, range(total))) == [*range(total)]
    ranks = shape_order(np.array(extents))
    steps = range(3 * -(-total // count))
    draws = [pair for step in steps for pair in bucketed_draws(seed, ranks, step, count)]
    assert [len(bucketed_draws(seed, ranks, step, count)) for step in steps] == [count] * len(steps)
    sample_of = dict(draws)
    for epoch in range(len(draws) // total):
        numbers = range(epoch * total, (epoch + 1) * total)
        if all(draw in sample_of for draw in numbers):
            assert Counter(sample_of[draw] for draw in numbers) == Counter(range(total))


def test_samples_of_similar_shape_share_a_batch() -> None:
    rng = np.random.default_rng(0)
    extents = rng.integers(1, 60, (200, 2))
    samples = [(np.ones((*each, 1), np.float32), 0) for each in extents]
    spec = TaskSpec("t", "classify", 1, 2, tuple(extents.max(axis=0).tolist()), ("a", "b"))
    bucketed = Dataset(spec, {"train": samples}, kind_named("classify"), extents=extents)
    plain = Dataset(spec, {"train": samples}, kind_named("classify"))
    padded = [sum(task.batch(0, step, 8).x.size for step in range(25)) for task in (bucketed, plain)]
    assert padded[0] < 0.6 * padded[1]
    largest = bucketed.largest_batch(0, 8)
    assert largest in {bucketed.batch(0, step, 8).x.shape[1:3] for step in range(25)}
    assert all(np.prod(bucketed.batch(0, step, 8).x.shape[1:3]) <= np.prod(largest) for step in range(25))


@pytest.mark.parametrize("kind", ["segment", "grid", "classify"])
def test_batches_are_padded_where_samples_end(kind: str) -> None:
    rng, samples = np.random.default_rng(0), []
    for grid in ((3, 5), (4, 2), (4, 5)):
        y: Any = {"segment": rng.integers(0, 3, grid), "grid": rng.random((*grid, 2)), "classify": 1}[kind]
        samples.append((rng.random((*grid, 1)).astype(np.float32), y))
    batch = collate(kind_named(kind), samples)
    assert isinstance(batch, Batch) and batch.sizes is not None
    assert batch.sizes.tolist() == [[3, 5], [4, 2], [4, 5]]
    for k, (x, y) in enumerate(samples):
        valid = np.zeros((4, 5), bool)
        valid[: x.shape[0], : x.shape[1]] = True
        assert np.array_equal(batch.x[k][valid], x.reshape(-1, 1)) and not batch.x[k][~valid].any()
        if kind == "segment":
            assert (batch.y[k][~valid] == UNLABELLED).all() and np.array_equal(batch.y[k][valid], y.ravel())
    assert collate(kind_named(kind), samples[-1:]).sizes is None
    cropped = Dataset(TaskSpec("t", kind, 1, 3, (4, 5)), {"test": samples}, kind_named(kind), crop=(1, 2))
    middle = cropped.batch(0, 0, 3, "test").x[..., 0]
    starts = [((x.shape[0] - 1) // 2, (x.shape[1] - 2) // 2) for x, _ in samples]
    assert np.array_equal(
        middle, [x[a : a + 1, b : b + 2, 0] for (x, _), (a, b) in zip(samples, starts, strict=True)]
    )
    if kind != "classify":
        with pytest.raises(InputError):
            collate(kind_named(kind), [(samples[0][0], samples[1][1])])


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_distortion_moves_images_and_masks_alike(strength: float) -> None:
    """The mask of a blob is where the distorted blob is; and no image changes at strength 0."""
    rows, columns = np.mgrid[:40, :50]
    blob = np.exp(-((rows - 18) ** 2 + (columns - 27) ** 2) / 60).astype(np.float32)
    samples = [(blob[..., None], (blob > 0.4).astype(np.int64))] * 4
    rngs = [np.random.default_rng(k) for k in range(4)]
    moved = kind_named("segment").distort(samples, rngs, strength)
    for x, y in moved:
        assert np.mean((x[..., 0] > 0.4) != y) < 0.02
        assert np.array_equal(x, samples[0][0]) == (strength == 0)
    assert (strength == 0) or not np.array_equal(moved[0][0], moved[1][0])
    again = kind_named("segment").distort(samples[:1], [np.random.default_rng(0)], strength)
    assert np.array_equal(again[0][0], moved[0][0])
    with pytest.raises(InputError):
        kind_named("grid").distort(samples, rngs, 1.0)


def checksum(values: Any) -> float:
    """A number that depends on each value and on its place."""
    return float(values.ravel() @ np.sin(np.arange(values.size)))


CONSTANT: dict[str, Any] = {  # settings, samples to validate and to test on, sums of x and y of a batch
    "diagonal": (710015138, 128, 64, 0.9456529, -0.2503817),
    "gaussian-field": (4217776488, 256, 256, -1.910708, -1.339636),
    "gaussian-field-anisotropic": (4217776488, 256, 256, -0.302721, 0.182262),
    "digits": (496893547, 0, 359, -1.797525, -1.933263),
    "textures": (1579044078, 64, 256, -164.1192, -10.06019),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_built_in_tasks_do_not_change(name: str) -> None:
    """Published errors and weights are of these samples and settings."""
    settings, validation, test, *sums = CONSTANT[name]
    task = make_task(configure(task=name))
    assert crc32(repr(sorted(task_defaults(name).items())).encode()) == settings
    assert (task.count("validation"), task.count("test")) == (validation, test)
    batch = task.batch(1, 2, 8)
    assert [checksum(batch.x), checksum(np.asarray(batch.y))] == pytest.approx(sums, rel=1e-4)
