"""A task from a user's own data.

The path is a folder as `folders` describes, or an `.npz` file as `arrays` does. It may also be a folder
that contains one such folder per split, train/, val/ and test/, or train.npz, val.npz and test.npz; without
validation data a share of the training samples is held out. The data stay on disk; see `samples`.

Images have one channel unless a training image has a pixel with a colour. A file classes.txt beside images/
and masks/ may name the values of masks, one per line, beginning with value 0. What the values mean is
described in `masks`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk._util.regular_files import read_text
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data import arrays, folders
from mdlstm_tk.data.data_folder import DataFolder
from mdlstm_tk.data.data_summary import summarise
from mdlstm_tk.data.idx import find_idx, list_idx
from mdlstm_tk.data.images import Extents
from mdlstm_tk.data.samples import Conversion, LazySamples, MemoryBudget, image_conversion, unchanged
from mdlstm_tk.data.sampling import shape_order, stratified_mask
from mdlstm_tk.data.scan import Scan, channel_moments, scan_samples
from mdlstm_tk.data.spec import Kind, RawSample, Split, TaskSpec, UnusableSampleError
from mdlstm_tk.data.targets import Targets
from mdlstm_tk.data.task import DatasetTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}
MAX_NAMES_BYTES = 2**24  # of classes.txt
CACHE_BYTES = 2**28  # default for the memory that decoded images may take

_COMMON = {
    "size": "",
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
    # The state of "graves" may grow on images larger than the crops of the training, and masks go wrong.
    "segment": {**_COMMON, "augment": 1.0, "cell": "stable"},
    "transcribe": {**_COMMON, "augment": 1.0},
    "density": {**_COMMON, "model": "pixel", "layers": 2, "batch_size": 32},
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
        names: the names of the samples of each split.
        summary: lines of text that describe the data.
        skipped: name and reason of each sample that cannot be used.
        text_extents: of kind "transcribe", one entry per sample; otherwise empty.
        cache_bytes: what the samples that are kept in memory take at most.
    """

    names: Mapping[Split, Sequence[str]]
    summary: Sequence[str] = ()
    skipped: Sequence[str] = ()
    text_extents: Sequence[TextExtent] = ()
    cache_bytes: int = 0


@dataclass(frozen=True)
class _Scanned:
    """A usable sample, and what the first pass learned about it."""

    sample: RawSample
    scan: Scan


def read_data(
    path: Path,
    kind: Kind,
    validation: float,
    seed: int,
    augment: float,
    *,
    resize: Extents | None = None,
    crop: Extents | None = None,
    cache_bytes: int = CACHE_BYTES,
    levels: int = 2,
    held_out: Collection[str] | None = None,
) -> UserDataTask:
    """Read a file or folder as a task.

    Every sample is read once before training, to know extents, channels and classes.

    Args:
        path: the file or folder.
        kind: kind of the task.
        validation: share of the training samples to hold out if there is no validation data.
        seed: seed of the choice of held-out samples.
        augment: strength of the distortion of training images.
        resize: extents that images are resized to; masks take the nearest pixel.
        crop: extents of the part of each sample that is used, see `DatasetTask`.
        cache_bytes: how much of the data may be kept in memory.
        levels: levels of each channel, of kind "density".
        held_out: names of the samples to hold out instead of a random share.

    Raises:
        InputError: the path does not exist, has another layout, contains no usable sample, or cannot be
            resized or cropped.
        MissingExtraError: Pillow is not installed.
    """
    data = DataFolder(path)
    places = _find_places(data, kind)
    if crop is not None and kind == "transcribe":
        raise InputError(f"--crop {format_size(crop)} would cut texts off; use --resize instead")
    is_arrays = places["train"].suffix == ".npz"
    if resize is not None and is_arrays:
        raise InputError(
            f"--resize {format_size(resize)} is for images, but {places['train']} holds arrays, which are "
            "used as they are; leave it out, or use --crop"
        )
    skipped: list[str] = []
    splits = {split: list(_scan(place, kind, resize, skipped, data)) for split, place in places.items()}
    if not splits["train"]:
        reasons = [*skipped[:3], *filter(None, [data.note])]
        reason = f" ({'; '.join(reasons)})" if reasons else ""
        raise InputError(
            f"--data {path}: found no usable training samples{reason}; "
            f"--task {kind} expects {_formats(kind)}"
        )
    channels = _count_channels(splits, is_arrays, path)
    scans = [each.scan for samples in splits.values() for each in samples]
    try:
        targets = Targets.of(kind, scans, not is_arrays, resize, _read_names(data), levels)
    except InputError as error:
        raise InputError(f"--data {path}: {error}; --task {kind} expects {_formats(kind)}") from None
    if not splits.get("validation"):
        splits["train"], splits["validation"] = _hold_out(splits["train"], kind, validation, seed, held_out)
    extents = {split: _extents(each) for split, each in splits.items()}
    everything = np.concatenate(list(extents.values()))
    for split in splits.keys() - {"train"}:  # so that batches of an evaluation have similar samples, too
        order = np.argsort(shape_order(extents[split]), kind="stable")
        splits[split] = [splits[split][k] for k in order]
    mean, std = channel_moments([each.scan.moments for each in splits["train"]], channels)
    if kind == "density":
        mean, std = (), ()  # levels are not standardised
    target_mean, target_std = targets.moments([each.scan for each in splits["train"]])
    preprocessing = None if is_arrays else Preprocessing(channels, resize)
    largest = everything.max(axis=0)
    spec = TaskSpec(
        name=path.resolve().stem,
        kind=kind,
        channels=channels,
        outputs=targets.outputs,
        size=tuple(map(int, largest if crop is None else np.minimum(largest, crop))),
        classes=targets.classes,
        mean=mean,
        std=std,
        target_mean=target_mean,
        target_std=target_std,
        mask_values=targets.masks.values if targets.masks else (),
        mask_palette=targets.masks.palette if targets.masks else (),
        preprocessing=preprocessing,
    )
    budget = MemoryBudget(cache_bytes)
    convert_x = image_conversion(preprocessing) if preprocessing else Conversion(unchanged, unchanged)
    sets = {
        split: LazySamples([each.sample for each in samples], convert_x, targets.conversion, budget)
        for split, samples in splits.items()
    }
    task = UserDataTask(spec, sets, augment, extents=extents["train"], crop=crop)
    task.names = {split: [each.sample.name for each in samples] for split, samples in splits.items()}
    task.skipped = skipped
    labels = {split: [each.scan.target for each in samples] for split, samples in splits.items()}
    task.summary = summarise(data, places, spec, labels, everything, crop, targets.masks, skipped)
    if kind == "transcribe":
        task.text_extents = [_text_extent(each) for samples in splits.values() for each in samples]
    if not is_arrays:
        task.cache_bytes = min(cache_bytes, _decoded_bytes(everything, spec))
    return task


def _find_places(data: DataFolder, kind: Kind) -> dict[Split, Path]:
    """Return the place of each split; the path itself is the training split if it has no train/."""
    path = data.path
    if not path.exists():
        raise InputError(f"--data {path}: there is no such file or folder")
    if kind == "density" and path.is_dir() and (files := find_idx(data)):
        return files
    found: dict[Split, Path] = {}
    for split, names in SPLIT_NAMES.items():
        places = [path / f"{name}{suffix}" for name in names for suffix in ("", ".npz")]
        found.update((split, data.require(place)) for place in places if place.exists())
    found = found if "train" in found else {"train": path}
    for place in found.values():
        is_arrays = place.suffix == ".npz" and place.is_file()
        if is_arrays != (found["train"].suffix == ".npz") or not (is_arrays or place.is_dir()):
            raise InputError(f"--data {place} is not what --task {kind} expects: {_formats(kind)}")
    return found


def _formats(kind: Kind) -> str:
    """Describe the data that a kind of task can be read from."""
    return " or ".join(formats[kind] for formats in (folders.FORMATS, arrays.FORMATS))


def _scan(
    path: Path, kind: Kind, resize: Extents | None, skipped: list[str], data: DataFolder
) -> Iterator[_Scanned]:
    """Scan the samples of one file or folder; append name and reason of each unusable one to `skipped`."""
    if path.suffix == ".npz":
        samples = list(arrays.list_arrays(path, kind))
    elif kind == "density" and path.is_file():
        samples = list(list_idx(path))
    else:
        samples = list(folders.list_folder(path, kind, data))
    for sample, scan in zip(samples, scan_samples(samples, kind, resize), strict=True):
        if isinstance(scan, UnusableSampleError):
            skipped.append(f"{sample.name}: {scan}")
        else:
            yield _Scanned(sample, scan)


def _read_names(data: DataFolder) -> list[str]:
    """The lines of classes.txt, which names the values of masks."""
    file = data.require(data.path / "classes.txt")
    return read_text(file, MAX_NAMES_BYTES, "utf-8-sig").splitlines() if file.is_file() else []


def _count_channels(splits: Mapping[Split, Sequence[_Scanned]], is_arrays: bool, path: Path) -> int:
    """The channels of x: of images 3 if a training image has colours, else 1."""
    counts = {each.scan.moments.channels for samples in splits.values() for each in samples}
    if is_arrays and len(counts) > 1:
        raise InputError(
            f"--data {path}: x has {sorted(counts)} channels in different splits; expected one"
        )
    return max(each.scan.moments.channels for each in splits["train"])


def _extents(samples: Iterable[_Scanned]) -> Any:
    """(N, 2) the extents of the samples."""
    return np.array([each.scan.extents for each in samples], dtype=np.int64).reshape(-1, 2)


def _hold_out(
    samples: list[_Scanned], kind: Kind, share: float, seed: int, names: Collection[str] | None
) -> tuple[list[_Scanned], list[_Scanned]]:
    """Divide samples into those to train on and those to validate with, by name or stratified by class."""
    groups = [each.scan.target if kind == "classify" else "" for each in samples]
    if names is None:
        held_out = stratified_mask(groups, share, seed).tolist()
    else:
        held_out = [each.sample.name in names for each in samples]
    train = [sample for sample, out in zip(samples, held_out, strict=True) if not out]
    return train, [sample for sample, out in zip(samples, held_out, strict=True) if out]


def _text_extent(sample: _Scanned) -> TextExtent:
    text = sample.scan.target
    repeats = sum(a == b for a, b in pairwise(text))
    return TextExtent(sample.sample.name, sample.scan.extents[1], len(text) + repeats)


def _decoded_bytes(extents: Any, spec: TaskSpec) -> int:
    """Approximately the memory that all images and masks take as they are kept."""
    bytes_per_value = 4 if spec.preprocessing and spec.preprocessing.resize else 1
    per_position = spec.channels * bytes_per_value + (2 if spec.kind == "segment" else 0)
    return int(extents.prod(axis=1).sum()) * per_position
