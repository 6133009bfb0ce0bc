"""Densities without a network: independent values, and mixtures of such, fitted by EM."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.sampling import make_rng

COMPONENTS = (1, 2, 5, 10, 20, 40, 80)  # of the mixtures that are tried
ITERATIONS = 60
COUNTED_BEFORE = 0.5  # that each level counts as seen before the data, so that nothing is impossible

Floats = npt.NDArray[np.float64]


class Mixture:
    """A mixture of images with independent values, each of which has one of K levels.

    Args:
        images: (N, H, W, C) in [0, 1] to fit.
        levels: K.
        components: number of components; with one, all values are independent.
        seed: seed of the start, in which each component is an image, mixed with the mean.
    """

    def __init__(self, images: npt.NDArray[Any], levels: int, components: int, seed: int) -> None:
        self.levels = levels
        seen = self._one_hot(images)  # (N, P·K)
        mean = seen.mean(0)
        chosen = make_rng(seed, 6).choice(len(seen), components, replace=len(seen) < components)
        self._set(0.3 * seen[chosen] + 0.7 * mean if components > 1 else mean[None], np.ones(components))
        for _ in range(ITERATIONS if components > 1 else 1):
            joint = self._joint(seen)
            weights = np.exp(joint - joint.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)  # (N, components)
            self._set((weights.T @ seen + COUNTED_BEFORE), weights.sum(0))

    def nats(self, images: npt.NDArray[Any]) -> Floats:
        """The negative log-probability (N,) of each image."""
        joint = self._joint(self._one_hot(images))
        largest = joint.max(1, keepdims=True)
        result: Floats = -(largest[:, 0] + np.log(np.exp(joint - largest).sum(1)))
        return result

    def _set(self, counts: Floats, sizes: Floats) -> None:
        """Set the log-probabilities of levels from counts (components, P·K), and those of components."""
        by_value = counts.reshape(len(counts), -1, self.levels) + 1e-6
        self.log_p = np.log(by_value / by_value.sum(2, keepdims=True)).reshape(counts.shape)
        self.log_share = np.log((sizes + 1e-6) / (sizes + 1e-6).sum())

    def _joint(self, seen: Floats) -> Floats:
        """The log-probability (N, components) of image and component."""
        result: Floats = seen @ self.log_p.T + self.log_share
        return result

    def _one_hot(self, images: npt.NDArray[Any]) -> Floats:
        levels = np.rint(images.reshape(len(images), -1) * (self.levels - 1)).astype(int)
        one_hot: Floats = np.eye(self.levels)[levels].reshape(len(images), -1)
        return one_hot


def baselines(
    train: npt.NDArray[Any],
    validation: npt.NDArray[Any],
    test: npt.NDArray[Any],
    levels: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """The test errors of independent values, and of the mixture that fits validation data best."""
    tried = {k: Mixture(train, levels, k, seed) for k in COMPONENTS}
    best = min(tried, key=lambda k: tried[k].nats(validation).mean())
    errors = {}
    for name, mixture in {"independent": tried[1], "mixture": tried[best]}.items():
        nats = float(mixture.nats(test).mean())
        errors[name] = {"nats": nats, "bits_per_dim": nats / log(2) / test[0].size}
    return errors
