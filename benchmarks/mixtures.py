"""Densities without a network: independent values, and mixtures of such, fitted by EM."""

from __future__ import annotations

from collections.abc import Iterator
from math import log, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data import SPLITS, Task
from mdlstm_tk.data.sampling import make_rng

COMPONENTS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)  # of the mixtures that are tried
IMAGES_A_COMPONENT = 10  # at least, or the mixture is not tried
ITERATIONS = 60  # of EM, at most
GAIN = 1e-4  # of the log-probability that an iteration must bring, as a share of it, or EM ends
COUNTED_BEFORE = 0.5  # that each level counts as seen before the data, so that nothing is impossible
MAX_VALUES = 2**23  # of generated images that are fitted, at most
CHUNK_VALUES = 2**22  # of images that are made 0 and 1 at a time

Errors = dict[str, dict[str, float]]
Floats = npt.NDArray[Any]


class Mixture:
    """A mixture of images with independent values, each of which has one of K levels.

    Images are read in chunks, so that fitting takes little more memory than the images and their levels.

    Args:
        images: (N, H, W, C) in [0, 1] to fit.
        levels: K.
        components: number of components; with one, all values are independent.
        seed: seed of the start, in which each component is an image, mixed with the mean.
    """

    def __init__(self, images: npt.NDArray[Any], levels: int, components: int, seed: int) -> None:
        self.levels = levels
        indices = self._nearest_levels(images)
        mean = sum(chunk.sum(0, dtype=np.float64) for chunk in self._chunks(indices)) / len(indices)
        starts = make_rng(seed, 6).choice(len(indices), components, replace=len(indices) < components)
        start = np.concatenate([0.3 * chunk + 0.7 * mean for chunk in self._chunks(indices[starts])])
        size = len(indices) / components
        self._set(size * start, np.full(components, size))
        before = -np.inf
        for _ in range(ITERATIONS):
            log_p = self._improve(indices)
            if log_p - before < GAIN * abs(log_p):
                break
            before = log_p

    def nats(self, images: npt.NDArray[Any]) -> Floats:
        """The negative log-probability (N,) of each image."""
        chunks = self._chunks(self._nearest_levels(images))
        joints = [self._joint(chunk.astype(np.float64)) for chunk in chunks]
        return -np.concatenate([_log_sum_exp(joint) for joint in joints])

    def _improve(self, indices: npt.NDArray[np.uint8]) -> float:
        """Do a step of EM, and return the log-probability of all images before it."""
        counts, sizes, total = np.zeros(self.log_ratio.shape), np.zeros(len(self.log_ratio)), 0.0
        for chunk in self._chunks(indices):
            joint = self._joint(chunk)
            log_p = _log_sum_exp(joint)
            weights = np.exp(joint - log_p[:, None])  # (N, components)
            counts += weights.T @ chunk
            sizes += weights.sum(0, dtype=np.float64)
            total += float(log_p.sum(dtype=np.float64))
        self._set(counts, sizes)
        return total

    def _set(self, counts: Floats, sizes: Floats) -> None:
        """Set the probabilities.

        Args:
            counts: (components, P·(K − 1)) how often a value has each level but the first.
            sizes: (components,) how many images there are.
        """
        later = counts.reshape(len(sizes), -1, self.levels - 1)
        first = sizes[:, None, None] - later.sum(2, keepdims=True)
        level_counts = np.concatenate([first, later], axis=2).clip(0) + COUNTED_BEFORE
        log_p = np.log(level_counts / level_counts.sum(2, keepdims=True))
        self.log_ratio = (log_p[..., 1:] - log_p[..., :1]).reshape(counts.shape)
        # of a component, and of an image that has the first level throughout
        self.log_first = np.log(sizes.clip(1e-6) / sizes.clip(1e-6).sum()) + log_p[..., 0].sum(1)

    def _joint(self, chunk: Floats) -> Floats:
        """The log-probability (N, components) of image and component, in the dtype of the chunk."""
        result: Floats = chunk @ self.log_ratio.T.astype(chunk.dtype)
        result += self.log_first.astype(chunk.dtype)
        return result

    def _nearest_levels(self, images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The level of each value, (N, P)."""
        levels = np.empty((len(images), prod(images.shape[1:])), np.uint8)
        for image, row in zip(images, levels, strict=True):
            row[:] = np.rint(image.ravel() * (self.levels - 1))
        return levels

    def _chunks(self, indices: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.float32]]:
        """Parts of (N, P·(K − 1)): for each level of a value but the first, 1 if it has it and else 0."""
        one_hot = np.eye(self.levels, dtype=np.float32)[:, 1:]
        count = max(CHUNK_VALUES // (indices.shape[1] * self.levels), 1)
        for k in range(0, len(indices), count):
            yield one_hot[indices[k : k + count]].reshape(-1, indices.shape[1] * (self.levels - 1))


def _log_sum_exp(joint: Floats) -> Floats:
    """log Σ exp along the last axis."""
    largest = joint.max(1)
    result: Floats = largest + np.log(np.exp(joint - largest[:, None]).sum(1))
    return result


def fit_baselines(task: Task, seed: int, samples: int) -> Errors:
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
    baselines = {"independent": fits[1], "mixture": best}
    return {name: density_errors(mixture.nats(test), test) for name, mixture in baselines.items()}


def density_errors(nats: Floats, images: npt.NDArray[Any]) -> dict[str, float]:
    """The errors of a density, as those of a network are named, from the nats (N,) of images."""
    mean = float(nats.mean())
    return {"nats": mean, "bits_per_dim": mean / log(2) / images[0].size}
