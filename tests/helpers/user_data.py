"""Small folders of images for exports of runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.layouts import save

RNG = np.random.default_rng(0)


def write_classes(path: Path, counts: dict[str, int], extents: tuple[int, int] = (6, 9)) -> Path:
    """Write images whose brightness depends on their class."""
    for level, (name, count) in enumerate(counts.items()):
        for k in range(count):
            pixels = RNG.integers(60 * level, 60 * level + 40, extents)
            save(path / name / f"{k}.png", pixels.astype(np.uint8))
    return path


def write_masks(path: Path, count: int = 8) -> Path:
    """Write images of 5×7 and 5×8 with masks of classes 0 and 1."""
    for k in range(count):
        mask = RNG.integers(0, 2, (5, 7 + k % 2)).astype(np.uint8)
        save(path / "images" / f"{k}.png", 200 * mask)
        save(path / "masks" / f"{k}.png", mask)
    return path
