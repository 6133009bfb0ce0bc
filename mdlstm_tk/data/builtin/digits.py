"""Handwritten digits of the UCI repository, 8×8 pixels, from scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.order import HELD_OUT, make_rng
from mdlstm_tk.data.task import Dataset, Split, TaskSpec
from mdlstm_tk.errors import require
from mdlstm_tk.io import Array

SIDE = 8  # pixels of a digit
CLASSES = tuple("0123456789")
TEST_SHARE = 0.2  # of all digits
COMMON = {"hidden": 32, "lr": 0.01, "schedule": "cosine", "warmup": 100, "clip": 1.0, "evaluate_every": 500}


@cache
def load_digits() -> tuple[Array, Array]:
    """All 1797 images (N, 8, 8) in [0, 1], and their digits (N,)."""
    data: Any = require("sklearn.datasets", "data").load_digits()
    return data.images.astype(np.float32) / 16, data.target.astype(np.int64)


def stratified(labels: Array, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """True for a random share of each class, of at least one and never of all."""
    mask = np.zeros(len(labels), bool)
    for k, name in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == name)
        count = min(max(round(share * len(members)), 1), len(members) - 1) if share else 0
        mask[make_rng(seed, HELD_OUT, k).permutation(members)[:count]] = True
    return mask


def split_digits(seed: int, validation: float) -> dict[Split, Array]:
    """The indices of each split: 20 % for testing, of the rest a share for validation."""
    _, digits = load_digits()
    is_test = stratified(digits, TEST_SHARE, seed)
    others = np.flatnonzero(~is_test)
    held_out = stratified(digits[others], validation, seed + 1)
    return {"train": others[~held_out], "validation": others[held_out], "test": np.flatnonzero(is_test)}


def digit_digests(splits: Mapping[Split, Array]) -> dict[Split, list[str]]:
    """By which a run knows what another one was trained on: the number of each digit."""
    return {split: [f"{k:016x}" for k in indices.tolist()] for split, indices in splits.items()}


def mean_and_std(images: Array) -> tuple[tuple[float], tuple[float]]:
    """The mean and the deviation of images of one channel."""
    return (float(images.mean()),), (float(images.std()),)


class Digits(Dataset):
    """Classification of single digits: 80 % for training, 20 % for testing, a stratified split by seed.

    Args:
        kind: "classify".
        seed: of the split.
        validation: share of the 80 % to hold out; with 0 the last weights are the best.
        augment: strength of the distortion of training images.
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

    def __init__(self, kind: Any, seed: int, validation: float = 0.0, augment: float = 0.0) -> None:
        images, digits = load_digits()
        splits = split_digits(seed, validation)
        moments = mean_and_std(images[splits["train"]])
        spec = TaskSpec("digits", self.kind, 1, len(CLASSES), (SIDE, SIDE), CLASSES, *moments)
        sets = {split: [(images[k][..., None], digits[k]) for k in ks] for split, ks in splits.items()}
        super().__init__(spec, sets, kind, augment)
        self.digests = digit_digests(splits)

    def baselines(self, seed: int) -> dict[str, dict[str, float]]:
        """The test errors of a nearest neighbour and of an RBF-SVM on this split."""
        neighbors, svm = (require(f"sklearn.{name}", "data") for name in ("neighbors", "svm"))
        train, test = [*self.sets["train"], *self.sets["validation"]], self.sets["test"]
        (x, y), (x_test, y_test) = (
            (np.stack([image.ravel() for image, _ in some]), [digit for _, digit in some])
            for some in (train, test)
        )
        methods = {"1-NN": neighbors.KNeighborsClassifier(1), "RBF-SVM": svm.SVC()}
        return {
            name: {"error": 1 - float(each.fit(x, y).score(x_test, y_test))}
            for name, each in methods.items()
        }
