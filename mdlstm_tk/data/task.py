"""Tasks: a description of what a network learns, and batches by number.

A batch depends on the seed and the number of its step alone. So a resumed run, another process and a worker
that reads ahead see the same samples, and no checkpoint stores where an epoch was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.order import (
    CROP,
    DISTORTION,
    bucketed_draws,
    digest_of,
    make_rng,
    shape_order,
    shuffled,
)
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import Preprocessing

Extents = tuple[int, ...]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
UNLABELLED = -1  # the class of positions without a label, and of padding
WHOLE_BATCH = slice(None)
MAX_EXAMINED_BATCHES = 500  # to know how large they are
MAX_EVALUATION_BATCH = 64  # samples
MAX_EVALUATION_POSITIONS = 2**19  # of a batch, so that large images are evaluated in less memory


class Batch(NamedTuple):
    """N samples, padded at the far end of each axis where their extents differ: arrays, or tensors on the
    device of a training.

    Attributes:
        x: (N, *grid, C) float32.
        y: targets, see `Kind.collate`.
        sizes: (N, D) int64, the valid extents; None if every sample fills the grid.
    """

    x: Any
    y: Any
    sizes: Any = None


@dataclass(frozen=True)
class TaskSpec:
    """The description that networks are built from. Checkpoints hold it.

    Attributes:
        name: of the task.
        kind: what a target is, see `mdlstm_tk.kinds`.
        channels: C, features at each position of x.
        outputs: of the network.
        size: extents of a sample, the largest ones if samples differ.
        classes: names of the outputs, or of characters, if they have names.
        mean, std: of each channel of x, which the network standardises; empty if it should not.
        target_mean, target_std: of each output that is a number; without a deviation outputs are in (0, 1).
        preprocessing: how images become x; None of arrays.
        mixed_sizes: samples differ in extents, or are cropped.
        x_range: the lowest and the highest value of x in training; None: unknown.
        decoding: what `Kind.decode` needs to know, such as the values of masks or a threshold.
    """

    name: str
    kind: str
    channels: int
    outputs: int
    size: Extents
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    preprocessing: Preprocessing | None = None
    mixed_sizes: bool = False
    x_range: tuple[float, float] | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskSpec:
        """The spec of which `dataclasses.asdict` went through JSON."""
        spec = cls(**{name: _tuples(value) for name, value in values.items()})
        stored = values["preprocessing"]
        return replace(spec, preprocessing=stored and Preprocessing.from_json(stored))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class Task(ABC):
    """A source of batches. A task may have measures of its own: methods `sums` and `measures` with the
    arguments and results of those of `Kind`.

    Attributes:
        spec: what networks are built from.
        kind: name of its kind.
        defaults: the settings that suit the task, by key of `TrainConfig`.
        names: of the samples of each split, in order; empty if they are generated.
        digests: of each its content, of 16 digits, and its target; a run knows by them what it has learned.
        groups: for each sample, what it shares with others, such as a page; empty if it shares nothing.
    """

    spec: TaskSpec
    kind: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    names: Mapping[Split, Sequence[str]] = {}
    digests: Mapping[Split, Sequence[str]] = {}
    groups: Mapping[Split, Sequence[str]] = {}

    @abstractmethod
    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        """Batch `step` of `count` samples; of these the `shard` of a process. Equal arguments give equal
        samples."""

    @abstractmethod
    def count(self, split: Split) -> int:
        """The samples that a split is evaluated on; 0 if there is none."""

    def baselines(self, seed: int) -> dict[str, dict[str, float]]:
        """The test errors of methods without a network, by method and name."""
        return {}

    @property
    def digest(self) -> str:
        """A digest of its class and of all samples, whatever these are called and in any order."""
        return fingerprint(type(self), self.digests)

    def largest_batch(self, seed: int, count: int) -> Extents:
        """The extents of the largest batch of training."""
        return self.spec.size

    @property
    def evaluation_batch(self) -> int:
        """Samples in a batch of `evaluation_batches`."""
        return min(max(MAX_EVALUATION_POSITIONS // prod(self.spec.size), 1), MAX_EVALUATION_BATCH)

    def evaluation_batches(self, split: Split, seed: int, shard: slice = WHOLE_BATCH) -> Iterator[Batch]:
        """All samples of a split in order, undistorted; of the batches those of the `shard`."""
        size, total = self.evaluation_batch, self.count(split)
        for step in range(-(-total // size))[shard]:
            yield self.batch(seed, step, size, split, slice(0, total - step * size))


def fingerprint(task: type[Task], digests: Mapping[Split, Sequence[str]]) -> str:
    """See `Task.digest`."""
    return digest_of([task.__qualname__, *sorted((split, sorted(each)) for split, each in digests.items())])


class Dataset(Task):
    """A task over a fixed set of samples, in a new random order in every epoch.

    Args:
        spec: description of the task.
        sets: the samples of each split: x (*grid, C) float32, and the target as `Kind.collate` takes it.
        kind: the kind of the task, as `mdlstm_tk.kinds.kind_named(name)`.
        augment: strength of the distortion of training samples, see `Kind.distort`.
        extents: (N, D) of the training samples if these differ; similar ones then share a batch.
        crop: extents of the part that is used, at random places in training, else in the centre.

    Raises:
        InputError: samples to distort have other than two axes.
    """

    def __init__(
        self,
        spec: TaskSpec,
        sets: Mapping[Split, Sequence[tuple[Array, Any]]],
        kind: Any,
        augment: float = 0.0,
        *,
        extents: npt.NDArray[np.int64] | None = None,
        crop: Extents | None = None,
    ) -> None:
        self.spec, self.sets, self.of_kind, self.augment, self.crop = spec, sets, kind, augment, crop
        if augment and len(spec.size) != 2:
            raise InputError(f"augment distorts images, but samples have {len(spec.size)} axes; use 0")
        whole = np.array([spec.size]) if extents is None else extents
        self.extents = whole if crop is None else np.minimum(whole, crop)
        is_mixed = (self.extents != self.extents[0]).any()
        self._ranks = shape_order(self.extents) if is_mixed else None

    @cached_property
    def digests(self) -> Mapping[Split, Sequence[str]]:  # type: ignore[override]
        """Of each sample its content and its target."""
        return {
            split: [digest_of(x) + digest_of(y) for x, y in samples] for split, samples in self.sets.items()
        }

    def count(self, split: Split) -> int:
        return len(self.sets.get(split, ()))

    def largest_batch(self, seed: int, count: int) -> Extents:
        if self._ranks is None:
            return self.spec.size
        steps = range(min(-(-len(self._ranks) // count), MAX_EXAMINED_BATCHES))
        batches = ([k for _, k in bucketed_draws(seed, self._ranks, step, count)] for step in steps)
        return tuple(max((self.extents[each].max(axis=0).tolist() for each in batches), key=prod))

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        samples, draws = self.sets[split], range(step * count, (step + 1) * count)[shard]
        if split != "train":
            return self._in_order(split, draws)
        if self._ranks is None:
            pairs = list(zip(draws, shuffled(seed, len(samples), draws), strict=True))
        else:
            pairs = bucketed_draws(seed, self._ranks, step, count)[shard]
        chosen = [self._cropped(samples[k], make_rng(seed, CROP, draw)) for draw, k in pairs]
        if self.augment:
            rngs = [make_rng(seed, DISTORTION, draw) for draw, _ in pairs]
            chosen = self.of_kind.distort(chosen, rngs, self.augment)
        return collate(self.of_kind, chosen)

    def evaluation_batches(self, split: Split, seed: int, shard: slice = WHOLE_BATCH) -> Iterator[Batch]:
        size = self.evaluation_batch
        for first in range(0, self.count(split), size)[shard]:
            yield self._in_order(split, range(first, first + size))

    def _in_order(self, split: Split, indices: range) -> Batch:
        samples = self.sets[split]
        return collate(self.of_kind, [self._cropped(samples[k]) for k in indices if k < len(samples)])

    def _cropped(self, sample: Any, rng: np.random.Generator | None = None) -> Any:
        if self.crop is None:
            return sample
        (x, y), slices = sample, []
        for extent, new in zip(x.shape[:-1], self.crop, strict=True):
            room = max(extent - new, 0)
            start = room // 2 if rng is None else int(rng.integers(room + 1))
            slices.append(slice(start, start + new))
        return x[tuple(slices)], y[tuple(slices)] if self.of_kind.per_position else y


def collate(kind: Any, samples: Sequence[tuple[Array, Any]]) -> Batch:
    """Join samples to a batch, padded to their largest extents.

    Raises:
        InputError: x and y of a sample, whose kind has a target at every position, differ in their grids.
    """
    xs, ys = [x for x, _ in samples], [y for _, y in samples]
    for x, y in samples if kind.per_position else ():
        if np.shape(y)[: x.ndim - 1] != x.shape[:-1]:
            raise InputError(f"a sample has x {x.shape} and y {np.shape(y)}, expected one grid in both")
    x = pad(xs, 0, np.float32)
    sizes = np.array([x.shape[:-1] for x in xs], np.int64)
    return Batch(x, kind.collate(x, ys), sizes if (sizes != x.shape[1:-1]).any() else None)


def pad(arrays: Sequence[Any], fill: float, dtype: Any) -> Array:
    """Stack arrays of different extents to (N, *shape)."""
    shape = np.max([np.shape(array) for array in arrays], axis=0)
    padded = np.full((len(arrays), *shape), fill, dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(map(slice, np.shape(array)))] = array
    return padded
