"""Small data sets of users, one of each kind in each layout of files, from one generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("grid", "classify", "segment", "regress", "tag")
LAYOUTS = ("folder", "split folders", "splits.json", "arrays", "split arrays")
CASES = [(kind, layout) for kind in KINDS for layout in LAYOUTS]
VALUES = (0, 7, 200)  # of masks
COUNT = 24


def samples(kind: str, count: int = COUNT, seed: int = 0) -> list[tuple[np.ndarray, Any]]:
    """Images (H, W) of 8 bits, of two sizes, and their targets in a form of no file: a class, a mask, an
    image, numbers by name, or labels."""
    rng, found = np.random.default_rng(seed), list[tuple[np.ndarray, Any]]()
    for k in range(count):
        level = k % 3
        x = rng.integers(70 * level, 70 * level + 60, (6, 7 + k % 2)).astype(np.uint8)
        y: Any = {
            "classify": f"class {level}",
            "segment": np.array(VALUES, np.uint8)[(x // 70 + np.arange(x.shape[1]) // 4) % 3],
            "grid": 255 - x,
            "regress": {"mean": float(x.mean()), "width": float(x.shape[1])},
            "tag": [name for name, has in (("dark", level == 0), ("even", k % 2 == 0)) if has],
        }[kind]
        found.append((x, y))
    return found


def write(
    path: Path,
    kind: str,
    layout: str,
    content: Sequence[tuple[np.ndarray, Any]] | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write a data set, and return the path to train on.

    Args:
        path: an empty folder, or none.
        kind, layout: see `LAYOUTS`.
        content: see `samples`.
        names: of the files; in classify folders the class comes in front.
    """
    content = samples(kind) if content is None else content
    names = [f"a{k}" if k % 4 else f"b{k}" for k in range(len(content))] if names is None else names
    pairs = list(zip(names, content, strict=True))
    if layout == "arrays":
        return _write_arrays(path / "data.npz", kind, content)
    if layout == "split arrays":
        for split, part in (("train", content[:-8]), ("val", content[-8:-4]), ("test", content[-4:])):
            _write_arrays(path / f"{split}.npz", kind, part)
        return path
    if layout == "split folders":
        for split, part in (("train", pairs[:-8]), ("valid", pairs[-8:-4]), ("test", pairs[-4:])):
            _write_folder(path / split, kind, part)
        return path
    _write_folder(path, kind, pairs)
    if layout == "splits.json":
        (path / "splits.json").write_text('{"train": ["a"], "valid": ["b"]}')
    return path


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_folder(path: Path, kind: str, pairs: Sequence[tuple[str, tuple[np.ndarray, Any]]]) -> None:
    rows = {"regress": ["file,mean,width"], "tag": ["file,labels"]}.get(kind, [])
    for name, (x, y) in pairs:
        match kind:
            case "classify":
                save(path / y / f"{name}.png", x)
            case "segment" | "grid":
                save(path / "images" / f"{name}.png", x)
                save(path / {"segment": "masks", "grid": "targets"}[kind] / f"{name}.png", y)
            case "regress":
                save(path / f"{name}.png", x)
                rows.append(f"{name}.png,{y['mean']},{y['width']}")
            case "tag":
                save(path / f"{name}.png", x)
                rows.append(f"{name}.png,{';'.join(y)}")
    if rows:
        table = {"regress": "targets.csv", "tag": "tags.csv"}[kind]
        (path / table).write_text("\n".join(rows) + "\n")


def _write_arrays(file: Path, kind: str, content: Sequence[tuple[np.ndarray, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = np.max([x.shape for x, _ in content], axis=0)

    def padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
        whole = np.zeros((len(arrays), *shape), np.float32)
        for row, array in zip(whole, arrays, strict=True):
            row[: array.shape[0], : array.shape[1]] = array
        return whole

    xs, ys = [x / np.float32(255) for x, _ in content], [y for _, y in content]
    arrays: dict[str, Any] = {"x": padded(xs), "sizes": np.array([x.shape for x in xs])}
    arrays["y"] = {
        "classify": lambda: np.array(ys),
        "segment": lambda: padded(ys).astype(np.uint8),
        "grid": lambda: padded(ys) / 255,
        "regress": lambda: np.array([[*y.values()] for y in ys]),
        "tag": lambda: np.array([[name in y for name in ("dark", "even")] for y in ys], np.uint8),
    }[kind]()
    if kind in ("regress", "tag"):
        arrays["names"] = np.array({"regress": ["mean", "width"], "tag": ["dark", "even"]}[kind])
    np.savez(file, **arrays)
    return file
