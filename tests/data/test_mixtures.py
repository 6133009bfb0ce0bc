"""`benchmarks/mixtures.py`: densities without a network."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
from helpers.checkout import ROOT

from mdlstm_tk.data import DatasetTask, TaskSpec

sys.path.insert(0, str(ROOT / "benchmarks"))

import mixtures


def test_a_mixture_is_a_density_that_finds_its_components() -> None:
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 2, (3, 4, 4, 1))
    component = rng.integers(0, 3, 600)
    flipped = rng.random((600, 4, 4, 1)) < 0.05
    images = np.where(flipped, 1 - prototypes[component], prototypes[component])
    entropy = np.log(3) - 16 * (0.05 * np.log(0.05) + 0.95 * np.log(0.95))
    splits = {"train": images[:300], "validation": images[300:450], "test": images[450:]}
    task = DatasetTask(
        TaskSpec("prototypes", "density", 1, 1, (4, 4)),
        {split: [(x.astype(np.float32), None) for x in each] for split, each in splits.items()},  # type: ignore[misc]
    )
    errors = mixtures.fit_baselines(task, seed=0, samples=300)
    assert errors["independent"]["nats"] > entropy + 2
    assert errors["mixture"]["nats"] == pytest.approx(entropy, rel=0.1)
    for levels in (2, 3):
        small = mixtures.Mixture(rng.integers(0, levels, (50, 2, 2, 1)) / (levels - 1), levels, 4, seed=1)
        every = np.array(list(product(np.linspace(0, 1, levels), repeat=4))).reshape(-1, 2, 2, 1)
        assert np.exp(-small.nats(every)).sum() == pytest.approx(1)
