"""Distorted lines of text, and the errors of batches of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import read, write_texts

from mdlstm_tk.data import Batch, TaskSpec
from mdlstm_tk.io import Floats
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.text.distortion import distort_line
from mdlstm_tk.text.measures import count_edits


def line(height: int = 24, width: int = 90, channels: int = 1) -> Floats:
    """Bright paper with a dark vertical stroke."""
    x = np.full((height, width, channels), 0.9, dtype=np.float32)
    x[4:-4, width // 2 - 1 : width // 2 + 2] = 0.2
    return x


def distorted(x: Floats, seed: int, strength: float = 1.0) -> Floats:
    return distort_line(x, np.random.default_rng(seed), strength)


def test_strength_zero_leaves_a_line_of_text_as_it_is() -> None:
    np.testing.assert_allclose(distorted(line(), 3, strength=0.0), line(), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (24, 90, 3)])
def test_height_and_channels_of_a_line_stay(shape: tuple[int, int, int]) -> None:
    x = distorted(np.random.default_rng(0).random(shape, dtype=np.float32), 0)
    assert (x.shape[0], x.shape[2], x.dtype) == (shape[0], shape[2], np.float32)
    assert abs(x.shape[1] - shape[1]) <= 0.2 * shape[1] + 1


def test_widths_slants_and_strokes_of_lines_differ() -> None:
    images = [distorted(line(), seed)[..., 0] for seed in range(40)]
    ink = [(image < 0.6) & (image < np.median(image) - 0.1) for image in images]
    assert len({image.shape[1] for image in images}) > 5
    slants = [
        np.flatnonzero(i[6]).mean() - np.flatnonzero(i[-7]).mean()
        for i in ink
        if i[6].any() and i[-7].any()
    ]
    assert min(slants) < -1 < 1 < max(slants)
    areas = [i.sum() for i in ink]
    assert max(areas) > 1.5 * np.median(areas)


def test_training_batches_of_texts_are_distorted_by_seed_and_draw(tmp_path: Path) -> None:
    task = read(write_texts(tmp_path), validation=0.25, augment=1.0)
    assert np.array_equal(task.batch(0, 1, 3).x, task.batch(0, 1, 3).x)
    assert not np.array_equal(task.batch(0, 0, 6).x, task.batch(0, 1, 6).x)
    assert np.array_equal(task.batch(0, 0, 2, "validation").x, task.batch(5, 0, 2, "validation").x)


@pytest.mark.parametrize(
    ("predicted", "target", "edits", "word_edits", "words"),
    [
        ("abc", "abc", 0, 0, 1),
        ("", "abc", 3, 1, 1),
        ("abc", "", 3, 1, 0),
        (" ab  c ", "ab c", 1, 0, 2),  # blanks at the ends do not count, and words do not see their number
        ("a bc", "abc de", 4, 2, 2),
    ],
)
def test_errors_of_texts_are_edit_distances(
    predicted: str, target: str, edits: int, word_edits: int, words: int
) -> None:
    alphabet = tuple(" abcdefghijklmnopqrstuvwxyz")
    spec = TaskSpec("words", "transcribe", 1, 28, (1, 20), alphabet)
    path = [0, *(k for c in predicted for k in (1 + alphabet.index(c), 0))]  # a blank after each character
    y = np.array([[1 + alphabet.index(c) for c in target] + [0]])
    batch = Batch(torch.zeros(1, 1, len(path), 1), torch.from_numpy(y))  # type: ignore[arg-type]
    sums = kind_named("transcribe").sums(torch.eye(28)[path][None], batch, spec)
    assert sums["edits"].tolist() == [[edits, len(target)], [word_edits, words], [edits > 0, 1]]


def test_texts_are_compared_in_their_composed_form() -> None:
    assert count_edits("e\u0301te\u0301", "\u00e9t\u00e9 ") == (0, 3, 0, 1)
