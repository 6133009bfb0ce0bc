"""Handwritten digits of the UCI repository, 8×8 pixels, from scikit-learn: single digits and strings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.sampling import stratified_mask
from mdlstm_tk.data.spec import Floats, Sample, SampleId, Split, TaskSpec
from mdlstm_tk.data.task import DatasetTask
from mdlstm_tk.errors import require

SIDE = 8  # pixels of a digit
CLASSES = tuple("0123456789")
TEST_SHARE = 0.2  # of all digits
COMMON = {
    "hidden": 32,
    "lr": 0.01,
    "schedule": "cosine",
    "warmup": 100,
    "clip": 1.0,
    "evaluate_every": 500,
}


@cache
def load_digits() -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return all 1797 images (N, 8, 8) in [0, 1], and their digits (N,)."""
    data: Any = require("sklearn.datasets", "data").load_digits()
    return data.images.astype(np.float32) / 16, data.target.astype(np.int64)


def split_digits(seed: int, validation: float) -> dict[Split, npt.NDArray[np.int64]]:
    """Return the indices of each split.

    A stratified 20 % are for testing, a stratified share `validation` of the rest for validation.
    """
    _, digits = load_digits()
    is_test = stratified_mask(digits, TEST_SHARE, seed)
    non_test = np.flatnonzero(~is_test)
    is_validation = stratified_mask(digits[non_test], validation, seed + 1)
    return {
        "train": non_test[~is_validation],
        "validation": non_test[is_validation],
        "test": np.flatnonzero(is_test),
    }


def digit_ids(splits: Mapping[Split, npt.NDArray[np.int64]]) -> dict[Split, list[SampleId]]:
    """Return the digits of each split, by which a run knows what another one was trained on."""
    return {
        split: [SampleId(f"{index:016x}", f"digit {index}") for index in indices.tolist()]
        for split, indices in splits.items()
    }


def mean_and_std(images: Floats) -> tuple[tuple[float], tuple[float]]:
    """Return mean and standard deviation of the one channel."""
    return (float(images.mean()),), (float(images.std()),)


class Digits(DatasetTask):
    """Classification of single digits: 80 % for training, 20 % for testing, a stratified split by seed.

    Args:
        seed: seed of the split.
        validation: share of the 80 % to hold out for choosing the best checkpoint; with 0 the last
            checkpoint is used.
        augment: strength of the distortion of training images.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    kind = "classify"
    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "size": "8",
        "steps": 4000,
        "batch_size": 64,
        "windows": "1,2",
        "augment": 1.0,
        "average": 0.99,
        "validation": 0.0,
    }

    def __init__(self, seed: int, validation: float = 0.0, augment: float = 0.0) -> None:
        images, digits = load_digits()
        splits = split_digits(seed, validation)
        mean, std = mean_and_std(images[splits["train"]])
        spec = TaskSpec("digits", self.kind, 1, len(CLASSES), (SIDE, SIDE), CLASSES, mean, std)
        samples: list[Sample] = [
            (image[..., None], digit) for image, digit in zip(images, digits, strict=True)
        ]
        sets = {split: [samples[index] for index in indices] for split, indices in splits.items()}
        super().__init__(spec, sets, augment)
        self.identities = digit_ids(splits)

    def baselines(self, seed: int, samples: int) -> dict[str, dict[str, float]]:
        """Return the test errors of a nearest neighbour and of an RBF-SVM on this split."""
        neighbors, svm = (require(f"sklearn.{name}", "data") for name in ("neighbors", "svm"))
        train = [*self.sets["train"], *self.sets["validation"]]
        test = self.sets["test"]
        x_train, x_test = (np.stack([image.ravel() for image, _ in split]) for split in (train, test))
        y_train, y_test = ([digit for _, digit in split] for split in (train, test))
        methods = {"1-NN": neighbors.KNeighborsClassifier(1), "RBF-SVM": svm.SVC()}
        return {
            name: {"error": 1 - float(method.fit(x_train, y_train).score(x_test, y_test))}
            for name, method in methods.items()
        }
