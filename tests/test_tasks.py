"""The random-diagonal task is exactly the seed's, and any batch can be made again."""

from __future__ import annotations

import numpy as np
import pytest

from mdlstm_tk.errors import InputError
from mdlstm_tk.tasks import DiagonalTask


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


def test_mean_target_is_the_mean_of_targets() -> None:
    task = DiagonalTask((8, 12))
    assert task.batch(0, 0, 4000).y.mean() == pytest.approx(task.mean_target, rel=0.01)


@pytest.mark.parametrize("size", [(2, 8), (8, 2), (1, 1), (8,), (8, 8, 8)])
def test_sizes_without_room_for_the_diagonal_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 3x3, got"):
        DiagonalTask(size)
