"""The Ising model of a magnet: black and white images whose probability, and entropy, are known exactly.

P(x) = exp(β Σ s_i s_j) / Z over pairs of neighbours, with s = 2x − 1 and free borders. Z is a product
of transfer matrices (Kramers & Wannier 1941) between the 2^W states of a row, and so are the probabilities
of each row given the one above, from which images are drawn without any approximation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.builtin.mixtures import density_errors, fit_baselines
from mdlstm_tk.data.collate import collate
from mdlstm_tk.data.sampling import make_rng
from mdlstm_tk.data.spec import SPLITS, Batch, Split, TaskSpec
from mdlstm_tk.data.task import WHOLE_BATCH, Task
from mdlstm_tk.errors import InputError
from mdlstm_tk.sizes import format_size

BETA = 0.4  # just below 0.4407, where an infinite grid becomes ordered
MAX_WIDTH = 16
EVALUATION_SAMPLES = {"validation": 512, "test": 4096}
BASELINE_VALUES = 2**23  # of the images that mixtures are fitted on, at most
STEP = 1e-4  # of β, to differentiate log Z

Floats = npt.NDArray[np.float64]


class Ising(Task):
    """The probability of images of the Ising model.

    Args:
        size: (H, W) of an image.
        beta: strength β of the coupling.

    Attributes:
        states: (2^W, W) all rows, as −1 and 1.

    Raises:
        InputError: `size` does not have two axes, or W exceeds 16.
    """

    kind = "density"
    defaults: ClassVar[Mapping[str, Any]] = {
        "size": "8",
        "model": "pixel",
        "steps": 2000,
        "batch_size": 64,
        "hidden": 16,
        "lr": 0.01,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup": 50,
        "clip": 1.0,
        "average": 0.99,
        "evaluate_every": 500,
    }

    def __init__(self, size: tuple[int, ...], beta: float = BETA) -> None:
        if len(size) != 2 or size[1] > MAX_WIDTH:
            raise InputError(f"images have at most {MAX_WIDTH} columns, got {format_size(size)}")
        self.height, self.width = size
        self.beta = beta
        self.states = _all_rows(self.width)
        self.spec = TaskSpec("ising", self.kind, 1, 1, size)

    def count(self, split: Split) -> int:
        return EVALUATION_SAMPLES.get(split, 0)

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        draws = range(step * count, (step + 1) * count)[shard]
        uniform = [make_rng(seed, SPLITS.index(split), draw).random(self.height) for draw in draws]
        images = self._draw(np.array(uniform).reshape(-1, self.height))
        return collate(self.kind, [(image, None) for image in images])

    def baselines(self, seed: int, samples: int) -> dict[str, dict[str, float]]:
        """Return the test errors of the exact probabilities, and of densities without a network.

        These see the images of a run, or the first of them if there are many; see `fit_baselines`.
        """
        counts = {"train": min(samples, BASELINE_VALUES // self.height // self.width), **EVALUATION_SAMPLES}
        images = {split: self.batch(seed, 0, counts[split], split).x for split in SPLITS}
        test = images["test"]
        exact = {"exact": density_errors(-self.log_prob(test), test)}
        return exact | fit_baselines(images, 2, seed)

    @property
    def entropy(self) -> float:
        """The entropy of an image in nats: the least that the mean of a model's nats can be."""
        above, below = (self._log_z(self.beta + step) for step in (STEP, -STEP))
        return self._log_z(self.beta) - self.beta * (above - below) / (2 * STEP)

    def log_prob(self, images: npt.NDArray[Any]) -> Floats:
        """The exact log-probability (N,) of images (N, H, W, 1), in nats."""
        spins = 2.0 * images[..., 0] - 1
        bonds = (spins[:, 1:] * spins[:, :-1]).sum((1, 2)) + (spins[:, :, 1:] * spins[:, :, :-1]).sum(
            (1, 2)
        )
        result: Floats = self.beta * bonds - self._log_normaliser
        return result

    def _draw(self, uniform: Floats) -> npt.NDArray[np.float32]:
        """Images (N, H, W, 1), from a number in [0, 1) for each row (N, H).

        The two halves of a row are drawn one after the other, so that few of the 2^W states are computed
        for each image.
        """
        left, right = _all_rows(self.width - self.width // 2), _all_rows(self.width // 2)
        couple_left, couple_right = (self._couple(states) for states in (left, right))
        rows = []
        above_left, above_right = (np.full(len(uniform), len(states)) for states in (left, right))
        for row in range(self.height):
            # of the left and the right half of a row, without what is above it
            weights = self._row_weights[row].reshape(len(left), len(right))
            of_left = couple_left[above_left] * (weights @ couple_right.T).T[above_right]
            above_left, rest = _choose(of_left, uniform[:, row])
            above_right, _ = _choose(weights[above_left] * couple_right[above_right], rest)
            rows.append(np.concatenate([left[above_left], right[above_right]], axis=1))
        return ((np.stack(rows, axis=1) + 1) / 2).astype(np.float32)[..., None]

    def _couple(self, states: Floats) -> Floats:
        """The weight of a part of a row given that above it, [above, below]; the last above is none."""
        above = np.vstack([states, np.zeros_like(states[:1])])
        weights: Floats = np.exp(self.beta * above @ states.T)
        return weights

    @cached_property
    def _log_normaliser(self) -> float:
        return self._log_z(self.beta)

    @cached_property
    def _row_weights(self) -> list[Floats]:
        """For each row the weight (2^W,) of its states and of all that comes below them, up to a factor."""
        return self._sweep(self.beta)[0]

    def _log_z(self, beta: float) -> float:
        weights, log_factor = self._sweep(beta)
        return log_factor + float(np.log(weights[0].sum()))

    def _sweep(self, beta: float) -> tuple[list[Floats], float]:
        """Go up from the last row; also the logarithm of what the weights of the first row lack."""
        bonds = (self.states[:, 1:] * self.states[:, :-1]).sum(1)
        of_row = np.exp(beta * bonds)
        couple = np.exp(beta * np.array([[1.0, -1.0], [-1.0, 1.0]]))
        weights, log_factor = [of_row], 0.0
        for _ in range(self.height - 1):
            message = weights[0].reshape((2,) * self.width)
            for axis in range(self.width):  # one column after the other, rather than a matrix of 2^W × 2^W
                message = np.moveaxis(np.tensordot(couple, message, (1, axis)), 0, axis)
            scale = float(message.max())
            log_factor += float(np.log(scale))
            weights.insert(0, of_row * message.ravel() / scale)
        return weights, log_factor


def _all_rows(width: int) -> Floats:
    """All rows of −1 and 1 (2^width, width), in the order of binary numbers."""
    bits = np.arange(2**width)[:, None] >> np.arange(width)[::-1] & 1
    return 2.0 * bits.astype(np.float64) - 1


def _choose(weights: Floats, uniform: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Choose k with a probability in proportion to weights[:, k].

    Args:
        weights: (N, K).
        uniform: (N,) numbers in [0, 1).

    Returns:
        k (N,), and (N,) where a number lies among those that choose k, from 0 to 1: a uniform number again.
    """
    below = np.cumsum(weights, axis=1)
    place = uniform * below[:, -1]
    chosen = (below[:, :-1] <= place[:, None]).sum(1)
    of_chosen = np.arange(len(chosen)), chosen
    return chosen, 1 - (below[of_chosen] - place) / weights[of_chosen]
