"""Densities without a network, for `density.py`: independent values, and mixtures of such, fitted by EM."""

from __future__ import annotations

from math import log, prod
from typing import Any

import numpy as np
from scipy.special import logsumexp

from mdlstm_tk.data import SPLITS, Task
from mdlstm_tk.data.sampling import make_rng

COMPONENTS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)  # of the mixtures that are tried
IMAGES_A_COMPONENT = 10  # at least, or the mixture is not tried
ITERATIONS = 60  # of EM, at most
GAIN = 1e-4  # of the log-probability that an iteration must bring, as a share of it, or EM ends
COUNTED_BEFORE = 0.5  # that each level counts as seen before the data, so that nothing is impossible
MAX_VALUES = 2**23  # of generated images that are fitted, at most

Array = np.ndarray[Any, Any]


class Mixture:
    """A mixture of images with independent values, each of which has one of K levels.

    Args:
        images: (N, H, W, C) in [0, 1] to fit.
        levels: K.
        components: number of components; with one, all values are independent.
        seed: seed of the start, in which each component is an image, mixed with the mean.
    """

    def __init__(self, images: Array, levels: int, components: int, seed: int) -> None:
        self.levels = levels
        x = self._one_hot(images)
        chosen = make_rng(seed, 6).choice(len(x), components, replace=len(x) < components)
        size, before = len(x) / components, -np.inf
        self._set(size * (0.3 * x[chosen] + 0.7 * x.mean(0)), np.full(components, size))
        for _ in range(ITERATIONS):
            joint = self._joint(x)
            log_p = logsumexp(joint, 1, keepdims=True)
            weights, total = np.exp(joint - log_p), log_p.sum(dtype=np.float64)
            self._set(weights.T @ x, weights.sum(0))
            if total - before < GAIN * abs(total):
                break
            before = total

    def nats(self, images: Array) -> Array:
        """The negative log-probability (N,) of each image."""
        nats: Array = -logsumexp(self._joint(self._one_hot(images).astype(np.float64)), 1)
        return nats

    def _one_hot(self, images: Array) -> Array:
        """(N, P·K): 1 at the nearest level of each value."""
        indices = np.rint(images.reshape(len(images), -1) * (self.levels - 1)).astype(np.intp)
        return np.eye(self.levels, dtype=np.float32)[indices].reshape(len(images), -1)

    def _set(self, counts: Array, sizes: Array) -> None:
        """Set the probabilities, from how often a value has each level, (components, P·K), and how many
        images each component has, (components,)."""
        of_level = counts.reshape(len(sizes), -1, self.levels).astype(np.float64) + COUNTED_BEFORE
        self.log_p = np.log(of_level / of_level.sum(2, keepdims=True)).reshape(counts.shape)
        self.log_share = np.log(sizes.clip(1e-6) / sizes.clip(1e-6).sum())

    def _joint(self, x: Array) -> Array:
        """The log-probability (N, components) of image and component, in the dtype of x (N, P·K)."""
        joint: Array = x @ self.log_p.T.astype(x.dtype) + self.log_share.astype(x.dtype)
        return joint


def fit_baselines(task: Task, seed: int, samples: int) -> dict[str, dict[str, float]]:
    """Return the test errors of independent values, and of the mixture that fits validation data best.

    Args:
        task: of kind "density", with images of equal size.
        seed: seed of generated images, and of the start of EM.
        samples: training images to fit, at most; a fixed data set may have fewer.
    """
    limit = min(samples, MAX_VALUES // prod(task.spec.size))
    counts = {split: task.count(split) or limit for split in SPLITS}
    train, validation, test = (task.batch(seed, 0, counts[split], split).x for split in SPLITS)
    levels = max(task.spec.outputs, 2)
    fits = {k: Mixture(train, levels, k, seed) for k in COMPONENTS if k * IMAGES_A_COMPONENT <= len(train)}
    best = min(fits.values(), key=lambda mixture: mixture.nats(validation).mean())
    nats = {"independent": fits[1].nats(test).mean(), "mixture": best.nats(test).mean()}
    return {
        name: {"nats": float(mean), "bits_per_dim": float(mean) / log(2) / test[0].size}
        for name, mean in nats.items()
    }
