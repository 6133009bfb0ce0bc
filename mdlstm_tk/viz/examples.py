"""Choose the samples that pictures and reports show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdlstm_tk.data import UNLABELLED, Batch, Split, Task, batches


def display_split(task: Task) -> Split:
    """The split to show predictions on: the one that influenced training least."""
    return "test" if task.count("test") else "validation" if task.count("validation") else "train"


def example_indices(task: Task, split: Split, seed: int, count: int) -> list[int]:
    """Indices of up to `count` samples that represent a split; the same for equal arguments.

    Data sets are often sorted by class. Of a classification task every class is therefore shown if
    `count` allows, with its samples spread evenly. Masks are chosen so that together they show as many
    classes as possible, and the others, as the samples of other tasks, are spread over the split.

    Args:
        task: source of the samples.
        split: which samples.
        seed: of samples that are generated.
        count: how many at most.

    Returns:
        Indices in increasing order, in the order in which `evaluate` reads the split.
    """
    total = task.count(split)
    if task.spec.kind == "segment":
        masks = (mask for batch in batches(task, split, seed, task.evaluation_batch) for mask in batch.y)
        return _covering([set(np.unique(mask[mask != UNLABELLED]).tolist()) for mask in masks], count)
    if task.spec.kind != "classify":
        return _spread(range(total), count)
    labels = np.concatenate([batch.y for batch in batches(task, split, seed, task.evaluation_batch)])
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = np.zeros(len(classes), dtype=int)
    for _ in range(min(count, total)):  # one sample at a time goes to the class that has fewest of them
        quotas[np.where(quotas < sizes, quotas, total).argmin()] += 1
    if count < len(classes):
        quotas[:] = 0
        quotas[_spread(range(len(classes)), count)] = 1
    return sorted(
        index
        for label, quota in zip(classes, quotas, strict=True)
        for index in _spread(np.flatnonzero(labels == label).tolist(), int(quota))
    )


def example_batch(task: Task, split: Split, seed: int, index: int) -> Batch:
    """Sample `index` of a split as a batch of one."""
    size = task.evaluation_batch
    step, position = divmod(index, size)
    shard = slice(0, task.count(split) - step * size)
    return task.batch(seed, step, size, split, shard).sample(position)


def _covering(classes: Sequence[set[int]], count: int) -> list[int]:
    """Up to `count` indices of samples that together hold as many classes as possible, the rest spread."""
    chosen: list[int] = []
    missing = set().union(*classes)
    while missing and len(chosen) < count:
        chosen.append(max(range(len(classes)), key=lambda k: len(classes[k] & missing)))
        missing -= classes[chosen[-1]]
    others = [k for k in range(len(classes)) if k not in chosen]
    return sorted(chosen + _spread(others, count - len(chosen)))


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the items, evenly spaced, starting with the first one."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]
