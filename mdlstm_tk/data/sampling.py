"""Random numbers that depend on nothing but the integers they are derived from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# What random numbers are for: the second argument of `make_rng`.
ORDER, DISTORTION, HELD_OUT, BUCKETS, CROP, THRESHOLDS = range(6)
MAX_POOL_STEPS = 16  # batches that samples of similar shape are chosen from


def make_rng(*seeds: int) -> np.random.Generator:
    """Return the random generator that belongs to these integers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, total: int) -> npt.NDArray[np.int64]:
    return make_rng(seed, ORDER, epoch).permutation(total)


def shuffled_indices(seed: int, total: int, draws: Sequence[int]) -> list[int]:
    """Return the sample index at each draw, where every epoch of `total` draws has a new order.

    Args:
        seed: seed of the orders.
        total: number of samples.
        draws: draw numbers, counted from 0 over all epochs.
    """
    return [int(_permutation(seed, draw // total, total)[draw % total]) for draw in draws]


def shape_order(extents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rank of each sample if similar shapes stand next to each other.

    They are ordered by the ratios of neighbouring axes, in steps of a factor of √2, then by the number of
    positions: padding a tall image and a wide one to a common size would waste more than padding a small
    one and a large one.

    Args:
        extents: (N, D).

    Returns:
        (N,) ranks from 0; equal extents have equal ranks.
    """
    aspects = np.rint(2 * np.log2(extents[:, :-1] / extents[:, 1:])).astype(np.int64)
    keys = np.concatenate([aspects, extents.prod(axis=1, keepdims=True), extents[:, :-1]], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def bucketed_draws(seed: int, ranks: npt.NDArray[np.int64], step: int, count: int) -> list[tuple[int, int]]:
    """Return the draws and the sample indices of a batch of samples of similar shape.

    The draws are as in `shuffled_indices`. The draws of several steps, half an epoch at most, are divided
    into batches by shape, and the batches come in random order. So every epoch has every sample once, and a
    batch depends on the arguments alone.

    Args:
        seed: seed of the orders.
        ranks: (N,) rank of each sample, see `shape_order`.
        step: number of the batch, from 0.
        count: samples in a batch.
    """
    pool_steps = min(max(len(ranks) // (2 * count), 1), MAX_POOL_STEPS)
    pool, position = divmod(step, pool_steps)
    first = pool * pool_steps * count
    draws = range(first, first + pool_steps * count)
    indices = np.array(shuffled_indices(seed, len(ranks), draws))
    order = np.argsort(ranks[indices], kind="stable")
    batch = int(make_rng(seed, BUCKETS, pool).permutation(pool_steps)[position])
    return [(draws[k], int(indices[k])) for k in order[batch * count : (batch + 1) * count]]


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
        mask[make_rng(seed, HELD_OUT, index).permutation(members)[:count]] = True
    return mask
