"""The random-diagonal task of philipperemy/tensorflow-multi-dimensional-lstm.

A matrix holds noise in [0, 0.1) and two ones, the first at (r, s) and the second one step down the
diagonal at (r + 1, s + 1). The target is the matrix shifted one column to the left (the last column wraps
around), so its second one is at (r + 1, s). That is right below the first one of the input, so a network
that sees everything above and to the left of a position can predict it. The first one is unpredictable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.sampling import make_rng
from mdlstm_tk.data.spec import SPLITS, Batch, Floats, Metrics, Split, TaskSpec
from mdlstm_tk.data.task import MAX_EVALUATION_POSITIONS, WHOLE_BATCH, Task
from mdlstm_tk.errors import InputError

NOISE = 0.1  # upper bound of the noise
EVALUATION_SAMPLES = 64
LARGER_GRID = 4  # half of the validation samples are on grids this many times as large


@dataclass(frozen=True)
class DiagonalBatch(Batch):
    """Samples of the task.

    Attributes:
        x: (N, H, W, 1) matrices.
        y: (N, H, W, 1) targets, x shifted one column to the left.
        second: (N, 2) int64, (row, column) of the second one in the target.
    """

    second: npt.NDArray[np.int64] = field(kw_only=True)


class DiagonalTask(Task):
    """Random matrices with two ones on a diagonal.

    Validation measures larger matrices, too: a network that has learned the task on small ones may fail on
    those.

    Args:
        size: (H, W), at least 3×3.

    Raises:
        InputError: `size` does not have two axes, or is too small to hold the diagonal.
    """

    kind = "grid"
    summary = ("relevant: squared error at the target's second one, the one that can be predicted",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "size": "8",
        "lr": 0.04,
        "weight_decay": 0.5,  # keeps the state from drifting on grids larger than those trained on
    }

    def __init__(self, size: tuple[int, ...]) -> None:
        if len(size) != 2 or min(size) < 3:
            raise InputError(
                f"the diagonal task needs a size of at least 3x3, got {format_size(size)}; try --size 8"
            )
        self.size = size
        positions = prod(size)
        mean = (2 + (positions - 2) * NOISE / 2) / positions
        self.spec = TaskSpec("diagonal", self.kind, channels=1, outputs=1, size=size, target_mean=(mean,))

    @property
    def evaluation_batch(self) -> int:
        larger = LARGER_GRID**2 * prod(self.size)
        count = min(max(MAX_EVALUATION_POSITIONS // larger, 1), EVALUATION_SAMPLES)
        return 1 << (count.bit_length() - 1)  # a power of two, so that no batch needs grids of both sizes

    def count(self, split: Split) -> int:
        return 2 * EVALUATION_SAMPLES if split == "validation" else EVALUATION_SAMPLES

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> DiagonalBatch:
        rng = make_rng(seed, SPLITS.index(split), step)
        height, width = self.size
        if split == "validation" and step * count >= EVALUATION_SAMPLES:
            height, width = LARGER_GRID * height, LARGER_GRID * width
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
        """Return the relevant loss, the squared error at the second one of the target.

        On larger matrices it is named after their size, such as "relevant_32x32".
        """
        assert isinstance(batch, DiagonalBatch)
        samples, (row, column) = np.arange(len(batch.x)), batch.second.T
        error = np.square(prediction[samples, row, column] - batch.y[samples, row, column])
        grid = batch.x.shape[1:3]
        name = "relevant" if grid == self.size else f"relevant_{format_size(grid)}"
        return {name: (float(error.sum()), error.size)}

    def score(self, errors: Mapping[str, float]) -> float:
        """Return the geometric mean of the errors, so that a network must be right on all sizes.

        Only ratios of errors count in it. So networks that fail on all larger grids, such as
        one-dimensional ones, are still ranked by the grids that they are trained on.
        """
        return float(prod(errors.values()) ** (1 / len(errors)))
