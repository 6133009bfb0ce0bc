"""The choice of samples that represent a data set, for pictures and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from mdlstm_tk.data.spec import UNLABELLED, Array

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose up to `count` of the items, evenly spaced, starting with the first one."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def spread_over_classes(labels: Array, count: int) -> list[int]:
    """Choose the indices of up to `count` labels (N,), in increasing order: of every class if `count`
    allows, and of each class evenly spaced, as data sets are often sorted by class."""
    names, sizes = np.unique(labels, return_counts=True)
    quotas = np.zeros(len(names), dtype=int)
    if count < len(names):
        quotas[spread(range(len(names)), count)] = 1
    else:
        for _ in range(min(count, len(labels))):  # one at a time, for the class that has fewest of them
            quotas[np.where(quotas < sizes, quotas, len(labels)).argmin()] += 1
    pairs = zip(names, quotas.tolist(), strict=True)
    indices = (spread(np.flatnonzero(labels == name).tolist(), quota) for name, quota in pairs)
    return sorted(index for each in indices for index in each)


def covering(masks: Iterable[Array], count: int) -> list[int]:
    """Choose the indices of up to `count` masks, in increasing order, that together show as many classes as
    possible; what is left of `count` is spread over the others."""
    classes = [set(np.unique(mask[mask != UNLABELLED]).tolist()) for mask in masks]
    indices: list[int] = []
    missing = set().union(*classes)
    while missing and len(indices) < count:
        indices.append(max(range(len(classes)), key=lambda k: len(classes[k] & missing)))
        missing -= classes[indices[-1]]
    remaining = [k for k in range(len(classes)) if k not in indices]
    return sorted(indices + spread(remaining, count - len(indices)))
