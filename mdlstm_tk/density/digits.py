"""The probability of handwritten digits; see `mdlstm_tk.data.builtin.digits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.builtin.digits import COMMON, SIDE, digit_digests, load_digits, split_digits
from mdlstm_tk.data.order import THRESHOLDS, make_rng
from mdlstm_tk.data.task import Dataset, TaskSpec

GREY_LEVELS = 17  # of a pixel


def binarise(images: npt.NDArray[Any], white: float = 1.0) -> npt.NDArray[np.uint8]:
    """Make images (N, H, W) in [0, white] black and white, 0 and 1, always in the same way.

    A pixel is white if it is brighter than the threshold of its image, which a generator with a fixed seed
    draws between 30 and 70 % of white: strokes are thin in some images and thick in others. They are
    never frayed, as they would be if each pixel were drawn by itself.
    """
    thresholds = (white * make_rng(0, THRESHOLDS).uniform(0.3, 0.7, len(images))).astype(np.float32)
    return (images > thresholds[:, None, None]).astype(np.uint8)


class DigitsDensity(Dataset):
    """The probability of single digits, in black and white or in 17 levels of grey, without their labels.

    See `binarise` for how images become black and white: once, by a fixed seed, so
    that an image is the same in all splits and runs.

    Args:
        kind: "density".
        seed: seed of the split, which is that of `Digits`.
        validation: share of the digits outside the test set that chooses the best checkpoint.
        binary: black and white.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    kind = "density"
    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "size": "8",
        "model": "pixel",
        "steps": 1000,
        "batch_size": 64,
        "layers": 2,
        "dropout": 0.15,
        "average": 0.99,
        "validation": 0.1,
        "evaluate_every": 50,
    }

    def __init__(self, kind: Any, seed: int, validation: float = 0.1, *, binary: bool = True) -> None:
        grey, _ = load_digits()
        images: Any = binarise(grey) if binary else grey
        name, outputs = ("digits-binary", 1) if binary else ("digits-grey", GREY_LEVELS)
        splits = split_digits(seed, validation)
        super().__init__(
            TaskSpec(name, self.kind, 1, outputs, (SIDE, SIDE)),
            {
                split: [(image, None) for image in images[indices, ..., None]]
                for split, indices in splits.items()
            },
            kind,
        )
        self.digests = digit_digests(splits)
