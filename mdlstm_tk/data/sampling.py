"""Random numbers that depend on nothing but the integers they are derived from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt


def make_rng(*seeds: int) -> np.random.Generator:
    """Return the random generator that belongs to these integers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, total: int) -> npt.NDArray[np.int64]:
    return make_rng(seed, 0, epoch).permutation(total)


def shuffled_indices(seed: int, total: int, draws: Sequence[int]) -> list[int]:
    """Return the sample index at each draw, where every epoch of `total` draws has a new order.

    Args:
        seed: seed of the orders.
        total: number of samples.
        draws: draw numbers, counted from 0 over all epochs.
    """
    return [int(_permutation(seed, draw // total, total)[draw % total]) for draw in draws]


def stratified_mask(groups: npt.ArrayLike, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Select a random `share` of each group.

    A group with two or more members contributes at least one of them and never all of them, unless
    `share` is 0.

    Args:
        groups: (N,) the group of each sample.
        share: between 0 and 1.
        seed: seed of the selection.

    Returns:
        (N,) True for the selected samples.
    """
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    mask = np.zeros(len(inverse), dtype=bool)
    for index in range(len(names)):
        members = np.flatnonzero(inverse == index)
        count = round(share * len(members))
        if share > 0:
            count = min(max(count, 1), len(members) - 1)
        mask[make_rng(seed, 2, index).permutation(members)[:count]] = True
    return mask
