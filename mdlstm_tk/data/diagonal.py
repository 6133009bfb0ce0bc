"""The random-diagonal task of philipperemy/tensorflow-multi-dimensional-lstm.

A matrix holds noise in [0, 0.1) and two ones, at (r, s) and one step down the diagonal at
(r + 1, s + 1). The target is the matrix shifted one column to the left (the last column wraps), so the
second one is due at (r + 1, s): right below the first one, which a network that sees the whole top left
of a cell can know. The first one cannot be predicted by anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.base import STREAMS, Batch, Floats, Split, Task, TaskSpec, generator
from mdlstm_tk.errors import InputError

NOISE = 0.1
JUDGED = 64  # samples that a network is judged by
LARGER = 4  # a network for any size is judged on this many times the training size, too


@dataclass(frozen=True)
class DiagonalBatch(Batch):
    """Samples of the task.

    Attributes:
        x: (N, H, W, 1) matrices.
        y: (N, H, W, 1) targets, x shifted one column to the left.
        second: (N, 2) int64, (row, column) of the target's second one.
    """

    second: npt.NDArray[np.int64] = None  # type: ignore[assignment]


class DiagonalTask(Task):
    """Samples by (seed, split, step).

    Args:
        size: (H, W), at least 3×3.

    Raises:
        InputError: `size` has another number of axes or is too small to hold the diagonal.
    """

    kind = "grid"

    def __init__(self, size: tuple[int, ...]) -> None:
        if len(size) != 2 or min(size) < 3:
            shown = "x".join(map(str, size))
            raise InputError(f"the diagonal task needs a size of at least 3x3, got {shown}; try --size 8")
        self.size = size
        cells = size[0] * size[1]
        self.spec = TaskSpec(
            "diagonal",
            self.kind,
            channels=1,
            outputs=1,
            size=size,
            base_rate=(2 + (cells - 2) * NOISE / 2) / cells,
        )

    def count(self, split: Split) -> int:
        return JUDGED

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", part: slice = slice(None)
    ) -> DiagonalBatch:
        rng = generator(seed, STREAMS.index(split), step)
        height, width = self.size
        x = rng.uniform(0, NOISE, (count, height, width)).astype(np.float32)
        row, column = rng.integers(1, height - 1, count), rng.integers(1, width - 1, count)
        samples = np.arange(count)
        x[samples, row, column] = 1
        x[samples, row + 1, column + 1] = 1
        second = np.stack([row + 1, column], axis=1)
        x, second = x[part], second[part]
        return DiagonalBatch(x[..., None], np.roll(x, -1, axis=2)[..., None], second=second)

    def measure(self, prediction: Floats, batch: Batch) -> dict[str, tuple[float, float]]:
        """The relevant loss: the squared error at the target's second one alone."""
        assert isinstance(batch, DiagonalBatch)
        samples, (row, column) = np.arange(len(batch.x)), batch.second.T
        error = np.square(prediction - batch.y)[samples, row, column]
        return {"relevant": (float(error.sum()), error.size)}

    def at_any_size(self) -> Sequence[Task]:
        return self, DiagonalTask(tuple(LARGER * extent for extent in self.size))
