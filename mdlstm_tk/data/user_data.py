"""A task from a user's own data.

The path is a folder, as `folders` and the kind describe, or an `.npz` file as `arrays` does. It may be a
folder that contains one such folder per split, train/, val/ and test/, or train.npz, val.npz and test.npz;
else a file splits.json in it may divide the samples by their names. Without validation data a share of the
training samples is held out, of parts of files whole files. The data stay on disk; see `samples`.

Images have one channel unless a training image has a pixel with a colour. A file classes.txt in the folder,
or else beside images/ and masks/ of the training split, may name the values of masks, one per line,
beginning with value 0. What the values mean is described in `masks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.sizes import for_axes, format_size
from mdlstm_tk._util.text import counted
from mdlstm_tk.data import arrays, folders
from mdlstm_tk.data.samples import (
    LazySamples,
    MemoryBudget,
    Survey,
    channel_moments,
    describe_mixed_scales,
    describe_unresolved,
    survey_samples,
)
from mdlstm_tk.data.sampling import shape_order
from mdlstm_tk.data.spec import Array, Extents, RawSample, Resize, SampleId, Split, TaskSpec
from mdlstm_tk.data.splits import (
    SPLITS_FILE,
    describe_copies,
    describe_formats,
    divide,
    divide_by_use,
    find_sources,
    hold_out,
    in_order_of,
    is_npz,
    prefix_of,
    read_splits,
)
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.data.task import DatasetTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.kinds import training_of

if TYPE_CHECKING:
    from mdlstm_tk.kinds.training_kind import TrainingKind

CACHE_BYTES = 2**28  # default for the memory that decoded images may take
MAX_SKIPPED_SHOWN = 10  # skipped samples that a summary lists
MAX_COLOUR_CHANNELS = 4  # more look like an axis of the grid


class UserDataTask(DatasetTask):
    """A task over a user's own samples; see `read_data`.

    Attributes:
        groups: for each sample what it belongs to: a prefix in splits.json, else the file that it is
            a part of, else itself.
        skipped: name and reason of each sample that cannot be used.
        extents: those of the samples of all splits, each once.
        has_mixed_sizes: True if samples of any split differ in extents, or are cropped.
    """

    skipped: Sequence[str] = ()
    extents: npt.NDArray[np.int64] = np.empty((0, 0), np.int64)
    has_mixed_sizes: bool = False


def read_data(
    path: Path,
    kind: str,
    validation: float,
    seed: int,
    augment: float,
    *,
    resize: Resize = None,
    crop: Extents | None = None,
    cache_bytes: int = CACHE_BYTES,
    settings: Mapping[str, Any] = MappingProxyType({}),
    known: Mapping[Split, Sequence[SampleId]] | None = None,
    learned: Sequence[SampleId] | None = None,
) -> UserDataTask:
    """Read a file or folder as a task.

    Every sample is read once before training, to know extents, channels and classes.

    Args:
        path: the file or folder.
        kind: kind of the task.
        validation: share of the training samples to hold out if there is no validation data.
        seed: seed of the choice of held-out samples.
        augment: strength of the distortion of training images.
        resize: extents that images are resized to, see `Preprocessing`; masks take the nearest pixel.
        crop: extents of the part of each sample that is used, one for all axes or one for each, see
            `DatasetTask`.
        cache_bytes: how much of the data may be kept in memory.
        settings: of the run, by key of `TrainConfig`, for what the kind asks; its own if they are left out.
        known: the samples of a run, which keep their order, whatever they are called now. Those that it
            held out are held out again, with what they are parts of, instead of a random share.
        learned: those that the run has learned, if it is to be evaluated alone: samples are then divided by
            what it did with their content, and those that are new to it are tested.

    Raises:
        InputError: the path does not exist, has another layout, contains no usable sample, or cannot be
            resized or cropped.
        MissingExtraError: Pillow is not installed.
    """
    sources, notes = find_sources(path, kind)
    is_arrays = is_npz(sources["train"])
    training = training_of(kind)
    if crop is not None and not training.is_cropped:
        other = "" if is_arrays else ", or use --resize"
        raise InputError(f"crop (--crop) would cut {training.target_name}s off; leave it out{other}")
    if resize is not None and is_arrays:
        other = ", or use --crop" if training.is_cropped else ""
        raise InputError(
            f"resize (--resize) is for images, but {sources['train']} holds arrays, used as they are; "
            f"leave it out{other}"
        )
    prefixes, new_notes = read_splits(path, sources)
    notes += new_notes
    budget = MemoryBudget(cache_bytes)
    splits: dict[Split, list[Survey]] = {}
    skipped: list[str] = []
    for split, source in sources.items():
        samples, new_notes = _list_samples(source, kind, budget)
        prefix = f"{source.name}/" if source.is_dir() and source != path else ""
        notes += [f"{prefix}: {line}" for line in new_notes] if prefix else new_notes
        if source.is_dir():
            results = folders.count_results(source)
            notes += folders.left_out(f"results of mdlstm infer in {source}", results)
        splits[split], unusable = survey_samples(samples, kind, resize)
        skipped += [f"{prefix}{line}" for line in unusable]
    if prefixes is not None:
        splits, new_notes = divide(splits["train"], prefixes)
        notes += new_notes
    formats = f"a task of kind {kind} expects {describe_formats(kind)}"
    if not splits["train"]:
        shown = _in_brackets([*skipped[:3], *notes])
        raise InputError(f"{sources['train']}: no usable training samples{shown}; {formats}")
    for split, each in splits.items():
        if split != "train" and not each:
            place = sources.get(split, f"{split} in {SPLITS_FILE}")
            raise InputError(f"{place} has no usable samples; leave it out, or correct it; {formats}")
    surveys = [*splits["train"], *(s for split, each in splits.items() if split != "train" for s in each)]
    channels = max(survey.moments.channels for survey in splits["train"])
    ndim = len(surveys[0].extents)
    if is_arrays and any((s.moments.channels, len(s.extents)) != (channels, ndim) for s in surveys):
        raise InputError(
            f"{path}: x has other axes or channels in one split than in another; expected equal ones"
        )
    if ndim != 2 and training.is_planar:
        raise InputError(
            f"{path}: x has {counted(ndim, 'grid axis', 'grid axes')}, but kind {kind} needs two; {formats}"
        )
    crop = None if crop is None else for_axes(crop, ndim)
    if crop is not None and len(crop) != ndim:
        axes = counted(ndim, "axis", "axes")
        raise InputError(f"crop (--crop) has {counted(len(crop), 'extent')}, but samples have {axes}")
    preprocessing = None if is_arrays else Preprocessing(channels, resize)
    try:
        names = _read_mask_names((path, sources["train"]), training)
        options = TargetOptions(preprocessing, names, settings, len(splits["train"]))
        targets = training.fit([survey.target for survey in surveys], options)
    except InputError as error:
        shown = _in_brackets(skipped[:3])
        raise InputError(f"{path}: {error}{shown}; {formats}") from None
    to_fit = splits["train"]
    if known is not None and learned is not None:
        splits = divide_by_use(splits, known, learned)
    elif not splits.get("validation"):
        splits["train"], splits["validation"] = hold_out(splits["train"], kind, validation, seed, known)
        if not splits["train"]:
            raise InputError(
                f"{path}: all samples that are left were held out for validation when the run began; add "
                "samples to train on"
            )
    for split, each in splits.items():
        splits[split] = in_order_of(each, (known or {}).get(split, ()))
    extents = {
        split: np.array([survey.extents for survey in each], np.int64).reshape(-1, ndim)
        for split, each in splits.items()
    }
    for split in splits.keys() - {"train"}:  # so that batches of an evaluation have similar samples, too
        order = np.argsort(shape_order(extents[split]), kind="stable")
        splits[split] = [splits[split][k] for k in order]
    all_extents = np.concatenate(list(extents.values()))
    fitted = splits["train"] or to_fit
    strata, of_training = (
        {training.stratum(survey.target) for survey in each} for each in (surveys, fitted)
    )
    if absent := strata - of_training:
        notes.append(f"classes without samples to train on: {', '.join(sorted(absent))}")
    spec = _describe_task(path, kind, channels, fitted, targets, preprocessing, all_extents, crop)
    sets = {
        split: LazySamples([survey.sample for survey in each], preprocessing, targets.encode, budget)
        for split, each in splits.items()
    }
    of_batches = extents["train"] if splits["train"] else None
    task = UserDataTask(spec, sets, augment, extents=of_batches, crop=crop)
    task.names = {split: [survey.sample.name for survey in each] for split, each in splits.items()}
    task.identities = {split: [survey.identity for survey in each] for split, each in splits.items()}
    task.groups = {
        split: [prefix_of(survey.sample.group, prefixes or ()) or survey.sample.group for survey in each]
        for split, each in splits.items()
    }
    task.skipped = skipped
    task.extents = np.unique(all_extents if crop is None else np.minimum(all_extents, crop), axis=0)
    task.has_mixed_sizes = crop is not None or bool((all_extents != all_extents[0]).any())
    notes += describe_copies(splits)
    notes += describe_mixed_scales("image", surveys, [survey.moments for survey in surveys])
    moments = [survey.moments for survey in fitted]
    notes += describe_unresolved("x", moments, channels, not is_arrays)
    task.summary = _summarise(path, sources, task, all_extents, [*targets.lines, *notes])
    training.complete(task, {**splits, "train": fitted}, targets)
    if not is_arrays:
        in_use = cache_bytes - budget.bytes_left
        task.cache_bytes = max(in_use, min(cache_bytes, _decoded_bytes(all_extents, spec)))
    return task


def _in_brackets(reasons: Sequence[str]) -> str:
    """The part of an error message that lists reasons."""
    return f" ({'; '.join(reasons)})" if reasons else ""


def _list_samples(source: Path, kind: str, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
    """Return the samples of a file or folder, and notes for the user."""
    if is_npz(source):
        return arrays.list_arrays(source, training_of(kind))
    if source.is_file():
        return training_of(kind).list_file(source), []
    return training_of(kind).list_folder(source, budget)


def _read_mask_names(places: Sequence[Path], training: TrainingKind) -> list[str]:
    """Return the lines of classes.txt, which names the values of masks, in the first folder that has it; of
    other kinds it is not read."""
    files = [file for place in places if (file := place / "classes.txt").is_file()]
    return folders.read_lines(files[0]) if files and "classes.txt" in training.further_files else []


def _describe_task(
    path: Path,
    kind: str,
    channels: int,
    train: Sequence[Survey],
    targets: Targets,
    preprocessing: Preprocessing | None,
    extents: Array,
    crop: Extents | None,
) -> TaskSpec:
    moments = [survey.moments for survey in train]
    mean, std = channel_moments(moments, channels)
    x_range = min(each.low for each in moments), max(each.high for each in moments)
    largest = extents.max(axis=0)
    masks, training = targets.masks, training_of(kind)
    spec: dict[str, Any] = {"mean": mean, "std": std} if training.is_normalized else {}
    spec |= training.spec_fields(train, targets)
    return TaskSpec(
        name=path.resolve().stem,
        kind=kind,
        channels=channels,
        outputs=targets.outputs,
        size=tuple(map(int, largest if crop is None else np.minimum(largest, crop))),
        classes=targets.classes,
        mask_values=masks.values if masks else (),
        mask_palette=masks.palette if masks else (),
        preprocessing=preprocessing,
        x_range=(0.0, 1.0) if preprocessing and all(each.scaled for each in moments) else x_range,
        **spec,
    )


def _decoded_bytes(extents: Array, spec: TaskSpec) -> int:
    """Return approximately the memory that all decoded images and masks take."""
    bytes_per_value = 4 if spec.preprocessing and spec.preprocessing.resize else 1
    per_position = spec.channels * bytes_per_value + (2 if spec.mask_values else 0)
    return int(extents.prod(axis=1).sum()) * per_position


def _summarise(
    path: Path, sources: Mapping[Split, Path], task: UserDataTask, extents: Array, notes: Sequence[str]
) -> list[str]:
    """Describe the data in a few lines; `extents` (N, D) are those before samples are cropped."""
    spec = task.spec
    counts = ", ".join(f"{len(names)} for {split}" for split, names in task.names.items())
    smallest, largest = (format_size(f(axis=0).tolist()) for f in (extents.min, extents.max))
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    resized = "resized to " if spec.preprocessing and spec.preprocessing.resize else ""
    cropped = f" cropped to {format_size(task.crop)}" if task.crop else ""
    channels = counted(spec.channels, "channel")
    lines = [f"{path}: {counts}; {resized}{size}{cropped}, {channels}", *notes]
    if spec.preprocessing is None and extents.shape[1] == 2 and spec.channels > MAX_COLOUR_CHANNELS:
        lines.append(
            f"the last axis of x, of {spec.channels}, holds the channels; if it is an axis of volumes "
            "(N, D, H, W), store ndim=3 beside x"
        )
    for source in filter(Path.is_dir, sources.values()):
        used = [SPLITS_FILE] if source == path else []
        suffix_counts = sorted(folders.count_other_files(source, training_of(spec.kind), used).items())
        listing = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in suffix_counts)
        lines += [f"files of other types, left out: {listing}"] if suffix_counts else []
        if training_of(spec.kind).has_class_folders:
            empty = [f.name for f in folders.subfolders(source) if not folders.find_images(f)]
            lines += [f"folders without images, left out: {', '.join(empty)}"] if empty else []
    if task.skipped:
        lines.append(f"skipped {len(task.skipped)} that cannot be used:")
        lines += [f"  {line}" for line in task.skipped[:MAX_SKIPPED_SHOWN]]
        hidden = len(task.skipped) - MAX_SKIPPED_SHOWN
        lines += [f"  and {hidden} more"] if hidden > 0 else []
    return lines
