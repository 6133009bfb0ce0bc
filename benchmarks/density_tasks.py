"""Two tasks on which docs/density.md compares density models: pictures of clothes, and the Ising model.

    mdlstm --import benchmarks/density_tasks.py train --task fashion
    mdlstm --import benchmarks/density_tasks.py train --task fashion --data MNIST/raw
    mdlstm --import benchmarks/density_tasks.py train --task ising --size 16

The clothes are Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), 28×28, in black and white. MNIST and its other
successors come in files of the same format, and can replace it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cached_property, lru_cache
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.data import SPLITS, Batch, Dataset, Split, Task, TaskSpec
from mdlstm_tk.data.order import make_rng
from mdlstm_tk.data.task import WHOLE_BATCH
from mdlstm_tk.density.digits import binarise
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array, Floats
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import TrainConfig, register_task

CLOTHES = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
BETA = 0.4  # just below 0.4407, where an infinite grid becomes ordered
MAX_TABLE = 2**25  # probabilities in memory: 128 MiB
EVALUATION_SAMPLES = {"validation": 512, "test": 4096}
STEP = 1e-4  # of β, to differentiate log Z
DEFAULTS: dict[str, Any] = {
    "model": "pixel",
    "lr": 0.02,
    "schedule": "cosine",
    "clip": 1.0,
    "average": 0.99,
    "evaluate_every": 500,
}
OF_CLOTHES = {"steps": 4000, "batch_size": 32, "hidden": 52, "warmup": 100, "validation": 0.02}
OF_ISING = {"size": "8", "steps": 2000, "batch_size": 64, "hidden": 16, "warmup": 50}


def read_idx(path: Path) -> Any:
    """The bytes of an IDX file, compressed or not: images (N, H, W), or labels (N,)."""
    content = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


@lru_cache(maxsize=2)
def load_clothes(folder: Path) -> tuple[Any, Any]:
    """The pictures (N, H, W) for training and those for testing, in black and white."""
    try:
        images = [read_idx(folder / f"{name}-images-idx3-ubyte") for name in ("train", "t10k")]
    except OSError as error:
        where = "install Debian's package dataset-fashion-mnist, or give --data FOLDER with such files"
        raise InputError(f"cannot read {error.filename}; {where}") from None
    return binarise(images[0], 255), binarise(images[1], 255)


@register_task("fashion", kind="density", defaults=DEFAULTS | OF_CLOTHES)
def fashion(config: TrainConfig) -> Task:
    """The probability of pictures of clothes; the same part of the training pictures, for every seed,
    chooses the best checkpoint."""
    train, test = load_clothes(Path(config.data or CLOTHES))
    order = make_rng(0, 2).permutation(len(train))
    count = round(config.validation * len(train))
    images = {"train": train[order[count:]], "validation": train[order[:count]], "test": test}
    sets: Any = {split: [(image[..., None], None) for image in each] for split, each in images.items()}
    return Dataset(TaskSpec("fashion", "density", 1, 1, train.shape[1:]), sets, kind_named("density"))


@register_task("ising", kind="density", defaults=DEFAULTS | OF_ISING)
def ising(config: TrainConfig) -> Task:
    return Ising(config.grid)


class Ising(Task):
    """The Ising model of a magnet: images whose probability, and entropy, are known exactly.

    P(x) = exp(β Σ s_i s_j) / Z over pairs of neighbours, with s = 2x − 1 and free borders. The last W spins
    in reading order, the frontier, separate what comes before them from what comes after. The sum over all
    that comes after a position therefore depends on the 2^W states of the frontier alone, and is found by
    going back from the last position (transfer matrices; Kramers & Wannier 1941). These sums give Z, and
    the exact probability of each spin given those before it, from which images are drawn.

    Args:
        size: (H, W) of an image.
        beta: strength β of the coupling.

    Raises:
        InputError: there are too many states to count.
    """

    kind = "density"

    def __init__(self, size: tuple[int, ...], beta: float = BETA) -> None:
        self.height, self.width = size
        if self.height * self.width > MAX_TABLE >> min(self.width, 25):
            raise InputError("size (--size) must be H × W with H · W · 2^W of at most 2^25, such as 16x16")
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
        """The test errors of the exact probabilities, which no network surpasses."""
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
