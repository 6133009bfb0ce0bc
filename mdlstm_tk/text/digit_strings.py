"""Strings of handwritten digits; see `mdlstm_tk.data.builtin.digits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mdlstm_tk.data.augment import distort
from mdlstm_tk.data.builtin import digits
from mdlstm_tk.data.builtin.digits import CLASSES, SIDE
from mdlstm_tk.data.order import make_rng
from mdlstm_tk.data.task import SPLITS, WHOLE_BATCH, Batch, Split, Task, TaskSpec, collate
from mdlstm_tk.io import Array

EVALUATION_SAMPLES = {"validation": 300, "test": 1000}
HEIGHT = 12  # pixels
MIN_LENGTH, MAX_LENGTH = 3, 8  # digits of a string
MAX_GAP = 3  # columns between two digits


class DigitStrings(Task):
    """Transcription of three to eight digits side by side, with random gaps and heights. The digits of test
    strings appear in no training string. Arguments are those of `Digits`."""

    kind = "transcribe"
    defaults: ClassVar[Mapping[str, Any]] = {
        **digits.COMMON,
        "size": "12x88",
        "steps": 6000,
        "batch_size": 32,
        "augment": 0.6,
        "dropout": 0.2,
        "average": 0.995,
        "validation": 0.1,
    }

    def __init__(self, kind: Any, seed: int, validation: float = 0.1, augment: float = 0.0) -> None:
        self.of_kind, self.augment = kind, augment
        self.images, self.digits = digits.load_digits()
        self.indices = digits.split_digits(seed, validation)
        self.digests = digits.digit_digests(self.indices)
        size = (HEIGHT, MAX_LENGTH * (SIDE + MAX_GAP))
        moments = digits.mean_and_std(self.images[self.indices["train"]])
        outputs = 1 + len(CLASSES)
        self.spec = TaskSpec(
            "digit-strings", self.kind, 1, outputs, size, CLASSES, *moments, mixed_sizes=True
        )

    def count(self, split: Split) -> int:
        return EVALUATION_SAMPLES.get(split, 0) if len(self.indices[split]) else 0

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        draws = range(step * count, (step + 1) * count)[shard]
        return collate(self.of_kind, [self._string(seed, split, draw) for draw in draws])

    def _string(self, seed: int, split: Split, draw: int) -> tuple[Array, Array]:
        """Return the image (12, W, 1) of a string, and 1 + each of its digits."""
        rng = make_rng(seed, SPLITS.index(split), draw)
        indices = rng.choice(self.indices[split], rng.integers(MIN_LENGTH, MAX_LENGTH + 1))
        gaps = rng.integers(0, MAX_GAP + 1, len(indices))
        tops = rng.integers(0, HEIGHT - SIDE + 1, len(indices))
        image = np.zeros((HEIGHT, SIDE * len(indices) + int(gaps.sum()), 1), dtype=np.float32)
        left = 0
        for index, gap, top in zip(indices, gaps, tops, strict=True):
            digit = self.images[index][..., None]
            if self.augment and split == "train":
                digit, _ = distort([(digit, None)], [rng], self.augment, with_targets=False)[0]
            left += gap
            image[top : top + SIDE, left : left + SIDE] = digit
            left += SIDE
        return image, 1 + self.digits[indices]
