"""Small folders and files of user data that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def write_image(path: Path, array: np.ndarray) -> None:
    """Write an image with 8 bits per channel, or 16 if the array is uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array if array.dtype == np.uint16 else array.astype(np.uint8)).save(path)


def write_classes(path: Path, counts: dict[str, int], extents: tuple[int, int] = (6, 9)) -> Path:
    """Write images whose brightness depends on their class."""
    for level, (name, count) in enumerate(counts.items()):
        for k in range(count):
            write_image(path / name / f"{k}.png", RNG.integers(60 * level, 60 * level + 40, extents))
    return path


def write_masks(path: Path, count: int = 8) -> Path:
    """Write images of 5×7 and 5×8 with masks of classes 0 and 1."""
    for k in range(count):
        mask = RNG.integers(0, 2, (5, 7 + k % 2))
        write_image(path / "images" / f"{k}.png", 200 * mask)
        write_image(path / "masks" / f"{k}.png", mask)
    return path


def write_arrays(path: Path, kind: str, **replaced: Any) -> Path:
    """Write an .npz of ten samples, with some of its arrays replaced."""
    x = RNG.random((10, 5, 6)).astype(np.float32)
    y = {
        "grid": 100 + 10 * x,
        "classify": RNG.integers(0, 3, 10),
        "segment": (x > 0.5).astype(np.int64),
        "transcribe": np.array(["ab", "b", "abc"] * 3 + ["c"]),
    }[kind]
    np.savez(path, **{"x": x, "y": y, **replaced})
    return path
