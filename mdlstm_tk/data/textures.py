"""Which surface is each pixel of? Mosaics of photographs that scikit-image has in its package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.base import STREAMS, Batch, Floats, Sample, Split, Task, TaskSpec, collate, generator
from mdlstm_tk.errors import InputError, require

# What of scikit-image's photographs is one surface throughout, by the name of the function that loads it.
PHOTOGRAPHS = {
    "brick": "brick",
    "grass": "grass",
    "gravel": "gravel",
    "moon": "moon",
    "stars": "hubble_deep_field",
    "tissue": "immunohistochemistry",
}
NAMES = tuple(PHOTOGRAPHS)
BOUNDS: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.6),
    "validation": (0.6, 0.78),
    "test": (0.78, 1.0),
}
JUDGED = {"validation": 64, "test": 256}  # mosaics
PIECES = (2, 4)  # surfaces in a mosaic, at least and at most


@cache
def _load() -> tuple[Floats, ...]:
    """The photographs, each in grey, with mean 0 and variance 1: brightness alone tells none of them."""
    data = require("skimage.data", "data")
    photographs = []
    for function in PHOTOGRAPHS.values():
        image = getattr(data, function)().astype(np.float32)
        grey = image.mean(axis=-1) if image.ndim == 3 else image
        photographs.append((grey - grey.mean()) / grey.std())
    return tuple(photographs)


class Textures(Task):
    """Mosaics of two to four surfaces, cut where one of as many random points is nearest.

    Streams have parts of the photographs of their own, that do not overlap: the left 60 % of the columns
    to train on, the right 22 % to test with.

    Args:
        size: (H, W) of a mosaic.
        augment: strength of random light and contrast of training pieces, which are then mirrored as well.

    Raises:
        InputError: no photograph has a part of that size.
    """

    kind = "segment"
    defaults: ClassVar[Mapping[str, Any]] = {
        "size": "64",
        "steps": 5000,
        "batch_size": 16,
        "hidden": 32,
        "lr": 0.01,
        "weight_decay": 0.0,
        "cell": "leaky",
        "windows": "2,2",
        "schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "average": 0.995,
        "augment": 1.0,
        "evaluate_every": 500,
    }

    def __init__(self, size: tuple[int, ...], augment: float = 0.0) -> None:
        self.augment = augment
        self.parts = {
            split: [p[:, int(low * p.shape[1]) : int(high * p.shape[1])] for p in _load()]
            for split, (low, high) in BOUNDS.items()
        }
        limits = np.array([part.shape for parts in self.parts.values() for part in parts]).min(axis=0)
        if len(size) != 2 or (np.array(size) > limits).any():
            shown = "x".join(map(str, size))
            raise InputError(
                f"mosaics can have up to {limits[0]}x{limits[1]} pixels, got {shown}; try --size 64"
            )
        self.size = size
        self.spec = TaskSpec("textures", self.kind, 1, len(NAMES), size, NAMES, (0.0,), (1.0,))

    def count(self, split: Split) -> int:
        return JUDGED.get(split, 0)

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", part: slice = slice(None)
    ) -> Batch:
        positions = range(step * count, (step + 1) * count)[part]
        return collate(self.kind, [self._mosaic(seed, split, position) for position in positions])

    def _mosaic(self, seed: int, split: Split, position: int) -> Sample:
        rng = generator(seed, STREAMS.index(split), position)
        count = int(rng.integers(PIECES[0], PIECES[1] + 1))
        surfaces = rng.permutation(len(NAMES))[:count]
        points = rng.uniform(0, self.size, (count, 2))
        places = np.moveaxis(np.indices(self.size), 0, -1)[..., None, :]
        nearest: npt.NDArray[np.int64] = np.square(places - points).sum(axis=-1).argmin(axis=-1)
        pieces = np.stack([self._crop(rng, self.parts[split][surface]) for surface in surfaces])
        if self.augment and split == "train":
            contrast, light = self.augment * rng.standard_normal((2, count, 1, 1))
            pieces = pieces * np.exp(0.3 * contrast) + 0.3 * light
            for axis in (1, 2):
                flipped = rng.random(count) < 0.5
                pieces[flipped] = np.flip(pieces[flipped], axis)
        x = np.take_along_axis(pieces, nearest[None], axis=0)[0]
        return x[..., None], surfaces[nearest]

    def _crop(self, rng: np.random.Generator, image: Floats) -> Floats:
        top, left = (
            rng.integers(0, have - want + 1) for have, want in zip(image.shape, self.size, strict=True)
        )
        return image[top : top + self.size[0], left : left + self.size[1]]
