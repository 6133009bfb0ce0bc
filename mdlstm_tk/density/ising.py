"""The Ising model of a magnet: black and white images whose probability, and entropy, are known exactly.

P(x) = exp(β Σ s_i s_j) / Z over pairs of neighbours, with s = 2x − 1 and free borders. The last W spins in
reading order, the frontier, separate what comes before them from what comes after. The sum over all that
comes after a position therefore depends on the 2^W states of the frontier alone, and is found by going back
from the last position (transfer matrices; Kramers & Wannier 1941). These sums give Z, and the exact
probability of each spin given those before it, from which images are drawn without any approximation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import log
from typing import Any, ClassVar

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.order import make_rng
from mdlstm_tk.data.task import SPLITS, WHOLE_BATCH, Batch, Split, Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array, Floats

BETA = 0.4  # just below 0.4407, where an infinite grid becomes ordered
MAX_TABLE = 2**25  # probabilities in memory: 128 MiB
MAX_BETA = 300.0  # e^(2 beta) is a float
EVALUATION_SAMPLES = {"validation": 512, "test": 4096}
STEP = 1e-4  # of β, to differentiate log Z


class Ising(Task):
    """The probability of images of the Ising model.

    Args:
        size: (H, W) of an image.
        beta: strength β of the coupling.

    Raises:
        InputError: `size` does not have two axes, or there are too many states to count, H · W · 2^W.
    """

    kind = "density"
    defaults: ClassVar[Mapping[str, Any]] = {
        "size": "8",
        "model": "pixel",
        "steps": 2000,
        "batch_size": 64,
        "hidden": 16,
        "lr": 0.02,
        "schedule": "cosine",
        "warmup": 50,
        "clip": 1.0,
        "average": 0.99,
        "evaluate_every": 500,
    }

    def __init__(self, size: tuple[int, ...], beta: float = BETA) -> None:
        if not abs(beta) <= MAX_BETA:
            raise InputError(f"beta must be a number from -{MAX_BETA} to {MAX_BETA}, got {beta}")
        if len(size) != 2 or min(size) < 1 or size[0] * size[1] > MAX_TABLE >> min(size[1], 25):
            raise InputError(
                "size must be H × W with H · W · 2^W of at most 2^25, so that all states of W spins can be "
                f"counted, such as 16x16, got {format_size(size)}"
            )
        self.height, self.width = size
        self.beta = beta
        self.spec = TaskSpec("ising", self.kind, 1, 1, size)

    def count(self, split: Split) -> int:
        return EVALUATION_SAMPLES.get(split, 0)

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        draws = range(step * count, (step + 1) * count)[shard]
        shape = self.height, self.width
        uniform = [make_rng(seed, SPLITS.index(split), draw).random(shape) for draw in draws]
        images = self._draw(np.array(uniform).reshape(-1, *shape))
        return Batch(images, images)

    def baselines(self, seed: int) -> dict[str, dict[str, float]]:
        """Return the test errors of the exact probabilities, which no network surpasses."""
        test = self.batch(seed, 0, self.count("test"), "test").x
        nats = -float(self.log_prob(test).mean())
        return {"exact": {"nats": nats, "bits_per_dim": nats / log(2) / test[0].size}}

    @property
    def entropy(self) -> float:
        """The entropy of an image in nats: the least that the mean of a model's nats can be."""
        above, below = (self._log_z(self.beta + step) for step in (STEP, -STEP))
        return self._log_z(self.beta) - self.beta * (above - below) / (2 * STEP)

    def log_prob(self, images: Array) -> Array:
        """The exact log-probability (N,) of images (N, H, W, 1), in nats."""
        spins = 2.0 * images[..., 0] - 1
        bonds = (spins[:, 1:] * spins[:, :-1]).sum((1, 2))
        bonds += (spins[:, :, 1:] * spins[:, :, :-1]).sum((1, 2))
        return np.asarray(self.beta * bonds - self._log_z(self.beta))

    def _draw(self, uniform: Array) -> Floats:
        """Images (N, H, W, 1), from a number in [0, 1) for each position (N, H, W)."""
        images = np.zeros((*uniform.shape, 1), np.float32)
        frontier = np.zeros(len(uniform), int)  # bit W − 1 − k is the latest spin of column k
        for position, p_white in enumerate(self._p_white):
            row, column = divmod(position, self.width)
            white = uniform[:, row, column] < p_white[frontier]
            images[:, row, column, 0] = white
            bit = 1 << (self.width - 1 - column)
            frontier = np.where(white, frontier | bit, frontier & ~bit)
        return images

    def _log_z(self, beta: float) -> float:
        return sum(log_scale for log_scale, _ in self._sweep(beta))

    @cached_property
    def _p_white(self) -> list[Floats]:
        """For each position in reading order the probability (2^W,) of white, given the frontier."""
        return [p_white for _, p_white in self._sweep(self.beta)][::-1]

    def _sweep(self, beta: float) -> Iterator[tuple[float, Floats]]:
        """Yield, from the last position back, a part of log Z and the probability (2^W,) of white.

        The axes are the spin left of the position (and those further left), the spin of its column, and the
        spins further right.
        """
        spin = np.array([-1.0, 1.0])
        after = np.ones(2**self.width)
        for row in reversed(range(self.height)):
            for column in reversed(range(self.width)):
                after = after.reshape(2**column, 2, -1)
                left = np.tile(spin, 2**column // 2) if column else np.zeros(1)
                above = spin if row else np.zeros(2)
                weights = after * np.exp(beta * left[:, None] * spin)[..., None]
                coupled = np.exp(beta * above[:, None] * spin)  # (above, the spin itself)
                black, white = (coupled[:, s, None] * weights[:, s, None, :] for s in range(2))
                before = black + white
                scale = float(before.max())
                yield float(np.log(scale)), (white / before).ravel().astype(np.float32)
                after = before / scale
