"""The interface of a task: a spec, batches by number, and the metrics of a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from math import inf, prod
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.checks import check_unmasked
from mdlstm_tk._util.text import counted, quoted
from mdlstm_tk.data.augmentation import crop
from mdlstm_tk.data.sampling import (
    CROP,
    DISTORTION,
    bucketed_draws,
    make_rng,
    shape_order,
    shuffled_indices,
)
from mdlstm_tk.data.spec import (
    SPLITS,
    Array,
    Batch,
    Extents,
    Floats,
    Metrics,
    Sample,
    SampleId,
    Split,
    TaskSpec,
)
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import training_of

WHOLE_BATCH = slice(None)
MAX_EXAMINED_BATCHES = 500  # to know how large they are
MAX_EVALUATION_BATCH = 64  # samples
MAX_EVALUATION_POSITIONS = 2**19  # in a batch, so that large images are evaluated in less memory


class Task(ABC):
    """A source of batches.

    A batch depends on the arguments of `batch` alone, so that a resumed training sees the same data.

    Attributes:
        spec: what networks are built from.
        kind: kind of the task.
        defaults: the settings of `TrainConfig` that suit the task.
        takes_data: its files may be in the folder that `TrainConfig.data` names.
        names: the names of the samples of each split; empty if they have none.
        groups: for each sample of a split, the name of what it shares with others (a writer, a page);
            empty if samples are independent.
        identities: the samples of each split, in order; empty if samples are generated.
        summary: lines that describe the data to the user.
        of_kind: more that the kind needs, as its `TrainingKind.complete` sets it; else None.
        cache_bytes: bound on the memory that samples take.
    """

    kind: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    takes_data: ClassVar[bool] = False
    spec: TaskSpec
    names: Mapping[Split, Sequence[str]] = MappingProxyType({})
    groups: Mapping[Split, Sequence[str]] = MappingProxyType({})
    identities: Mapping[Split, Sequence[SampleId]] = MappingProxyType({})
    summary: Sequence[str] = ()
    of_kind: Any = None
    cache_bytes: int = 0

    @abstractmethod
    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        """Return batch `step` of a split. Equal arguments give equal samples.

        Args:
            seed: seed of the samples or of their order.
            step: number of the batch, from 0.
            count: samples in the whole batch.
            split: which split.
            shard: the samples of the batch to make; all by default.
        """

    @abstractmethod
    def count(self, split: Split) -> int:
        """Return the number of samples that a split is evaluated on; 0 if there is no such split."""

    def measure(self, prediction: Floats, batch: Batch) -> Metrics:
        """Return the errors of a prediction as {name: (sum, count)}; by default those of the kind.

        Lower is better.
        """
        return training_of(self.spec.kind).measure_array(prediction, batch, self.spec)

    def baselines(self, seed: int, samples: int) -> dict[str, dict[str, float]]:
        """Return the test errors of methods without a network, as {method: {error: value}}.

        Args:
            seed: seed of a run, whose samples the methods see.
            samples: how many samples the run sees; a fixed data set has its own number.

        Returns:
            {} if there are none for the task.
        """
        return {}

    def score(self, errors: Mapping[str, float]) -> float:
        """Return the number that the best checkpoint is chosen by, from the errors of a validation."""
        return next(iter(errors.values()))

    @property
    def evaluation_batch(self) -> int:
        """Samples in a batch of `batches` when the task is evaluated."""
        return min(max(MAX_EVALUATION_POSITIONS // prod(self.spec.size), 1), MAX_EVALUATION_BATCH)

    @property
    def extents(self) -> npt.NDArray[np.int64]:
        """(M, D) the extents that samples have."""
        return np.array([self.spec.size])

    def largest_batch(self, seed: int, count: int) -> Extents:
        """Return the extents that batches of `count` training samples are padded to at most.

        Of many different samples this is an estimate: an epoch has too many batches to know all.
        """
        return self.spec.size

    @property
    def has_mixed_sizes(self) -> bool:
        """True if samples have different extents, or a trained network will see others."""
        return False

    def sample_name(self, split: Split, index: int) -> str:
        """Return the name of a sample in reports; `index` counts from 0."""
        names = self.names.get(split)
        return names[index] if names else f"sample {index + 1}"

    @property
    def name(self) -> str:
        return self.spec.name


class DatasetTask(Task):
    """A task over a fixed set of samples, which training reads in a new random order in every epoch.

    Args:
        spec: description of the task.
        sets: the samples of each split.
        augment: strength of the distortion of training samples, 0 for none; see `TrainingKind.distort`.
        extents: (N, D) of the training samples before they are cropped. If they differ, samples of similar
            extents share a batch. None: they are equal.
        crop: extents of the part of each sample to use, at random places in training and in the centre
            otherwise; None for whole samples.

    Raises:
        InputError: there is no such split, `augment` or `crop` is out of range, or samples to distort have
            other than two axes, or numbers as targets.
    """

    def __init__(
        self,
        spec: TaskSpec,
        sets: Mapping[Split, Sequence[Sample]],
        augment: float = 0.0,
        *,
        extents: npt.NDArray[np.int64] | None = None,
        crop: Extents | None = None,
    ) -> None:
        if unknown := [split for split in sets if split not in SPLITS]:
            raise InputError(f"sets has samples of {quoted(unknown)}, but splits are {', '.join(SPLITS)}")
        if not 0 <= augment < inf:
            raise InputError(f"augment must be a number that is not negative, got {augment}")
        if crop is not None and (len(crop) != len(spec.size) or min(crop) < 1):
            axes = counted(len(spec.size), "positive extent")
            raise InputError(f"crop must be {axes}, as samples have as many axes, got {crop}")
        if augment and len(spec.size) != 2:
            raise InputError(
                f"augment (--augment) distorts images, but samples have "
                f"{counted(len(spec.size), 'axis', 'axes')}; use 0, got {augment}"
            )
        if augment and not training_of(spec.kind).is_distorted:
            raise InputError(
                f"augment (--augment) distorts x, but no targets of kind {spec.kind}; use 0, got {augment}"
            )
        self.spec = spec
        self.sets = sets
        self.augment = augment
        self.crop = crop
        if extents is not None and crop is not None:
            extents = np.minimum(extents, crop)
        self._extents = extents
        self._ranks = None if extents is None or (extents == extents[0]).all() else shape_order(extents)

    @property
    def has_mixed_sizes(self) -> bool:
        return self._ranks is not None or self.crop is not None

    def largest_batch(self, seed: int, count: int) -> Extents:
        extents = [self.extents]
        if self._ranks is not None and self._extents is not None:
            for step in range(min(-(-len(self._ranks) // count), MAX_EXAMINED_BATCHES)):
                indices = [k for _, k in bucketed_draws(seed, self._ranks, step, count)]
                extents.append(self._extents[indices].max(axis=0, keepdims=True))
        candidates = np.concatenate(extents)
        return tuple(map(int, candidates[candidates.prod(axis=1).argmax()]))

    def count(self, split: Split) -> int:
        return len(self.sets.get(split, ()))

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        samples, first = self.sets.get(split, ()), step * count
        if not samples:
            raise InputError(f"the task '{self.name}' has no samples of the split {split}")
        if split != "train":
            indices = range(len(samples))[first : first + count][shard]
            return collate(self.spec.kind, [self._cropped(samples[k], None) for k in indices])
        if self._ranks is None:
            draws = range(first, first + count)[shard]
            pairs = list(zip(draws, shuffled_indices(seed, len(samples), draws), strict=True))
        else:
            pairs = bucketed_draws(seed, self._ranks, step, count)[shard]
        rngs = [None if self.crop is None else make_rng(seed, CROP, draw) for draw, _ in pairs]
        cropped = [self._cropped(samples[k], rng) for (_, k), rng in zip(pairs, rngs, strict=True)]
        if self.augment:
            distortions = [make_rng(seed, DISTORTION, draw) for draw, _ in pairs]
            cropped = training_of(self.spec.kind).distort(cropped, distortions, self.augment)
        return collate(self.spec.kind, cropped)

    def in_order(self) -> DatasetTask:
        """This task with its training samples as those of the validation split, which are read in order and
        not distorted."""
        view = copy(self)
        view.sets = {"validation": self.sets.get("train", ())}
        view.names = {"validation": self.names.get("train", ())}
        view.groups = {"validation": self.groups.get("train", ())}
        return view

    def _cropped(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        if self.crop is None:
            return sample
        return crop(*sample, self.crop, rng, training_of(self.spec.kind).has_grid_targets)


def batches(task: Task, split: Split, seed: int, size: int, shard: slice = slice(None)) -> Iterator[Batch]:
    """Iterate over the samples that a split is evaluated on, in batches of at most `size`.

    Those of a data set come in order, whole or cropped in the centre, and undistorted, also to train on.

    Args:
        task: where the samples come from.
        split: which split.
        seed: seed of generated samples.
        size: samples in a batch.
        shard: the batches to make, `slice(rank, None, world_size)` in distributed training.
    """
    total = task.count(split)
    if split == "train" and isinstance(task, DatasetTask):
        task, split = task.in_order(), "validation"
    for step in range(-(-total // size))[shard]:
        # A task that generates samples would fill the last batch; only `total` samples count.
        yield read_batch(task, seed, step, size, split, slice(0, total - step * size))


def read_batch(
    task: Task, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
) -> Batch:
    """Return what `Task.batch` returns for these arguments.

    Raises:
        InputError: it has another number of samples.
    """
    batch, expected = task.batch(seed, step, count, split, shard), len(range(count)[shard])
    if len(batch.x) != expected:
        raise InputError(
            f"batch of the task '{task.name}' returned {counted(len(batch.x), 'sample')} of {split}, "
            f"expected {expected}: those of `shard` among the {count} of a whole batch"
        )
    return batch


def collate(kind: str, samples: Sequence[Sample]) -> Batch:
    """Join samples to a batch, padded to their largest extents.

    x, numbers and texts are padded with 0, masks with UNLABELLED.

    Raises:
        InputError: a target has other axes, extents or numbers than the kind has, or samples differ in more
            than their extents.
    """
    training = training_of(kind)
    xs, ys = [x for x, _ in samples], [y for _, y in samples]
    check_unmasked("x", xs)
    check_unmasked("y", ys)
    _check_equal("axes", [x.ndim for x in xs])
    _check_equal("channels in x", [x.shape[-1] for x in xs])
    if training.has_grid_targets:
        axes = training.target_axes(xs[0].ndim - 1)[-1] - 1
        for x, y in samples:
            if np.ndim(y) != axes or np.shape(y)[: x.ndim - 1] != x.shape[:-1]:
                raise InputError(
                    f"a sample has x {x.shape} and y {np.shape(y)}, expected the same grid in both"
                )
        _check_equal("channels in y", [prod(np.shape(y)[xs[0].ndim - 1 :]) for y in ys])
    sizes = np.array([x.shape[:-1] for x in xs], dtype=np.int64)
    grid = sizes.max(axis=0)
    padded = _pad(xs, (*grid, xs[0].shape[-1]), 0, np.float32)
    sizes_if_ragged = sizes if (sizes != grid).any() else None
    targets = training.collate(padded, ys, _pad)
    return Batch(padded, targets, sizes_if_ragged)


def _check_equal(what: str, counts: Sequence[int]) -> None:
    """Check that all samples of a batch have as many axes or channels."""
    if wrong := [count for count in counts if count != counts[0]]:
        raise InputError(
            f"samples of one batch have {counts[0]} and {wrong[0]} {what}, expected equally many"
        )


def _pad(arrays: Sequence[Any], shape: tuple[int, ...], fill: float, dtype: Any) -> Array:
    """Stack arrays of different extents to (N, *shape)."""
    padded = np.full((len(arrays), *shape), fill, dtype=dtype)
    for k, array in enumerate(map(np.asarray, arrays)):
        if array.ndim != len(shape) or (array.size and not np.can_cast(array.dtype, dtype, "same_kind")):
            expected = f"{np.dtype(dtype)} with {counted(len(shape), 'axis', 'axes')}"
            raise InputError(f"x or y of a sample is {array.dtype} {array.shape}, expected {expected}")
        place: Any = (k, *map(slice, array.shape))
        padded[place] = array
    return padded
