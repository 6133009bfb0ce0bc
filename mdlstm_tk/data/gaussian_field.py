"""The seed's second task: Gaussian random fields, each cell to be told from those above and to its left."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.base import STREAMS, Batch, Floats, Split, Task, TaskSpec, generator
from mdlstm_tk.errors import InputError

JUDGED = 256  # samples that a network is judged by


class GaussianField(Task):
    """Fields of power spectrum k^-4, shifted one column to the left; the last column is 0.

    Args:
        size: (H, W), at least 2×2.
        anisotropic: only waves along one of the axes: a field is then the sum of a row and a column.

    Raises:
        InputError: `size` has another number of axes or is too small.
    """

    kind = "grid"
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "raster",
        "size": "32",
        "steps": 1500,
        "hidden": 16,
        "lr": 0.02,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup": 50,
        "clip": 1.0,
        "evaluate_every": 100,
    }

    def __init__(self, size: tuple[int, ...], anisotropic: bool = False) -> None:
        if len(size) != 2 or min(size) < 2:
            shown = "x".join(map(str, size))
            raise InputError(f"Gaussian fields need a size of at least 2x2, got {shown}; try --size 32")
        self.size, self.anisotropic = size, anisotropic
        std = float(np.sqrt(np.square(self.amplitude).mean()))  # of a cell, by Parseval
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
        """(H, W): of each wave, k^-2."""
        rows, columns = (np.fft.fftfreq(extent, 1 / extent) for extent in self.size)
        k = np.hypot(rows[:, None], columns)
        amplitude = np.zeros(self.size)
        np.power(k, -2, out=amplitude, where=k > 0)
        if self.anisotropic:
            amplitude[1:, 1:] = 0
        return amplitude

    def measure(self, prediction: Floats, batch: Batch) -> dict[str, tuple[float, float]]:
        """The squared error as a share of the variance."""
        total, count = super().measure(prediction, batch)["mse"]
        return {"unexplained": (total / self.spec.target_std[0] ** 2, count)}

    def count(self, split: Split) -> int:
        return JUDGED

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", part: slice = slice(None)
    ) -> Batch:
        rng = generator(seed, STREAMS.index(split), step)
        noise = rng.standard_normal((count, *self.size))[part]
        x = np.fft.ifft2(np.fft.fft2(noise) * self.amplitude).real.astype(np.float32)
        y = np.roll(x, -1, axis=2)
        y[:, :, -1] = 0
        return Batch(x[..., None], y[..., None])
