"""Handwritten digits of the UCI repository, 8×8, as scikit-learn brings them: alone, and in strings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.augment import distort
from mdlstm_tk.data.base import (
    STREAMS,
    Batch,
    Floats,
    Sample,
    SampleTask,
    Split,
    Task,
    TaskSpec,
    collate,
    generator,
    stratified,
)
from mdlstm_tk.errors import require

SIDE = 8
NAMES = tuple("0123456789")
TEST = 0.2  # of all samples
JUDGED = {"validation": 300, "test": 1000}  # strings
HEIGHT = 12  # of a string's image
SHORTEST, LONGEST = 3, 8  # strings
GAP = 3  # columns between two digits, at most
READING = {  # settings that suit digits alone and in strings
    "hidden": 32,
    "lr": 0.01,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup": 100,
    "clip": 1.0,
    "evaluate_every": 500,
}


@cache
def _load() -> tuple[Floats, npt.NDArray[np.int64]]:
    """All 1797 images (N, 8, 8) in [0, 1], and their digits."""
    data: Any = require("sklearn.datasets", "data").load_digits()
    return data.images.astype(np.float32) / 16, data.target.astype(np.int64)


def _split(seed: int, validation: float) -> dict[Split, npt.NDArray[np.int64]]:
    """Indices of each split: a stratified 20 % for testing, a share of the rest for validation."""
    _, digits = _load()
    test = stratified(digits, TEST, seed)
    rest = np.flatnonzero(~test)
    held = stratified(digits[rest], validation, seed + 1)
    return {"train": rest[~held], "validation": rest[held], "test": np.flatnonzero(test)}


class Digits(SampleTask):
    """Which digit is it? A stratified split by seed: 80 % to train on, 20 % to test with.

    Args:
        seed: of the split.
        validation: the share of the 80 % that is held out to choose the best checkpoint by; with 0 the
            last one is taken.
        augment: strength of distortion.
    """

    kind = "classify"
    defaults: ClassVar[Mapping[str, Any]] = {
        **READING,
        "size": "8",
        "steps": 4000,
        "batch_size": 64,
        "windows": "1,2",
        "augment": 1.0,
        "average": 0.99,
        "validation": 0.0,
    }

    def __init__(self, seed: int, validation: float = 0.0, augment: float = 0.0) -> None:
        images, digits = _load()
        split = _split(seed, validation)
        spec = TaskSpec(
            "digits", self.kind, 1, len(NAMES), (SIDE, SIDE), NAMES, *_scale(images[split["train"]])
        )
        samples: list[Sample] = [
            (image[..., None], digit) for image, digit in zip(images, digits, strict=True)
        ]
        sets = {split: [samples[index] for index in indices] for split, indices in split.items()}
        super().__init__(spec, sets, augment)

    def rivals(self) -> dict[str, float]:
        """The share of test samples that a nearest neighbour and an RBF-SVM get wrong on this split."""
        neighbors, svm = (require(f"sklearn.{name}", "data") for name in ("neighbors", "svm"))
        known = [*self.sets["train"], *self.sets["validation"]]
        x, y = np.stack([image.ravel() for image, _ in known]), [digit for _, digit in known]
        test = self.sets["test"]
        asked, truth = np.stack([image.ravel() for image, _ in test]), [digit for _, digit in test]
        methods = {"1-NN": neighbors.KNeighborsClassifier(1), "RBF-SVM": svm.SVC()}
        return {name: 1 - float(method.fit(x, y).score(asked, truth)) for name, method in methods.items()}


class DigitStrings(Task):
    """Which digits are they? Three to eight digits side by side, with gaps and up and down as it comes.

    The digits of the strings tested with are in no string trained on.

    Args:
        seed: of the split.
        validation: the share of the digits not tested with that is held out to choose the best
            checkpoint by.
        augment: strength of distortion of each digit.
    """

    kind = "transcribe"
    defaults: ClassVar[Mapping[str, Any]] = {
        **READING,
        "size": "12x88",
        "steps": 6000,
        "batch_size": 32,
        "augment": 0.6,
        "dropout": 0.2,
        "average": 0.995,
        "validation": 0.1,
    }

    def __init__(self, seed: int, validation: float = 0.1, augment: float = 0.0) -> None:
        self.images, self.digits = _load()
        self.split = _split(seed, validation)
        self.augment = augment
        size = (HEIGHT, LONGEST * (SIDE + GAP))
        scale = _scale(self.images[self.split["train"]])
        self.spec = TaskSpec("digit-strings", self.kind, 1, 1 + len(NAMES), size, NAMES, *scale)

    def count(self, split: Split) -> int:
        return JUDGED.get(split, 0) if len(self.split[split]) else 0

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", part: slice = slice(None)
    ) -> Batch:
        positions = range(step * count, (step + 1) * count)[part]
        return collate(self.kind, [self._string(seed, split, position) for position in positions])

    def _string(self, seed: int, split: Split, position: int) -> Sample:
        rng = generator(seed, STREAMS.index(split), position)
        chosen = rng.choice(self.split[split], rng.integers(SHORTEST, LONGEST + 1))
        gaps = rng.integers(0, GAP + 1, len(chosen))
        tops = rng.integers(0, HEIGHT - SIDE + 1, len(chosen))
        image = np.zeros((HEIGHT, SIDE * len(chosen) + int(gaps.sum()), 1), dtype=np.float32)
        left = 0
        for index, gap, top in zip(chosen, gaps, tops, strict=True):
            digit = self.images[index][..., None]
            if self.augment and split == "train":
                digit, _ = distort(digit, None, rng, self.augment, with_target=False)
            left += gap
            image[top : top + SIDE, left : left + SIDE] = digit
            left += SIDE
        return image, 1 + self.digits[chosen]


def _scale(images: Floats) -> tuple[tuple[float], tuple[float]]:
    """Mean and standard deviation of the one channel."""
    return (float(images.mean()),), (float(images.std()),)
