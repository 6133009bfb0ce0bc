"""A task from people's own data: what was read, split, scaled and summarised.

A folder may hold all that `read` takes once in train/ and once in val/ (and in test/), or train.npz and
val.npz (and test.npz). Otherwise a share is held out for validation. In masks 255 means unknown, unless 0
and 255 are all there is; classes.txt may name their numbers, first line number 0. Images come as numbers
in [0, 1], in grey unless one has colours. All of it is kept in memory, bytes as bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np

from mdlstm_tk.data.base import UNLABELLED, Floats, Kind, Sample, SampleTask, Split, TaskSpec, stratified
from mdlstm_tk.data.images import EXPECTED, Array, Raw, read
from mdlstm_tk.errors import InputError
from mdlstm_tk.sizes import format_size

FOLDERS: dict[Split, tuple[str, ...]] = {
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


class DataTask(SampleTask):
    """Samples that somebody gave.

    Attributes:
        summary: lines that say what was found.
        skipped: name and reason of each sample that cannot be used.
        texts: of kind "transcribe", for each sample its name, its width, and how many columns CTC needs to
            spell its text: one for each character, and a blank between two that are equal.
    """

    summary: list[str]
    skipped: list[str]
    texts: list[tuple[str, int, int]]


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


def _unit(x: Array) -> Floats:
    """Bytes of an image to [0, 1]; numbers stay."""
    numbers = x.astype(np.float32)
    return numbers / np.float32(255) if x.dtype == np.uint8 else numbers


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
    raw = {split: list(read(part, kind, skipped)) for split, part in _parts(path).items()}
    if not raw.get("train"):
        reason = f" ({'; '.join(skipped[:3])})" if skipped else ""
        raise InputError(f"--data {path}: nothing to train on was found{reason}; {EXPECTED[kind]}")
    if not raw.get("validation"):
        groups = [y if kind == "classify" else "" for _, _, y in raw["train"]]
        held = stratified(groups, validation, seed)
        raw["validation"] = [sample for sample, out in zip(raw["train"], held, strict=True) if out]
        raw["train"] = [sample for sample, out in zip(raw["train"], held, strict=True) if not out]
    everything = [sample for samples in raw.values() for sample in samples]
    channels = max(x.shape[-1] for _, x, _ in everything)
    outputs, classes, encode = _targets(kind, everything, path)
    sets: dict[Split, _Pairs] = {}
    for split, samples in raw.items():
        sets[split] = _Pairs(
            [(np.repeat(x, channels // x.shape[-1], -1), encode(y)) for _, x, y in samples]
        )
    mean, std = _moments([x for x, _ in sets["train"]])
    target_mean, target_std = _moments([y for _, y in sets["train"]]) if kind == "grid" else ((), ())
    extents = np.array([x.shape[:2] for _, x, _ in everything])
    size = tuple(map(int, extents.max(axis=0)))
    spec = TaskSpec(
        path.resolve().stem, kind, channels, outputs, size, classes, mean, std, target_mean, target_std
    )
    task = DataTask(spec, sets, augment)
    task.skipped = skipped
    task.texts = []
    if kind == "transcribe":
        task.texts = [
            (name, x.shape[1], len(y) + sum(a == b for a, b in pairwise(y))) for name, x, y in everything
        ]
    task.summary = _summarise(path, spec, raw, extents, skipped)
    return task


def _parts(path: Path) -> dict[Split, Path]:
    """Where each split lies: all in one place, or in places of their own."""
    found: dict[Split, Path] = {}
    for split, names in FOLDERS.items():
        places = [path / f"{name}{suffix}" for name in names for suffix in ("", ".npz")]
        found.update((split, place) for place in places if place.exists())
    return found if "train" in found else {"train": path}


def _targets(
    kind: Kind, samples: Sequence[Raw], path: Path
) -> tuple[int, tuple[str, ...], Callable[[Any], Any]]:
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
    path: Path, spec: TaskSpec, raw: Mapping[Split, Sequence[Raw]], extents: Array, skipped: list[str]
) -> list[str]:
    counts = ", ".join(f"{len(samples)} for {split}" for split, samples in raw.items())
    smallest, largest = (tuple(map(int, f(axis=0))) for f in (extents.min, extents.max))
    size = (
        format_size(largest)
        if smallest == largest
        else f"{format_size(smallest)} to {format_size(largest)}"
    )
    colours = f"{spec.channels} channel" + "s" * (spec.channels > 1)
    lines = [f"{path}: {counts}; {size}, {colours}"]
    if spec.kind == "classify":
        found = Counter(y for samples in raw.values() for _, _, y in samples)
        lines.append(
            f"{len(spec.classes)} classes: " + ", ".join(f"{c} ({found[c]})" for c in spec.classes)
        )
    elif spec.kind == "segment":
        lines.append(f"{len(spec.classes)} classes of cells: {', '.join(spec.classes)}")
    elif spec.kind == "transcribe":
        lengths = [len(y) for samples in raw.values() for _, _, y in samples]
        shown = "".join(spec.classes)
        lines.append(f"texts of {min(lengths)} to {max(lengths)} of {len(shown)} characters: {shown}")
    if skipped:
        lines.append(f"skipped {len(skipped)} that cannot be used:")
        lines += [f"  {line}" for line in skipped[:NAMED]]
        lines += [f"  and {len(skipped) - NAMED} more"] if len(skipped) > NAMED else []
    return lines
