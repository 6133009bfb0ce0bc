"""The random-diagonal task of philipperemy/tensorflow-multi-dimensional-lstm.

A matrix holds noise in [0, 0.1) and two ones, at (r, s) and one step down the diagonal at
(r + 1, s + 1). The target is the matrix shifted one column to the left (the last column wraps), so the
second one is due at (r + 1, s): right below the first one, which a network that sees the whole top left
of a cell can know. The first one cannot be predicted by anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError

Floats = npt.NDArray[np.float32]
Stream = Literal["train", "validation"]

NOISE = 0.1


@dataclass(frozen=True)
class Batch:
    """Samples of the task.

    Attributes:
        x: (N, H, W, 1) matrices.
        y: (N, H, W, 1) targets, x shifted one column to the left.
        second: (N, 2) int64, (row, column) of the target's second one.
    """

    x: Floats
    y: Floats
    second: npt.NDArray[np.int64]


class DiagonalTask:
    """Samples by (seed, stream, step), so that any batch can be made again from its numbers.

    Args:
        size: (H, W), at least 3×3.

    Raises:
        InputError: `size` has another number of axes or is too small to hold the diagonal.
    """

    name = "diagonal"
    channels = 1
    outputs = 1

    def __init__(self, size: tuple[int, ...]) -> None:
        if len(size) != 2 or min(size) < 3:
            shown = "x".join(map(str, size))
            raise InputError(f"the diagonal task needs a size of at least 3x3, got {shown}; try --size 8")
        self.size = size

    @property
    def mean_target(self) -> float:
        """The mean of a target: what a network that knows nothing should predict."""
        cells = self.size[0] * self.size[1]
        return (2 + (cells - 2) * NOISE / 2) / cells

    def batch(self, seed: int, step: int, count: int, stream: Stream = "train") -> Batch:
        """`count` samples; the same arguments give the same samples."""
        entropy = (seed, ("train", "validation").index(stream), step)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        height, width = self.size
        x = rng.uniform(0, NOISE, (count, height, width)).astype(np.float32)
        row, column = rng.integers(1, height - 1, count), rng.integers(1, width - 1, count)
        samples = np.arange(count)
        x[samples, row, column] = 1
        x[samples, row + 1, column + 1] = 1
        second = np.stack([row + 1, column], axis=1)
        return Batch(x[..., None], np.roll(x, -1, axis=2)[..., None], second)
