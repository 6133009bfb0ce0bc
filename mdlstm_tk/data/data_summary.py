"""The lines that describe a user's data before training starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.data_folder import DataFolder
from mdlstm_tk.data.folders import empty_classes
from mdlstm_tk.data.images import Extents, count_other_files
from mdlstm_tk.data.masks import UNKNOWN_VALUE, MaskClasses
from mdlstm_tk.data.spec import Array, Split, TaskSpec

MAX_SKIPPED_SHOWN = 10  # skipped samples that a summary lists


def summarise(
    data: DataFolder,
    places: Mapping[Split, Path],
    spec: TaskSpec,
    labels: Mapping[Split, Sequence[Any]],
    extents: Array,
    crop: Extents | None,
    masks: MaskClasses | None,
    skipped: Sequence[str],
) -> list[str]:
    """Describe the data in a few lines.

    Args:
        data: what the user gave.
        places: where each split was found.
        spec: description of the task.
        labels: the classes, texts or scans of the targets of each split.
        extents: (N, 2) of all samples, before they are cropped.
        crop: the crop, if any.
        masks: the classes of masks, of kind "segment".
        skipped: name and reason of each sample that cannot be used.
    """
    counts = ", ".join(f"{len(targets)} for {split}" for split, targets in labels.items())
    smallest, largest = (format_size(tuple(map(int, f(axis=0)))) for f in (extents.min, extents.max))
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    resized = "resized to " if spec.preprocessing and spec.preprocessing.resize else ""
    cropped = f" cropped to {format_size(crop)}" if crop else ""
    channels = f"{spec.channels} channel" + "s" * (spec.channels > 1)
    lines = [f"{data.path}: {counts}; {resized}{size}{cropped}, {channels}"]
    lines += _describe_targets(spec, [target for targets in labels.values() for target in targets])
    if masks and masks.has_unknown:
        lines.append(
            f"mask pixels of value {UNKNOWN_VALUE} are of unknown class and left out; "
            "if it is a class, store it as another value"
        )
    for place in places.values():
        if place.is_dir():
            lines += _describe_rest(data, place, spec.kind == "classify")
    lines += [data.note] if data.note else []
    if skipped:
        lines.append(f"skipped {len(skipped)} that cannot be used:")
        lines += [f"  {line}" for line in skipped[:MAX_SKIPPED_SHOWN]]
        hidden = len(skipped) - MAX_SKIPPED_SHOWN
        lines += [f"  and {hidden} more"] if hidden > 0 else []
    return lines


def _describe_targets(spec: TaskSpec, targets: Sequence[Any]) -> list[str]:
    if spec.kind == "classify":
        frequency = Counter(targets)
        listing = ", ".join(f"{name} ({frequency[name]})" for name in spec.classes)
        return [f"{len(spec.classes)} classes: {listing}"]
    if spec.kind == "segment":
        return [f"{len(spec.classes)} classes per position: {', '.join(spec.classes)}"]
    if spec.kind == "transcribe":
        lengths = [len(text) for text in targets]
        alphabet = "".join(spec.classes)
        return [f"texts of {min(lengths)} to {max(lengths)} characters from {len(alphabet)}: {alphabet}"]
    if spec.kind == "density":
        levels = "2 levels, as 0 or 1" if spec.outputs == 1 else f"{spec.outputs} levels"
        return [f"each value counts as the nearest of {levels}; choose others with --set levels=N"]
    return []


def _describe_rest(data: DataFolder, folder: Path, has_class_folders: bool) -> list[str]:
    """What lies in a folder and is not used."""
    others = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in
                       sorted(count_other_files(data, folder).items()))  # fmt: skip
    lines = [f"files of other types, left out: {others}"] if others else []
    if has_class_folders and (empty := empty_classes(folder, data)):
        lines.append(f"folders without images, left out: {', '.join(empty)}")
    return lines
