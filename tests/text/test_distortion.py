"""Distorted lines of text. Those of pages are in test_baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.pages import read, write_texts

from mdlstm_tk.io import Floats
from mdlstm_tk.text.distortion import distort_line


def stroke() -> Floats:
    """Bright paper with a dark vertical stroke."""
    x = np.full((24, 90, 1), 0.9, dtype=np.float32)
    x[4:-4, 44:47] = 0.2
    return x


def distorted(x: Floats, seed: int, strength: float = 1.0) -> Floats:
    return distort_line(x, np.random.default_rng(seed), strength)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (24, 90, 3)])
def test_height_and_channels_of_a_line_stay(shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    np.testing.assert_allclose(distorted(x, 3, strength=0.0), x, atol=1e-5)
    y = distorted(x, 0)
    assert (y.shape[0], y.shape[2], y.dtype) == (shape[0], shape[2], np.float32)
    assert abs(y.shape[1] - shape[1]) <= 0.2 * shape[1] + 1


def test_widths_slants_and_strokes_of_lines_differ() -> None:
    images = [distorted(stroke(), seed)[..., 0] for seed in range(40)]
    ink = [(image < 0.6) & (image < np.median(image) - 0.1) for image in images]
    assert len({image.shape[1] for image in images}) > 5
    ends = [(np.flatnonzero(i[6]), np.flatnonzero(i[-7])) for i in ink if i[6].any() and i[-7].any()]
    slants = [top.mean() - bottom.mean() for top, bottom in ends]
    assert min(slants) < -1 < 1 < max(slants)
    areas = [i.sum() for i in ink]
    assert max(areas) > 1.5 * np.median(areas)


def test_training_batches_of_texts_are_distorted_by_seed_and_draw(tmp_path: Path) -> None:
    task = read(write_texts(tmp_path), validation=0.25, augment=1.0)
    assert np.array_equal(task.batch(0, 1, 3).x, task.batch(0, 1, 3).x)
    assert not np.array_equal(task.batch(0, 0, 6).x, task.batch(0, 1, 6).x)
    assert np.array_equal(task.batch(0, 0, 2, "validation").x, task.batch(5, 0, 2, "validation").x)
