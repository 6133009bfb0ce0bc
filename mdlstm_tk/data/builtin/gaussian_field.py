"""Gaussian random fields, where each position predicts its right neighbour.

This is the second task of philipperemy/tensorflow-multi-dimensional-lstm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.order import make_rng
from mdlstm_tk.data.task import SPLITS, WHOLE_BATCH, Batch, Split, Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array

EVALUATION_SAMPLES = 256


class GaussianField(Task):
    """Fields of power spectrum k⁻⁴, k in cycles per field along each axis; periodic, mean 0.

    The target is the field shifted one column to the left, with zeros in the last column.

    Args:
        size: (H, W), at least 2×2.
        anisotropic: use only waves parallel to an axis, so that a field is the sum of a row and a column.

    Raises:
        InputError: `size` does not have two axes, or is too small.
    """

    kind = "grid"
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "raster",
        "size": "32",
        "steps": 1500,
        "hidden": 16,
        "lr": 0.02,
        "schedule": "cosine",
        "warmup": 50,
        "clip": 1.0,
        "evaluate_every": 100,
    }

    def __init__(self, size: tuple[int, ...], anisotropic: bool = False) -> None:
        if len(size) != 2 or min(size) < 2:
            raise InputError(
                f"Gaussian fields need a size of at least 2x2, got {format_size(size)}; try --size 32"
            )
        self.size, self.anisotropic = size, anisotropic
        std = float(np.sqrt(np.square(self.amplitude).mean()))  # of one position, by Parseval's theorem
        self.spec = TaskSpec(
            "gaussian-field-anisotropic" if anisotropic else "gaussian-field",
            self.kind,
            channels=1,
            outputs=1,
            size=size,
            mean=(0.0,),
            std=(std,),
            target_mean=(0.0,),
            target_std=(std,),
        )

    @cached_property
    def amplitude(self) -> npt.NDArray[np.float64]:
        """(H, W) the amplitude k⁻² of each wave."""
        rows, columns = (np.fft.fftfreq(extent, 1 / extent) for extent in self.size)
        k = np.hypot(rows[:, None], columns)
        amplitude = np.zeros(self.size)
        np.power(k, -2, out=amplitude, where=k > 0)
        if self.anisotropic:
            amplitude[1:, 1:] = 0
        return amplitude

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """mse / variance of the field; predicting 0 gives (W − 1)/W, as the last target column is 0."""
        count, _, _, errors, _ = sums["numbers"].sum(0)
        return {"unexplained": float(errors / count) / spec.target_std[0] ** 2}

    def count(self, split: Split) -> int:
        return EVALUATION_SAMPLES

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        rng = make_rng(seed, SPLITS.index(split), step)
        noise = rng.standard_normal((count, *self.size))[shard]
        x = np.fft.ifft2(np.fft.fft2(noise) * self.amplitude).real.astype(np.float32)
        y = np.roll(x, -1, axis=2)
        y[:, :, -1] = 0
        return Batch(x[..., None], y[..., None])
