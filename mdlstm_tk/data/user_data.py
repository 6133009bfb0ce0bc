"""A task from a user's own data.

The path is a folder as `folders` describes, or an `.npz` file as `arrays` does. It may also be a folder
that contains one such folder per split, train/, val/ and test/, or train.npz, val.npz and test.npz; without
validation data a share of the training samples is held out. All data is kept in memory, images as bytes.

In masks the value 255 means unknown, unless 0 and 255 are the only values. A file classes.txt beside
images/ and masks/ may name the values, one per line, beginning with value 0. Images become numbers in
[0, 1], with one channel unless one of them has colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from mdlstm_tk.data import arrays, folders
from mdlstm_tk.data.sampling import stratified_mask
from mdlstm_tk.data.spec import UNLABELLED, Array, Floats, Kind, RawSample, Sample, Split, TaskSpec
from mdlstm_tk.data.task import DatasetTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.sizes import format_size

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}
MAX_SKIPPED_SHOWN = 10  # skipped samples that a summary lists
UNKNOWN_MASK_VALUE = 255

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


class TextExtent(NamedTuple):
    """The room that the text of a sample has, and the room it needs.

    Attributes:
        name: name of the sample.
        width: columns of its image.
        ctc_steps: steps that CTC needs to spell the text: one per character, and a blank between two
            equal ones.
    """

    name: str
    width: int
    ctc_steps: int


class UserDataTask(DatasetTask):
    """A task over a user's own samples; see `read_data`.

    Attributes:
        summary: lines of text that describe the data.
        skipped: name and reason of each sample that cannot be used.
        text_extents: of kind "transcribe", one entry per sample; otherwise empty.
    """

    def __init__(
        self,
        spec: TaskSpec,
        sets: Mapping[Split, Sequence[Sample]],
        augment: float,
        *,
        summary: list[str],
        skipped: list[str],
        text_extents: list[TextExtent],
    ) -> None:
        super().__init__(spec, sets, augment)
        self.summary, self.skipped, self.text_extents = summary, skipped, text_extents


def read_data(path: Path, kind: Kind, validation: float, seed: int, augment: float) -> UserDataTask:
    """Read a file or folder as a task.

    Args:
        path: the file or folder.
        kind: kind of the task.
        validation: share of the training samples to hold out if there is no validation data.
        seed: seed of the choice of held-out samples.
        augment: strength of the distortion of training images.

    Raises:
        InputError: the path does not exist, has another layout, or contains no usable sample.
        MissingExtraError: Pillow is not installed.
    """
    if not path.exists():
        raise InputError(f"--data {path}: there is no such file or folder")
    skipped: list[str] = []
    raw = {split: list(_read(place, kind, skipped)) for split, place in _find_splits(path).items()}
    if not raw.get("train"):
        reason = f" ({'; '.join(skipped[:3])})" if skipped else ""
        raise InputError(
            f"--data {path}: found no usable training samples{reason}; "
            f"--task {kind} expects {_formats(kind)}"
        )
    if not raw.get("validation"):
        raw["train"], raw["validation"] = _hold_out(raw["train"], kind, validation, seed)
    all_samples = [sample for samples in raw.values() for sample in samples]
    channels = max(x.shape[-1] for _, x, _ in all_samples)
    outputs, classes, encode = _encode_targets(kind, all_samples, path)
    sets = {
        split: _ByteSamples([(np.repeat(x, channels // x.shape[-1], -1), encode(y)) for _, x, y in samples])
        for split, samples in raw.items()
    }
    mean, std = _channel_moments([x for x, _ in sets["train"]])
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    if kind == "grid":
        target_mean, target_std = _channel_moments([y for _, y in sets["train"]])
    extents = np.array([x.shape[:2] for _, x, _ in all_samples])
    size = tuple(map(int, extents.max(axis=0)))
    name = path.resolve().stem
    spec = TaskSpec(name, kind, channels, outputs, size, classes, mean, std, target_mean, target_std)
    return UserDataTask(
        spec,
        sets,
        augment,
        summary=_summarise(path, spec, raw, extents, skipped),
        skipped=skipped,
        text_extents=_text_extents(all_samples) if kind == "transcribe" else [],
    )


def _read(path: Path, kind: Kind, skipped: list[str]) -> Iterator[RawSample]:
    """Read the samples of one file or folder."""
    if path.suffix == ".npz" and path.is_file():
        return arrays.read_arrays(path, kind, skipped)
    if path.is_dir() and kind in folders.FORMATS:
        return folders.read_folder(path, kind, skipped)
    found = "is a folder" if path.is_dir() else "is not an .npz file"
    raise InputError(f"--data {path}: {found}; --task {kind} expects {_formats(kind)}")


def _formats(kind: Kind) -> str:
    """Describe the data that a kind of task can be read from."""
    return " or ".join(formats[kind] for formats in (folders.FORMATS, arrays.FORMATS) if kind in formats)


def _find_splits(path: Path) -> dict[Split, Path]:
    """Return the place of each split; the path itself is the training split if it has no train/."""
    found: dict[Split, Path] = {}
    for split, names in SPLIT_NAMES.items():
        places = [path / f"{name}{suffix}" for name in names for suffix in ("", ".npz")]
        found.update((split, place) for place in places if place.exists())
    return found if "train" in found else {"train": path}


def _hold_out(
    samples: list[RawSample], kind: Kind, share: float, seed: int
) -> tuple[list[RawSample], list[RawSample]]:
    """Divide samples into those to train on and those to validate with, stratified by class."""
    groups = [y if kind == "classify" else "" for _, _, y in samples]
    held_out = stratified_mask(groups, share, seed)
    train = [sample for sample, out in zip(samples, held_out, strict=True) if not out]
    return train, [sample for sample, out in zip(samples, held_out, strict=True) if out]


class _ByteSamples(Sequence[Sample]):
    """Samples whose images are stored as bytes and returned as numbers in [0, 1]."""

    def __init__(self, samples: list[tuple[Array, Any]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self.samples))[index]]
        x, y = self.samples[index]
        return _to_float(x), y


def _to_float(x: Array) -> Floats:
    """Scale the bytes of an image to [0, 1]; leave other numbers as they are."""
    numbers = x.astype(np.float32)
    return numbers / np.float32(255) if x.dtype == np.uint8 else numbers


def _encode_targets(
    kind: Kind, samples: Sequence[RawSample], path: Path
) -> tuple[int, tuple[str, ...], Callable[[Any], Any]]:
    """Return the number of outputs, the class names, and a function that encodes a target.

    The function returns what a sample of the task holds; see `Batch.y`.
    """
    targets = [y for _, _, y in samples]
    if kind == "grid":
        return targets[0].shape[-1], (), lambda y: y.astype(np.float32)
    if kind == "transcribe":
        alphabet = tuple(sorted(set("".join(targets))))
        codes = {character: k + 1 for k, character in enumerate(alphabet)}
        return len(alphabet) + 1, alphabet, lambda y: [codes[character] for character in y]
    if kind == "classify":
        classes = tuple(sorted(set(targets), key=_natural_order))
        return len(classes), classes, classes.index
    values = sorted({int(v) for y in targets for v in np.unique(y) if v >= 0})
    if len(values) > 2 and UNKNOWN_MASK_VALUE in values:
        values.remove(UNKNOWN_MASK_VALUE)
    names_file = path / "classes.txt"
    names = names_file.read_text(encoding="utf-8").splitlines() if names_file.is_file() else []
    classes = tuple(names[v] if v < len(names) else str(v) for v in values)

    def encode_mask(y: Array) -> Array:
        indices = np.full(y.shape, UNLABELLED, dtype=np.int16)
        for index, value in enumerate(values):
            indices[y == value] = index
        return indices

    return len(values), classes, encode_mask


def _text_extents(samples: Sequence[RawSample]) -> list[TextExtent]:
    return [
        TextExtent(name, x.shape[1], len(text) + sum(a == b for a, b in pairwise(text)))
        for name, x, text in samples
    ]


def _natural_order(name: str) -> tuple[int, float, str]:
    """Sort numbers by value, before all other names."""
    return (0, float(name), name) if name.replace(".", "", 1).isdecimal() else (1, 0.0, name)


def _channel_moments(samples: Sequence[Array]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all positions; std 1 where it is constant."""
    count = sum(sample[..., 0].size for sample in samples)
    mean = sum(_to_float(sample).sum(axis=(0, 1), dtype=np.float64) for sample in samples) / count
    variance = sum(np.square(_to_float(sample) - mean).sum(axis=(0, 1)) for sample in samples) / count
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return tuple(map(float, mean)), tuple(map(float, std))


def _summarise(
    path: Path, spec: TaskSpec, raw: Mapping[Split, Sequence[RawSample]], extents: Array, skipped: list[str]
) -> list[str]:
    """Describe the data in a few lines."""
    counts = ", ".join(f"{len(samples)} for {split}" for split, samples in raw.items())
    smallest, largest = (format_size(tuple(map(int, f(axis=0)))) for f in (extents.min, extents.max))
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    channels = f"{spec.channels} channel" + "s" * (spec.channels > 1)
    lines = [f"{path}: {counts}; {size}, {channels}"]
    targets = [y for samples in raw.values() for _, _, y in samples]
    if spec.kind == "classify":
        frequency = Counter(targets)
        listing = ", ".join(f"{name} ({frequency[name]})" for name in spec.classes)
        lines.append(f"{len(spec.classes)} classes: {listing}")
    elif spec.kind == "segment":
        lines.append(f"{len(spec.classes)} classes per position: {', '.join(spec.classes)}")
    elif spec.kind == "transcribe":
        lengths = [len(y) for y in targets]
        alphabet = "".join(spec.classes)
        lines.append(
            f"texts of {min(lengths)} to {max(lengths)} characters from {len(alphabet)}: {alphabet}"
        )
    if skipped:
        lines.append(f"skipped {len(skipped)} that cannot be used:")
        lines += [f"  {line}" for line in skipped[:MAX_SKIPPED_SHOWN]]
        hidden = len(skipped) - MAX_SKIPPED_SHOWN
        lines += [f"  and {hidden} more"] if hidden > 0 else []
    return lines
