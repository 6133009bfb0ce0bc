"""The random-diagonal task of philipperemy/tensorflow-multi-dimensional-lstm.

A matrix holds noise in [0, 0.1) and two ones, the first at (r, s) and the second one step down the
diagonal at (r + 1, s + 1). The target is the matrix shifted one column to the left (the last column wraps
around), so its second one is at (r + 1, s). That is right below the first one of the input, so a network
that sees everything above and to the left of a position can predict it. The first one is unpredictable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.sampling import make_rng
from mdlstm_tk.data.spec import SPLITS, Batch, Floats, Metrics, Split, TaskSpec
from mdlstm_tk.data.task import WHOLE_BATCH, Task
from mdlstm_tk.errors import InputError

NOISE = 0.1  # upper bound of the noise
EVALUATION_SAMPLES = 64
LARGER_GRID = 4  # networks for any size are also scored on grids this many times as large


@dataclass(frozen=True)
class DiagonalBatch(Batch):
    """Samples of the task.

    Attributes:
        x: (N, H, W, 1) matrices.
        y: (N, H, W, 1) targets, x shifted one column to the left.
        second: (N, 2) int64, (row, column) of the second one in the target.
    """

    second: npt.NDArray[np.int64] = None  # type: ignore[assignment]


class DiagonalTask(Task):
    """Random matrices with two ones on a diagonal.

    Args:
        size: (H, W), at least 3×3.

    Raises:
        InputError: `size` does not have two axes, or is too small to hold the diagonal.
    """

    kind = "grid"

    def __init__(self, size: tuple[int, ...]) -> None:
        if len(size) != 2 or min(size) < 3:
            raise InputError(
                f"the diagonal task needs a size of at least 3x3, got {format_size(size)}; try --size 8"
            )
        self.size = size
        positions = size[0] * size[1]
        self.spec = TaskSpec(
            "diagonal",
            self.kind,
            channels=1,
            outputs=1,
            size=size,
            base_rate=(2 + (positions - 2) * NOISE / 2) / positions,
        )

    def count(self, split: Split) -> int:
        return EVALUATION_SAMPLES

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> DiagonalBatch:
        rng = make_rng(seed, SPLITS.index(split), step)
        height, width = self.size
        x = rng.uniform(0, NOISE, (count, height, width)).astype(np.float32)
        row, column = rng.integers(1, height - 1, count), rng.integers(1, width - 1, count)
        samples = np.arange(count)
        x[samples, row, column] = 1
        x[samples, row + 1, column + 1] = 1
        second = np.stack([row + 1, column], axis=1)
        x, second = x[shard], second[shard]
        y = np.concatenate([x[..., 1:], x[..., :1]], axis=2)  # faster than np.roll on small grids
        return DiagonalBatch(x[..., None], y[..., None], second=second)

    def measure(self, prediction: Floats, batch: Batch) -> Metrics:
        """Return the relevant loss, the squared error at the second one of the target."""
        assert isinstance(batch, DiagonalBatch)
        samples, (row, column) = np.arange(len(batch.x)), batch.second.T
        error = np.square(prediction[samples, row, column] - batch.y[samples, row, column])
        return {"relevant": (float(error.sum()), error.size)}

    def any_size_tasks(self) -> Sequence[Task]:
        return self, DiagonalTask(tuple(LARGER_GRID * extent for extent in self.size))
