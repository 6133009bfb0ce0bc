"""A task from a user's own files."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.sizes import for_axes, format_size, parse_resize, parse_size
from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.data.files import is_npz
from mdlstm_tk.data.order import shape_order
from mdlstm_tk.data.scan import Samples, Scanned, mean_and_std, scan
from mdlstm_tk.data.splits import divide, sources
from mdlstm_tk.data.task import Dataset, Split, TaskSpec, fingerprint
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing

log = logging.getLogger("mdlstm_tk.data")


def read_data(
    config: Any, kind: Any, learned: Collection[str] = (), spec: TaskSpec | None = None
) -> Dataset:
    """The task of the files at `config.data`.

    Every sample is read once, for its extents, its channels and its target; then again when a batch needs
    it, unless there was room to keep it.

    Args:
        config: its data, resize, crop, validation, seed, augment and cache count, and what the kind asks.
        kind: of the task.
        learned: digests of samples that weights have learned before, see `splits.divide`.
        spec: of a run, which then decides about channels and labels; None: they follow from the samples.

    Raises:
        InputError: the path does not exist, has another layout, or contains no usable sample.
    """
    path = Path(config.data)
    scanned, prepare = _scanned(config, kind, spec)
    divided = divide(scanned, path, config.validation, config.seed, kind.stratum, learned)
    if config.validation and "validation" not in divided:
        log.warning("none is held out for validation, as all samples share contents or a file")
    if spec is not None:
        return _dataset(config, spec, divided, kind, config.augment)
    spec = _describe(config, kind, divided, [each for some in scanned.values() for each in some], prepare)
    task = _dataset(config, spec, divided, kind, config.augment)
    if spec.classes:
        names = spec.classes if len(spec.classes) <= 30 else (*spec.classes[:30], "…")
        log.info("outputs: %d (%s)", spec.outputs, ", ".join(names))
    return task


def data_of_run(config: Any, spec: TaskSpec, state: Any, kind: Any) -> Dataset:
    """The data of a run, or others to measure it on: all that have not influenced the weights are for
    testing, or else those that chose them for validation. The run decides about channels and labels.

    Args:
        config: of the run, with the `data`.
        spec, state: of its checkpoint.
        kind: of its task.

    Raises:
        InputError: as of `read_data`, or all samples have been learned, or are of another shape.
    """
    path, known = Path(config.data), {*state.learned}
    scanned, _ = _scanned(config, kind, spec)
    divided = divide(scanned, path, config.validation, config.seed, kind.stratum, state.learned)
    if fingerprint(Dataset, _identities(divided)) != state.data:
        every = [each for some in scanned.values() for each in some]
        new = [each for each in every if each.digest not in known]
        fresh = [each for each in new if each.digest not in {*state.validated}]
        if not new:
            raise InputError(f"the run has learned all samples of {path}, so they measure nothing")
        divided = {"test": fresh} if fresh else {"validation": new}
        log.info("%s is not what the run was trained on, and is measured alone", path)
        if left := len(every) - len(fresh or new):
            log.warning("samples that the run has learned or validated with, left out: %d", left)
    return _dataset(config, replace(spec, name=path.resolve().stem), divided, kind)


def _scanned(
    config: Any, kind: Any, spec: TaskSpec | None
) -> tuple[dict[Split, list[Scanned]], Preprocessing | None]:
    """The samples of each source, which fit the spec of a run, and how images become x, but for their
    channels; None of arrays."""
    path = Path(config.data)
    found = sources(path, kind)
    if found["train"] != path:
        folders = {entry for entry in path.iterdir() if entry.is_dir()} - {*found.values()}
        if others := sorted(each.name for each in folders if not each.name.startswith(".")):
            log.warning("folders beside %s, left out: %s", found["train"], ", ".join(others))
    arrays = is_npz(found["train"])
    if arrays and config.resize:
        raise InputError(f"resize is for images, but {found['train']} holds arrays; leave it out")
    prepare = None if arrays else Preprocessing(3, parse_resize(config.resize) if config.resize else None)
    room, encode = [config.cache * 2**20], kind.encoder(spec) if spec else None
    scanned = {
        split: scan(kind.samples(each), kind, prepare, room, encode) for split, each in found.items()
    }
    if not scanned["train"]:
        raise InputError(f"{found['train']}: no usable samples; kind {kind.name} takes {kind.layout}")
    every = [each for some in scanned.values() for each in some]
    shapes = {(len(each.extents), 0 if prepare else len(each.moments.total)) for each in every}
    if spec:
        shapes.add((len(spec.size), 0 if spec.preprocessing else spec.channels))
    if len(shapes) > 1:
        than = "the run was trained on" if spec else "others"
        raise InputError(f"{path} holds samples with other axes or channels than {than}")
    return scanned, prepare


def _dataset(
    config: Any, spec: TaskSpec, divided: dict[Split, list[Scanned]], kind: Any, augment: float = 0
) -> Dataset:
    for split in divided.keys() - {"train"}:  # so that batches of an evaluation hold similar samples
        shapes = np.array([each.extents for each in divided[split]])
        divided[split] = [divided[split][k] for k in np.argsort(shape_order(shapes), kind="stable")]
    encode = kind.encoder(spec)
    sets = {split: Samples(each, spec.preprocessing, encode) for split, each in divided.items()}
    crop = for_axes(parse_size(config.crop), len(spec.size)) if config.crop else None
    of_train = [each.extents for each in divided.get("train", ())]
    task = Dataset(spec, sets, kind, augment, extents=np.array(of_train) if of_train else None, crop=crop)
    task.names = {split: [e.sample.name for e in each] for split, each in divided.items()}
    task.groups = {split: [e.sample.group for e in each] for split, each in divided.items()}
    task.digests = _identities(divided)
    counts = ", ".join(f"{len(each)} for {split}" for split, each in divided.items())
    extents = np.array([each.extents for some in divided.values() for each in some])
    smallest, largest = (format_size(f(axis=0).tolist()) for f in (extents.min, extents.max))
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    log.info("%s: %s; %s, channels: %d", Path(config.data), counts, size, spec.channels)
    return task


def _identities(divided: Mapping[Split, Sequence[Scanned]]) -> dict[Split, list[str]]:
    return {split: [each.digest + each.label for each in some] for split, some in divided.items()}


def _describe(
    config: Any,
    kind: Any,
    divided: Mapping[Split, Sequence[Scanned]],
    every: Sequence[Scanned],
    prepare: Preprocessing | None,
) -> TaskSpec:
    """The spec of a new run. Labels follow from all samples, also those that no split has."""
    path, train = Path(config.data), divided["train"]
    moments = [each.moments for each in train]
    channels = max(len(each.total) for each in moments)
    if prepare is not None:
        prepare = Preprocessing(channels, prepare.resize)
    try:
        of_train, of_all = ([each.summary for each in some] for some in (train, every))
        labels = kind.fit(of_train, of_all, prepare, config)
        if unsafe := [name for name in labels.classes if not is_plain_text(name)]:
            raise InputError(f"the class {unsafe[0]!r} holds a control character; rename it")
        absent = {*labels.classes} - {*kind.fit(of_train, of_train, prepare, config).classes}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if absent:
        log.warning("classes without samples to train on: %s", ", ".join(sorted(absent)))
    mean, std = ((), ()) if kind.x_range else mean_and_std(moments)
    low, high = min(each.low for each in moments), max(each.high for each in moments)
    in_unit = prepare is not None and low >= 0 and high <= 1  # whose ends are those of the pixels' dtype
    extents = np.array([each.extents for some in divided.values() for each in some])
    size = extents.max(axis=0)
    if config.crop:
        size = np.minimum(size, for_axes(parse_size(config.crop), len(size)))
    return TaskSpec(
        name=path.resolve().stem,
        kind=kind.name,
        channels=channels,
        outputs=labels.outputs,
        size=tuple(size.tolist()),
        classes=labels.classes,
        mean=mean,
        std=std,
        target_mean=labels.mean,
        target_std=labels.std,
        preprocessing=prepare,
        mixed_sizes=bool(config.crop) or bool((extents != extents[0]).any()),
        x_range=(0.0, 1.0) if in_unit else (low, high),
        decoding=labels.decoding,
    )
