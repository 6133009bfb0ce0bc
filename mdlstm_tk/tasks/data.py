"""People's own data: an `.npz`, or a folder of images. Read once, and kept in memory as it was.

    .npz                    x (N, H, W) or (N, H, W, C), y, and sizes (N, 2) if extents differ. y by kind:
                            grid (N, H, W) or (N, H, W, K) numbers, classify (N,) names or numbers, segment
                            (N, H, W) whole numbers, below 0 where unknown, transcribe (N,) texts
    classify                a folder for each class, with its images
    segment                 images/ and masks/ with files of the same names; a mask holds numbers of classes;
                            255 is unknown, unless 0 and 255 are all there is; classes.txt may name them
    transcribe              images, and labels.tsv: file, tab, text in each line

A folder may hold all of that once in train/ and once in val/ (and in test/), or train.npz and val.npz (and
test.npz). Otherwise a share is held out. Images come as numbers in [0, 1], in grey unless one has colours.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.sizes import show_size
from mdlstm_tk.tasks.base import UNLABELLED, Facts, Kind, Sample, SampleTask, Stream, stratified

Array = npt.NDArray[Any]
Raw = tuple[str, Array, Any]  # name, x (H, W, C) as read, and a class's name, a mask, a text, or numbers

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
FOLDERS: dict[Stream, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}
NAMED = 10  # skipped samples that a summary names
UNKNOWN = 255  # in masks

_COMMON = {
    "steps": 3000,
    "hidden": 32,
    "lr": 0.005,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup": 100,
    "clip": 1.0,
    "average": 0.99,
    "evaluate_every": 100,
    "patience": 10,
}
DEFAULTS: dict[Kind, Mapping[str, Any]] = {
    "grid": {**_COMMON, "directions": "all"},
    "classify": {**_COMMON, "batch_size": 32, "augment": 1.0},
    "segment": {**_COMMON, "augment": 1.0},
    "transcribe": {**_COMMON, "augment": 1.0},
}


class _Skip(Exception):
    """Why a sample cannot be used."""


class DataTask(SampleTask):
    """Samples that somebody gave.

    Attributes:
        summary: lines that say what was found.
        skipped: name and reason of each sample that cannot be used.
    """

    summary: list[str]
    skipped: list[str]


class _Pairs(Sequence[Sample]):
    """Samples kept as they were read, bytes as bytes; images come as numbers in [0, 1]."""

    def __init__(self, pairs: list[tuple[Array, Any]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self.pairs))[index]]
        x, y = self.pairs[index]
        return _unit(x), y


def _unit(x: Array) -> npt.NDArray[np.float32]:
    """Bytes of an image to [0, 1]; numbers stay."""
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)


def read_data(path: Path, kind: Kind, validation: float, seed: int, augment: float) -> DataTask:
    """The task that a file or folder holds.

    Args:
        path: of the file or folder.
        kind: of task.
        validation: share to hold out for validation if the data has no part for it.
        seed: of what is held out.
        augment: strength of distortion of training images.

    Raises:
        InputError: there is no such data, it has another layout, or nothing in it can be used.
        MissingExtraError: a package that reads images is not installed.
    """
    if not path.exists():
        raise InputError(f"--data {path}: there is no such file or folder")
    skipped: list[str] = []
    raw = {stream: list(_read(part, kind, skipped)) for stream, part in _parts(path).items()}
    if not raw.get("train"):
        reason = f" ({'; '.join(skipped[:3])})" if skipped else ""
        raise InputError(f"--data {path}: nothing to train on was found{reason}; {_expected(kind)}")
    if not raw.get("validation"):
        groups = [y if kind == "classify" else "" for _, _, y in raw["train"]]
        held = stratified(groups, validation, seed)
        raw["validation"] = [sample for sample, out in zip(raw["train"], held, strict=True) if out]
        raw["train"] = [sample for sample, out in zip(raw["train"], held, strict=True) if not out]
    everything = [sample for samples in raw.values() for sample in samples]
    channels = max(x.shape[-1] for _, x, _ in everything)
    outputs, classes, encode = _targets(kind, everything, path)
    sets: dict[Stream, _Pairs] = {}
    for stream, samples in raw.items():
        sets[stream] = _Pairs([(np.repeat(x, channels // x.shape[-1], -1), encode(y)) for _, x, y in samples])
    mean, std = _moments([x for x, _ in sets["train"]])
    target_mean, target_std = _moments([y for _, y in sets["train"]]) if kind == "grid" else ((), ())
    extents = np.array([x.shape[:2] for _, x, _ in everything])
    size = tuple(map(int, extents.max(axis=0)))
    facts = Facts(path.stem, kind, channels, outputs, size, classes, mean, std, target_mean, target_std)
    task = DataTask(facts, sets, augment)
    task.skipped = skipped
    task.summary = _summarise(path, facts, raw, extents, skipped)
    return task


def _parts(path: Path) -> dict[Stream, Path]:
    """Where each stream lies: all in one place, or in places of their own."""
    found: dict[Stream, Path] = {}
    for stream, names in FOLDERS.items():
        places = (path / f"{name}{suffix}" for name in names for suffix in ("", ".npz"))
        found |= {stream: place for place in places if place.exists()}
    return found if "train" in found else {"train": path}


def _read(path: Path, kind: Kind, skipped: list[str]) -> Iterator[Raw]:
    """All samples in one place. What cannot be used goes to `skipped`."""
    if path.is_file():
        if path.suffix != ".npz":
            raise InputError(f"--data {path} is no .npz file and no folder; {_expected(kind)}")
        yield from _read_arrays(path, kind, skipped)
        return
    listing = {"classify": _list_classes, "segment": _list_masks, "transcribe": _list_texts}
    if kind not in listing:
        raise InputError(f"--data {path} is a folder, and a grid task takes an .npz file with x and y")
    for file, target in listing[kind](path):
        try:
            x = _image(file, grey=kind == "transcribe")
            y = _mask(target, x.shape[:2]) if kind == "segment" else target
            if kind == "transcribe" and not y:
                raise _Skip("its text is empty")
        except _Skip as reason:
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
        raise InputError(f"--data {path} lacks x or y; {_expected(kind)}")
    x, y = arrays["x"], arrays["y"]
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.dtype.kind not in "buif" or x.size == 0:
        raise InputError(f"--data {path}: x is {x.dtype} {x.shape}, expected real numbers (N, H, W) or (N, H, W, C)")
    cells = kind in ("grid", "segment")
    y = y[..., None] if kind == "grid" and y.ndim == 3 else y
    wanted = {"grid": 4, "segment": 3}.get(kind, 1)
    kinds = {"grid": "buif", "segment": "bui", "classify": "buiUS", "transcribe": "US"}[kind]
    if y.ndim != wanted or y.dtype.kind not in kinds or len(y) != len(x) or (cells and y.shape[1:3] != x.shape[1:3]):
        raise InputError(f"--data {path}: y is {y.dtype} {y.shape} for x {x.shape}; {_expected(kind)}")
    sizes = arrays.get("sizes", np.full((len(x), 2), x.shape[1:3]))
    if sizes.shape != (len(x), 2) or sizes.dtype.kind not in "ui":
        raise InputError(f"--data {path}: sizes is {sizes.dtype} {sizes.shape}, expected whole numbers ({len(x)}, 2)")
    for index, (height, width) in enumerate(sizes.tolist()):
        one, target = x[index, :height, :width], y[index]
        target = target[:height, :width] if cells else target
        numbers = (one, target) if kind == "grid" else (one,)
        if not (0 < height <= x.shape[1] and 0 < width <= x.shape[2]):
            skipped.append(f"sample {index}: its size {height}x{width} does not fit into {x.shape[1]}x{x.shape[2]}")
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
        raise InputError(f"--data {path} lacks images/ or masks/; {_expected('segment')}")
    by_name = {mask.relative_to(masks).with_suffix(""): mask for mask in _images(masks)}
    for image in _images(images):
        yield image, by_name.get(image.relative_to(images).with_suffix(""))


def _list_texts(path: Path) -> Iterator[tuple[Path, str]]:
    table = path / "labels.tsv"
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"--data {path} lacks labels.tsv; {_expected('transcribe')}") from None
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
        raise _Skip("there is no such file") from None
    except (OSError, ValueError, SyntaxError, module.DecompressionBombError) as error:
        raise _Skip(f"it cannot be read as an image ({error})") from None


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
        raise _Skip("it has no mask of the same name")
    image = _open(file)
    mask = np.asarray(image)
    if mask.ndim != 2:
        raise _Skip(f"its mask has mode {image.mode}; it must have one channel, the number of the class")
    if mask.shape != extents:
        raise _Skip(f"its mask is {show_size(mask.shape)}, it is {show_size(extents)}")
    return mask


def _targets(kind: Kind, samples: Sequence[Raw], path: Path) -> tuple[int, tuple[str, ...], Callable[[Any], Any]]:
    """The number of outputs, the names of classes, and how targets become what a batch holds."""
    targets = [y for _, _, y in samples]
    if kind == "grid":
        return targets[0].shape[-1], (), lambda y: y.astype(np.float32)
    if kind == "transcribe":
        alphabet = tuple(sorted(set("".join(targets))))
        places = {character: k + 1 for k, character in enumerate(alphabet)}
        return len(alphabet) + 1, alphabet, lambda y: [places[character] for character in y]
    if kind == "classify":
        names = tuple(sorted(set(targets), key=_natural))
        return len(names), names, names.index
    values = sorted({int(v) for y in targets for v in np.unique(y) if v >= 0})
    if len(values) > 2 and UNKNOWN in values:
        values.remove(UNKNOWN)
    file = path / "classes.txt"
    named = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = tuple(named[v] if v < len(named) else str(v) for v in values)

    def encode(y: Array) -> Array:
        codes = np.full(y.shape, UNLABELLED, dtype=np.int16)
        for code, value in enumerate(values):
            codes[y == value] = code
        return codes

    return len(values), names, encode


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by value, before names."""
    return (0, float(name), name) if name.replace(".", "", 1).isdecimal() else (1, 0.0, name)


def _moments(arrays: Sequence[Array]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all cells of all samples; 1 where it is constant."""
    count = sum(array[..., 0].size for array in arrays)
    mean = sum(_unit(array).sum(axis=(0, 1), dtype=np.float64) for array in arrays) / count
    variance = sum(np.square(_unit(array) - mean).sum(axis=(0, 1)) for array in arrays) / count
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return tuple(map(float, mean)), tuple(map(float, std))


def _summarise(
    path: Path, facts: Facts, raw: Mapping[Stream, Sequence[Raw]], extents: Array, skipped: list[str]
) -> list[str]:
    counts = ", ".join(f"{len(samples)} for {stream}" for stream, samples in raw.items())
    smallest, largest = (tuple(map(int, f(axis=0))) for f in (extents.min, extents.max))
    size = show_size(largest) if smallest == largest else f"{show_size(smallest)} to {show_size(largest)}"
    colours = f"{facts.channels} channel" + "s" * (facts.channels > 1)
    lines = [f"{path}: {counts}; {size}, {colours}"]
    if facts.kind == "classify":
        found = Counter(y for samples in raw.values() for _, _, y in samples)
        lines.append(f"{len(facts.classes)} classes: " + ", ".join(f"{c} ({found[c]})" for c in facts.classes))
    elif facts.kind == "segment":
        lines.append(f"{len(facts.classes)} classes of cells: {', '.join(facts.classes)}")
    elif facts.kind == "transcribe":
        lengths = [len(y) for samples in raw.values() for _, _, y in samples]
        shown = "".join(facts.classes)
        lines.append(f"texts of {min(lengths)} to {max(lengths)} of {len(shown)} characters: {shown}")
    if skipped:
        lines.append(f"skipped {len(skipped)} that cannot be used:")
        lines += [f"  {line}" for line in skipped[:NAMED]]
        lines += [f"  and {len(skipped) - NAMED} more"] if len(skipped) > NAMED else []
    return lines


def _expected(kind: Kind) -> str:
    return {
        "grid": "a grid task takes an .npz with x and y (N, H, W) or (N, H, W, C)",
        "classify": "a classify task takes a folder for each class, or an .npz with x and y (N,)",
        "segment": "a segment task takes folders images/ and masks/, or an .npz with x and whole numbers y (N, H, W)",
        "transcribe": "a transcribe task takes images and a labels.tsv of file, tab, text, or an .npz with x and texts y (N,)",
    }[kind]
