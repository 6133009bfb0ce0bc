"""Which samples pictures and reports show."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mdlstm_tk.data import DatasetTask, DiagonalTask, TaskSpec
from mdlstm_tk.data.task import MAX_EVALUATION_BATCH
from mdlstm_tk.viz.examples import _covering, example_batch, example_indices


def sorted_task(*sizes: int) -> DatasetTask:
    """A classification task whose test samples are sorted by class; x of sample k is k everywhere."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = tuple(map(str, range(len(sizes))))
    spec = TaskSpec("sorted", "classify", 1, len(sizes), (2, 2), names)
    samples = [(np.full((2, 2, 1), k, dtype=np.float32), label) for k, label in enumerate(labels)]
    return DatasetTask(spec, {"test": samples})


@pytest.mark.parametrize(
    ("sizes", "count", "shown"),
    [
        ((90, 90, 90), 12, {0: 4, 1: 4, 2: 4}),
        ((200, 5, 1), 12, {0: 6, 1: 5, 2: 1}),
        ((1, 1), 12, {0: 1, 1: 1}),
        ((50,) * 20, 5, {0: 1, 4: 1, 8: 1, 12: 1, 16: 1}),
    ],
)
def test_samples_of_all_classes_are_chosen(
    sizes: tuple[int, ...], count: int, shown: dict[int, int]
) -> None:
    task = sorted_task(*sizes)
    indices = example_indices(task, "test", 0, count)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    assert Counter(labels[indices].tolist()) == shown
    assert indices == sorted(set(indices)) == example_indices(task, "test", 0, count)


def test_other_tasks_are_sampled_over_the_whole_split() -> None:
    assert example_indices(DiagonalTask((4, 4)), "test", 0, 4) == [0, 16, 32, 48]


def test_an_example_is_the_sample_that_evaluation_reads_at_its_index() -> None:
    task = sorted_task(MAX_EVALUATION_BATCH, 3)
    for index in (0, MAX_EVALUATION_BATCH - 1, MAX_EVALUATION_BATCH, MAX_EVALUATION_BATCH + 2):
        assert example_batch(task, "test", 0, index).x.ravel().tolist() == [index] * 4


def test_masks_of_all_classes_are_shown() -> None:
    classes = [{0, 1}] * 20 + [{0, 2}] * 20 + [{3, 4}, {0}, {4}]
    assert {0, 1, 2, 3, 4} == set().union(*(classes[k] for k in _covering(classes, 4)))
    assert len(_covering(classes, 4)) == 4 and len(_covering(classes, 99)) == len(classes)
    assert len(_covering([{k} for k in range(9)], 4)) == 4
    assert _covering([set(), set()], 1) == [0]
