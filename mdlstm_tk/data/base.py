"""What a task is: spec that networks are built from, batches by number, and how predictions are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Kind = Literal["grid", "classify", "segment", "transcribe"]
Split = Literal["train", "validation", "test"]
Sample = tuple[Floats, Any]  # x (*grid, C) and its target, see Batch

KINDS: tuple[Kind, ...] = ("grid", "classify", "segment", "transcribe")
STREAMS: tuple[Split, ...] = ("train", "validation", "test")
UNLABELLED = -1  # a cell whose class nobody said, or padding


@dataclass(frozen=True)
class Batch:
    """Samples, padded at the far edges where their extents differ.

    Attributes:
        x: (N, *grid, C).
        y: by kind: "grid" (N, *grid, outputs) float32, "classify" (N,) int64, "segment" (N, *grid) int64
            with UNLABELLED where there is no class, "transcribe" (N, L) int64 of character k + 1 and
            0 after the end.
        sizes: (N, D) int64, the valid extents; None where all samples fill the grid.
    """

    x: Floats
    y: npt.NDArray[Any]
    sizes: npt.NDArray[np.int64] | None = None

    def sample(self, k: int) -> Self:
        """Sample k in a batch of its own, padded as it is."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: a[k : k + 1] for name, a in arrays.items() if a is not None})


@dataclass(frozen=True)
class TaskSpec:
    """What must be known of a task to build a network for it. Checkpoints keep it.

    Attributes:
        name: of the task.
        kind: "grid" numbers at every cell, "classify" one class a sample, "segment" a class at every
            cell, "transcribe" a text a sample.
        channels: features at each cell of x.
        outputs: of the network: numbers at a cell, classes, or characters and a blank before them.
        size: the extents that a sample has, or the largest do.
        classes: names of the classes, or the characters.
        mean: of each channel; the network subtracts it itself. Empty: it does not.
        std: of each channel; the network divides by it.
        target_mean: of each output of kind "grid"; empty if targets are within (0, 1).
        target_std: likewise.
        base_rate: the mean of targets within (0, 1): what an untrained network should predict.
    """

    name: str
    kind: Kind
    channels: int
    outputs: int
    size: tuple[int, ...]
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    base_rate: float | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskSpec:
        """What `dataclasses.asdict` and JSON made of it, back."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


class Task(ABC):
    """A source of samples that is a pure function of numbers, so that any batch can be made again.

    Attributes:
        spec: what networks are built from.
        kind: of the task.
        defaults: settings of `TrainConfig` that suit the task.
    """

    kind: ClassVar[Kind]
    defaults: ClassVar[Mapping[str, Any]] = {}
    spec: TaskSpec

    @abstractmethod
    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", part: slice = slice(None)
    ) -> Batch:
        """Batch `step` of `count` samples of a split, or `part` of it; equal arguments, equal samples."""

    @abstractmethod
    def count(self, split: Split) -> int:
        """How many samples a split is judged by; 0 if there is no such split."""

    def measure(self, prediction: Floats, batch: Batch) -> dict[str, tuple[float, float]]:
        """Errors as (sum, number summed over) by name. The first is the score. Lower is better."""
        from mdlstm_tk.data.metrics import MEASURES

        return MEASURES[self.spec.kind](prediction, batch, self.spec)

    def at_any_size(self) -> Sequence[Task]:
        """The tasks that a network for grids of any size is judged by; the worst one counts."""
        return (self,)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def outputs(self) -> int:
        return self.spec.outputs


class SampleTask(Task):
    """A task whose samples are given: read over and over in shuffled order, distorted if asked.

    Args:
        spec: what they are.
        sets: the samples of each split.
        augment: strength of distortion while training, 0 for none; see `distort`.
    """

    def __init__(
        self, spec: TaskSpec, sets: Mapping[Split, Sequence[Sample]], augment: float = 0.0
    ) -> None:
        self.spec = spec
        self.sets = sets
        self.augment = augment

    def count(self, split: Split) -> int:
        return len(self.sets.get(split, ()))

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", part: slice = slice(None)
    ) -> Batch:
        samples, first = self.sets[split], step * count
        if split != "train":
            return collate(self.spec.kind, samples[first : first + count][part])
        positions = range(first, first + count)[part]
        chosen = [samples[index] for index in shuffled(seed, len(samples), positions)]
        if self.augment:
            from mdlstm_tk.data.augment import distort

            chosen = [
                distort(x, y, generator(seed, 1, position), self.augment, self.spec.kind == "segment")
                for (x, y), position in zip(chosen, positions, strict=True)
            ]
        return collate(self.spec.kind, chosen)


def batches(task: Task, split: Split, seed: int, size: int, part: slice = slice(None)) -> Iterator[Batch]:
    """All that a split is judged by, in batches of `size`; or every n-th batch from the k-th."""
    total = task.count(split)
    for step in range(-(-total // size))[part]:
        # what is generated has no end of its own: ask for no more than is left
        batch = task.batch(seed, step, size, split, slice(0, total - step * size))
        yield batch


def generator(*numbers: int) -> np.random.Generator:
    """A random generator that these numbers stand for."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(numbers)))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, total: int) -> npt.NDArray[np.int64]:
    return generator(seed, 0, epoch).permutation(total)


def shuffled(seed: int, total: int, positions: Sequence[int]) -> list[int]:
    """What stands at these positions of an endless reading of 0 … total−1, shuffled anew each time."""
    return [int(_permutation(seed, p // total, total)[p % total]) for p in positions]


def stratified(groups: npt.ArrayLike, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """A random `share` of each group, as a mask. A group of two or more gives one at least, not all."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    mask = np.zeros(len(inverse), dtype=bool)
    for index in range(len(names)):
        members = np.flatnonzero(inverse == index)
        taken = round(share * len(members))
        if share > 0:
            taken = min(max(taken, 1), len(members) - 1)
        mask[generator(seed, 2, index).permutation(members)[:taken]] = True
    return mask


def collate(kind: Kind, samples: Sequence[Sample]) -> Batch:
    """Join samples to a batch, padded with zeros to the largest extents."""
    xs, ys = [x for x, _ in samples], [y for _, y in samples]
    sizes = np.array([x.shape[:-1] for x in xs], dtype=np.int64)
    joined = sizes.max(axis=0)
    x = _padded(xs, (*joined, xs[0].shape[-1]), 0, np.float32)
    ragged = sizes if (sizes != joined).any() else None
    if kind == "classify":
        return Batch(x, np.array(ys, dtype=np.int64), ragged)
    if kind == "transcribe":
        return Batch(x, _padded(ys, (max(map(len, ys)),), 0, np.int64), ragged)
    if kind == "segment":
        return Batch(x, _padded(ys, tuple(joined), UNLABELLED, np.int64), ragged)
    return Batch(x, _padded(ys, (*joined, ys[0].shape[-1]), 0, np.float32), ragged)


def _padded(arrays: Sequence[Any], shape: tuple[int, ...], fill: float, dtype: Any) -> npt.NDArray[Any]:
    joined = np.full((len(arrays), *shape), fill, dtype=dtype)
    for row, array in zip(joined, map(np.asarray, arrays), strict=True):
        row[tuple(slice(extent) for extent in array.shape)] = array
    return joined
