"""The random-diagonal task of philipperemy/tensorflow-multi-dimensional-lstm.

A matrix holds noise in [0, 0.1) and two ones, the first at (r, s) and the second one step down the
diagonal at (r + 1, s + 1). The target is the matrix shifted one column to the left (the last column wraps
around), so its second one is at (r + 1, s). That is right below the first one of the input, so a network
that sees everything above and to the left of a position can predict it. The first one is unpredictable.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.order import make_rng
from mdlstm_tk.data.task import MAX_EVALUATION_POSITIONS, SPLITS, WHOLE_BATCH, Batch, Split, Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array

NOISE = 0.1  # upper bound of the noise
SAMPLES = 64  # of an evaluation
LARGER = 4  # half of the validation is on grids this many times as large


class DiagonalTask(Task):
    """Random matrices (H, W) with two ones on a diagonal, from 3×3 on.

    Validation measures larger matrices, too: a network that has learned the task on small ones may fail on
    those.
    """

    kind = "grid"
    defaults: ClassVar[Mapping[str, Any]] = {
        "size": "8",
        "lr": 0.04,
        "weight_decay": 0.5,  # keeps the state from drifting on grids larger than those trained on
    }

    def __init__(self, size: tuple[int, ...]) -> None:
        if len(size) != 2 or min(size) < 3:
            raise InputError(
                f"the diagonal needs a size of 3x3 or more, such as 8, got {format_size(size)}"
            )
        mean = (2 + (prod(size) - 2) * NOISE / 2) / prod(size)
        self.size = size
        self.spec = TaskSpec("diagonal", self.kind, channels=1, outputs=1, size=size, target_mean=(mean,))

    def count(self, split: Split) -> int:
        return 2 * SAMPLES if split == "validation" else SAMPLES

    @property
    def evaluation_batch(self) -> int:
        count = min(max(MAX_EVALUATION_POSITIONS // (LARGER**2 * prod(self.size)), 1), SAMPLES)
        return 1 << (count.bit_length() - 1)  # a power of two, so that no batch needs grids of both sizes

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        rng = make_rng(seed, SPLITS.index(split), step)
        height, width = self.size
        if split == "validation" and step * count >= SAMPLES:
            height, width = LARGER * height, LARGER * width
        x = rng.uniform(0, NOISE, (count, height, width)).astype(np.float32)
        row, column = rng.integers(1, height - 1, count), rng.integers(1, width - 1, count)
        samples = np.arange(count)
        x[samples, row, column] = 1
        x[samples, row + 1, column + 1] = 1
        x = x[shard]
        y = np.concatenate([x[..., 1:], x[..., :1]], axis=2)  # faster than np.roll on small grids
        return Batch(x[..., None], y[..., None])

    def sums(self, prediction: Any, batch: Any, spec: TaskSpec) -> dict[str, Any]:
        """The squared error at the second one of the target, by grid: "relevant", or "relevant_32x32"."""
        second = batch.y.flatten(1).flip(1).argmax(1)  # of the two ones, counted from the end
        error = (prediction - batch.y).square().flatten(1).flip(1).gather(1, second[:, None]).double()
        grid = tuple(batch.x.shape[1:3])
        name = "relevant" if grid == self.size else f"relevant_{format_size(grid)}"
        return {name: error.new_tensor([error.sum(), len(error)])}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The errors by grid. Weights are chosen by their geometric mean: a network must be right on all
        grids, and one that fails on all larger ones is still ranked by the small ones."""
        errors = {name: float(total / count) for name, (total, count) in sorted(sums.items())}
        mean = {"relevant_mean": prod(errors.values()) ** (1 / len(errors))}
        return {**mean, **errors} if len(errors) > 1 else errors
