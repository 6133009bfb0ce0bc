"""Reading people's own data: an `.npz`, or a folder of images.

.npz        x (N, H, W) or (N, H, W, C), y, and sizes (N, 2) if extents differ. y by kind:
            grid (N, H, W) or (N, H, W, K) numbers, classify (N,) names or numbers, segment
            (N, H, W) whole numbers, below 0 where unknown, transcribe (N,) texts
classify    a folder for each class, with its images
segment     images/ and masks/ with files of the same names; a mask holds numbers of classes
transcribe  images, and labels.tsv: file, tab, text in each line
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.base import Kind
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.sizes import format_size

Array = npt.NDArray[Any]
Raw = tuple[str, Array, Any]  # name, x (H, W, C) as read, and a class's name, a mask, a text, or numbers

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
EXPECTED: dict[Kind, str] = {
    "grid": "a grid task takes an .npz with x and y, each (N, H, W) or (N, H, W, C)",
    "classify": "a classify task takes a folder for each class, or an .npz with x and y (N,)",
    "segment": "a segment task takes images/ and masks/, or an .npz with x and whole numbers y (N, H, W)",
    "transcribe": "a transcribe task takes images and a labels.tsv of file, tab, text, "
    "or an .npz with x and texts y (N,)",
}


class UnusableError(Exception):
    """Why a sample cannot be used."""


def read(path: Path, kind: Kind, skipped: list[str]) -> Iterator[Raw]:
    """All samples in one place. What cannot be used goes to `skipped`."""
    if path.is_file():
        if path.suffix != ".npz":
            raise InputError(f"--data {path} is no .npz file and no folder; {EXPECTED[kind]}")
        yield from _read_arrays(path, kind, skipped)
        return
    listing: dict[Kind, Callable[[Path], Iterator[tuple[Path, Any]]]] = {
        "classify": _list_classes,
        "segment": _list_masks,
        "transcribe": _list_texts,
    }
    if kind not in listing:
        raise InputError(f"--data {path} is a folder; {EXPECTED[kind]}")
    for file, target in listing[kind](path):
        try:
            x = _image(file, grey=kind == "transcribe")
            y = _mask(target, x.shape[:2]) if kind == "segment" else target
            if kind == "transcribe" and not y:
                raise UnusableError("its text is empty")
        except UnusableError as reason:
            skipped.append(f"{file.relative_to(path)}: {reason}")
        else:
            yield str(file.relative_to(path)), x, y


def _read_arrays(path: Path, kind: Kind, skipped: list[str]) -> Iterator[Raw]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y", "sizes") if name in file}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"--data {path} cannot be read as .npz of numbers and texts: {error}") from None
    if not {"x", "y"} <= set(arrays):
        raise InputError(f"--data {path} lacks x or y; {EXPECTED[kind]}")
    x, y = arrays["x"], arrays["y"]
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.dtype.kind not in "buif" or x.size == 0:
        raise InputError(
            f"--data {path}: x is {x.dtype} {x.shape}, expected real numbers (N, H, W) or (N, H, W, C)"
        )
    cells = kind in ("grid", "segment")
    y = y[..., None] if kind == "grid" and y.ndim == 3 else y
    wanted = {"grid": 4, "segment": 3}.get(kind, 1)
    kinds = {"grid": "buif", "segment": "bui", "classify": "buiUS", "transcribe": "US"}[kind]
    if (
        y.ndim != wanted
        or y.dtype.kind not in kinds
        or len(y) != len(x)
        or (cells and y.shape[1:3] != x.shape[1:3])
    ):
        raise InputError(f"--data {path}: y is {y.dtype} {y.shape} for x {x.shape}; {EXPECTED[kind]}")
    sizes = arrays.get("sizes", np.full((len(x), 2), x.shape[1:3]))
    if sizes.shape != (len(x), 2) or sizes.dtype.kind not in "ui":
        raise InputError(
            f"--data {path}: sizes is {sizes.dtype} {sizes.shape}, expected whole numbers ({len(x)}, 2)"
        )
    for index, (height, width) in enumerate(sizes.tolist()):
        one, target = x[index, :height, :width], y[index]
        target = target[:height, :width] if cells else target
        numbers = (one, target) if kind == "grid" else (one,)
        if not (0 < height <= x.shape[1] and 0 < width <= x.shape[2]):
            skipped.append(
                f"sample {index}: its size {height}x{width} does not fit into {x.shape[1]}x{x.shape[2]}"
            )
        elif not all(np.isfinite(values.astype(np.float32)).all() for values in numbers):
            skipped.append(f"sample {index}: it holds NaN or infinite values")
        elif kind == "transcribe" and not str(target):
            skipped.append(f"sample {index}: its text is empty")
        else:
            # numbers are used as they are: what is given to the exported model later is not scaled either
            yield f"sample {index}", one.astype(np.float32), str(target) if not cells else target


def _list_classes(path: Path) -> Iterator[tuple[Path, str]]:
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        yield from ((file, folder.name) for file in _images(folder))


def _list_masks(path: Path) -> Iterator[tuple[Path, Path | None]]:
    images, masks = path / "images", path / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise InputError(f"--data {path} lacks images/ or masks/; {EXPECTED['segment']}")
    by_name = {mask.relative_to(masks).with_suffix(""): mask for mask in _images(masks)}
    for image in _images(images):
        yield image, by_name.get(image.relative_to(images).with_suffix(""))


def _list_texts(path: Path) -> Iterator[tuple[Path, str]]:
    table = path / "labels.tsv"
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"--data {path} lacks labels.tsv; {EXPECTED['transcribe']}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {table}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab:
            raise InputError(f"{table}, line {number} has no tab; each line is: file, tab, text")
        yield path / name, text


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def _open(file: Path) -> Any:
    """A decoded image (Pillow)."""
    module = require("PIL.Image", "data")
    try:
        with module.open(file) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UnusableError("there is no such file") from None
    except (OSError, ValueError, SyntaxError, module.DecompressionBombError) as error:
        raise UnusableError(f"it cannot be read as an image ({error})") from None


def _image(file: Path, grey: bool) -> Array:
    """(H, W, 1) or (H, W, 3): bytes, or numbers in [0, 1] if it has more than eight bits."""
    image = _open(file)
    if image.mode.startswith(("I", "F")):
        return np.asarray(image, dtype=np.float32)[..., None] / 65535
    plain = image.mode in ("1", "L", "LA")
    array = np.asarray(image.convert("L" if plain or grey else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def _mask(file: Path | None, extents: tuple[int, ...]) -> Array:
    """(H, W) numbers of classes."""
    if file is None:
        raise UnusableError("it has no mask of the same name")
    image = _open(file)
    mask = np.asarray(image)
    if mask.ndim != 2:
        raise UnusableError(
            f"its mask has mode {image.mode}; it must have one channel, the number of the class"
        )
    if mask.shape != extents:
        raise UnusableError(f"its mask is {format_size(mask.shape)}, it is {format_size(extents)}")
    return mask
