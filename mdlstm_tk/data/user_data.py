"""A task from a user's own files."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.sizes import for_axes, format_size, parse_resize, parse_size
from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.data.files import is_npz
from mdlstm_tk.data.order import digest_of, shape_order
from mdlstm_tk.data.scan import Samples, Scanned, mean_and_std, scan
from mdlstm_tk.data.splits import describe_overlap, divide, sources
from mdlstm_tk.data.task import Dataset, Extents, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing

log = logging.getLogger("mdlstm_tk.data")


def read_data(config: Any, kind: Any, learned: Collection[str] = (), of_run: str = "") -> Dataset:
    """The task of the files at `config.data`.

    Every sample is read once, for its extents, its channels and its target; then again when a batch needs
    it, unless there was room to keep it.

    Args:
        config: its data, resize, crop, validation, seed, augment and cache count, and what the kind asks.
        kind: of the task.
        learned: digests of samples that weights have learned before, see `splits.divide`.
        of_run: digest of the samples of a run. Others are measured alone: all of them that were not learned
            are for testing.

    Raises:
        InputError: the path does not exist, has another layout, or contains no usable sample.
    """
    path = Path(config.data)
    found = sources(path, kind)
    arrays = is_npz(found["train"])
    if arrays and config.resize:
        raise InputError(f"resize is for images, but {found['train']} holds arrays; leave it out")
    prepare = None if arrays else Preprocessing(3, parse_resize(config.resize) if config.resize else None)
    room = [config.cache * 2**20]
    scanned = {split: scan(kind.samples(each), kind, prepare, room) for split, each in found.items()}
    if not scanned["train"]:
        raise InputError(f"{found['train']}: no usable samples; kind {kind.name} takes {kind.layout}")
    every = [each for some in scanned.values() for each in some]
    channels = max(len(each.moments.total) for each in scanned["train"])
    if len({(len(e.extents), len(e.moments.total) if arrays else 0) for e in every}) > 1:
        raise InputError(f"{path}: x has other axes or channels in one split than in another")
    divided = divide(scanned, path, config.validation, config.seed, kind.stratum, learned)
    if of_run not in ("", digest_of({k: sorted(map(_identity, each)) for k, each in divided.items()})):
        log.info("%s is not what the run was trained on, and is measured alone", path)
        every = [each for some in divided.values() for each in some]
        divided = {"test": [e for e in every if e.digest not in learned] or every}
    else:
        describe_overlap(divided, learned)
    train = divided.get("train") or divided["test"]
    if prepare is not None:
        prepare = Preprocessing(channels, prepare.resize)
    try:
        labels = kind.fit([e.summary for e in train], [e.summary for e in every], prepare, config)
        if unsafe := [name for name in labels.classes if not is_plain_text(name)]:
            raise InputError(f"the class {unsafe[0]!r} holds a control character; rename it")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if absent := {kind.stratum(e.summary) for e in every} - {kind.stratum(e.summary) for e in train}:
        log.warning("classes without samples to train on: %s", ", ".join(sorted(absent)))
    all_extents = np.array([each.extents for some in divided.values() for each in some])
    crop = for_axes(parse_size(config.crop), all_extents.shape[1]) if config.crop else None
    spec = _describe(path, kind, channels, train, labels, prepare, all_extents, crop)
    for split in divided.keys() - {"train"}:  # so that batches of an evaluation hold similar samples
        shapes = np.array([each.extents for each in divided[split]])
        divided[split] = [divided[split][k] for k in np.argsort(shape_order(shapes), kind="stable")]
    sets = {split: Samples(each, prepare, labels.encode) for split, each in divided.items()}
    of_train = np.array([each.extents for each in train])
    task = Dataset(spec, sets, kind, config.augment, extents=of_train, crop=crop)
    task.names = {split: [e.sample.name for e in each] for split, each in divided.items()}
    task.groups = {split: [e.sample.group for e in each] for split, each in divided.items()}
    task.digests = {split: [*map(_identity, each)] for split, each in divided.items()}
    counts = ", ".join(f"{len(each)} for {split}" for split, each in divided.items())
    smallest, largest = (format_size(f(axis=0).tolist()) for f in (all_extents.min, all_extents.max))
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    log.info("%s: %s; %s, channels: %d", path, counts, size, channels)
    if labels.classes:
        names = labels.classes if len(labels.classes) <= 30 else (*labels.classes[:30], "…")
        log.info("outputs: %d (%s)", spec.outputs, ", ".join(names))
    return task


def _identity(scanned: Scanned) -> str:
    """A digest of a sample and its target."""
    return scanned.digest + scanned.label


def _describe(
    path: Path,
    kind: Any,
    channels: int,
    train: list[Scanned],
    labels: Any,
    prepare: Preprocessing | None,
    extents: Any,
    crop: Extents | None,
) -> TaskSpec:
    moments = [each.moments for each in train]
    mean, std = ((), ()) if kind.x_range else mean_and_std(moments)
    low, high = min(each.low for each in moments), max(each.high for each in moments)
    used = extents.max(axis=0) if crop is None else np.minimum(extents.max(axis=0), crop)
    in_unit = prepare is not None and low >= 0 and high <= 1  # whose ends are those of the pixels' dtype
    return TaskSpec(
        name=path.resolve().stem,
        kind=kind.name,
        channels=channels,
        outputs=labels.outputs,
        size=tuple(used.tolist()),
        classes=labels.classes,
        mean=mean,
        std=std,
        target_mean=labels.mean,
        target_std=labels.std,
        preprocessing=prepare,
        mixed_sizes=crop is not None or bool((extents != extents[0]).any()),
        x_range=(0.0, 1.0) if in_unit else (low, high),
        decoding=labels.decoding,
    )
