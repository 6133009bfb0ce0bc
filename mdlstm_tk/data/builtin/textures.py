"""Segmentation of mosaics of photographs that come with scikit-image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.order import make_rng
from mdlstm_tk.data.task import SPLITS, WHOLE_BATCH, Batch, Split, Task, TaskSpec, collate
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import Array

# The photographs that show one surface throughout: class name → function of `skimage.data`.
PHOTOGRAPHS = {
    "brick": "brick",
    "grass": "grass",
    "gravel": "gravel",
    "moon": "moon",
    "stars": "hubble_deep_field",
    "tissue": "immunohistochemistry",
}
CLASSES = tuple(PHOTOGRAPHS)
# The columns of the photographs that each split cuts its pieces from, as shares of the width.
COLUMNS: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.6),
    "validation": (0.6, 0.78),
    "test": (0.78, 1.0),
}
EVALUATION_SAMPLES = {"validation": 64, "test": 256}
MIN_SURFACES, MAX_SURFACES = 2, 4  # in a mosaic


@cache
def _load_photographs() -> tuple[Array, ...]:
    """Return the photographs (H, W) in grey.

    The columns for training have mean 0 and variance 1 in each, so that brightness does not identify it.
    """
    data = require("skimage.data", "data")
    photographs = []
    for function in PHOTOGRAPHS.values():
        image = getattr(data, function)().astype(np.float32)
        grey = image.mean(axis=-1) if image.ndim == 3 else image
        seen = _columns(grey, "train")
        photographs.append((grey - seen.mean()) / seen.std())
    return tuple(photographs)


def _columns(photograph: Array, split: Split) -> Array:
    """The part of a photograph (H, W) that belongs to a split."""
    low, high = (int(share * photograph.shape[1]) for share in COLUMNS[split])
    return photograph[:, low:high]


class Textures(Task):
    """Mosaics of two to four surfaces, where each surface covers the pixels nearest to a random point.

    The splits use parts of the photographs that do not overlap: the left 60 % of the columns for training,
    the next 18 % for validation, the right 22 % for testing.

    Args:
        kind: "segment".
        size: (H, W) of a mosaic.
        augment: strength of random brightness and contrast of the pieces in training. Above 0, pieces are
            also flipped at random.

    Raises:
        InputError: `size` does not have two axes, or exceeds the smallest part of a photograph.
        MissingExtraError: scikit-image is not installed.
    """

    kind = "segment"
    defaults: ClassVar[Mapping[str, Any]] = {
        "size": "64",
        "steps": 5000,
        "batch_size": 16,
        "hidden": 32,
        "lr": 0.01,
        "cell": "leaky",
        "windows": "2,2",
        "schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "average": 0.995,
        "augment": 1.0,
        "evaluate_every": 500,
    }

    def __init__(self, kind: Any, size: tuple[int, ...], augment: float = 0.0) -> None:
        self.of_kind, self.augment = kind, augment
        self.photographs = {
            split: [_columns(photograph, split) for photograph in _load_photographs()] for split in COLUMNS
        }
        shapes = [photograph.shape for split in SPLITS for photograph in self.photographs[split]]
        limits = np.array(shapes).min(axis=0)
        if len(size) != 2 or (np.array(size) > limits).any():
            raise InputError(
                f"mosaics have at most {limits[0]}x{limits[1]} pixels, got {format_size(size)}; try "
                "--size 64"
            )
        self.size = size
        self.spec = TaskSpec("textures", self.kind, 1, len(CLASSES), size, CLASSES, (0.0,), (1.0,))

    def count(self, split: Split) -> int:
        return EVALUATION_SAMPLES.get(split, 0)

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        draws = range(step * count, (step + 1) * count)[shard]
        return collate(self.of_kind, [self._mosaic(seed, split, draw) for draw in draws])

    def _mosaic(self, seed: int, split: Split, draw: int) -> tuple[Array, Array]:
        """Return a mosaic (H, W, 1) and the class of each pixel (H, W)."""
        rng = make_rng(seed, SPLITS.index(split), draw)
        count = int(rng.integers(MIN_SURFACES, MAX_SURFACES + 1))
        surfaces = rng.permutation(len(CLASSES))[:count]
        points = rng.uniform(0, self.size, (count, 2))
        pixels = np.moveaxis(np.indices(self.size), 0, -1)[..., None, :]  # (H, W, 1, 2)
        nearest: npt.NDArray[np.int64] = np.square(pixels - points).sum(axis=-1).argmin(axis=-1)
        pieces = np.stack([self._crop(rng, self.photographs[split][surface]) for surface in surfaces])
        if self.augment and split == "train":
            contrast, brightness = self.augment * rng.standard_normal((2, count, 1, 1))
            pieces = pieces * np.exp(0.3 * contrast) + 0.3 * brightness
            for axis in (1, 2):
                flipped = rng.random(count) < 0.5
                pieces[flipped] = np.flip(pieces[flipped], axis)
        x = np.take_along_axis(pieces, nearest[None], axis=0)[0]
        return x[..., None], surfaces[nearest]

    def _crop(self, rng: np.random.Generator, image: Array) -> Array:
        """Return a random crop of the size of a mosaic."""
        top, left = (
            rng.integers(0, extent - crop + 1) for extent, crop in zip(image.shape, self.size, strict=True)
        )
        return image[top : top + self.size[0], left : left + self.size[1]]
