"""The interface of a task: a spec, batches by number, and the metrics of a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mdlstm_tk.data.augmentation import distort
from mdlstm_tk.data.collate import collate
from mdlstm_tk.data.metrics import METRICS
from mdlstm_tk.data.sampling import make_rng, shuffled_indices
from mdlstm_tk.data.spec import Batch, Floats, Kind, Metrics, Sample, Split, TaskSpec

WHOLE_BATCH = slice(None)


class Task(ABC):
    """A source of batches.

    A batch depends on the arguments of `batch` alone, so that a resumed training sees the same data.

    Attributes:
        spec: what networks are built from.
        kind: kind of the task.
        defaults: the settings of `TrainConfig` that suit the task.
    """

    kind: ClassVar[Kind]
    defaults: ClassVar[Mapping[str, Any]] = {}
    spec: TaskSpec

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
        """Return the errors of a prediction as {name: (sum, count)}.

        Lower is better. The first entry is the score that the best checkpoint is chosen by.
        """
        return METRICS[self.spec.kind](prediction, batch, self.spec)

    def any_size_tasks(self) -> Sequence[Task]:
        """Return the tasks that a network for grids of any size is scored on; the worst score counts."""
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


class DatasetTask(Task):
    """A task over a fixed set of samples, which training reads in a new random order in every epoch.

    Args:
        spec: description of the task.
        sets: the samples of each split.
        augment: strength of the distortion of training samples, 0 for none; see `distort`.
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
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        samples, first = self.sets[split], step * count
        if split != "train":
            return collate(self.spec.kind, samples[first : first + count][shard])
        draws = range(first, first + count)[shard]
        chosen = [samples[index] for index in shuffled_indices(seed, len(samples), draws)]
        if self.augment:
            chosen = [
                distort(x, y, make_rng(seed, 1, draw), self.augment, self.spec.kind == "segment")
                for (x, y), draw in zip(chosen, draws, strict=True)
            ]
        return collate(self.spec.kind, chosen)


def batches(task: Task, split: Split, seed: int, size: int, shard: slice = slice(None)) -> Iterator[Batch]:
    """Iterate over the samples that a split is evaluated on, in batches of at most `size`.

    Args:
        task: where the samples come from.
        split: which split.
        seed: seed of generated samples.
        size: samples in a batch.
        shard: the batches to make, `slice(rank, None, world_size)` in distributed training.
    """
    total = task.count(split)
    for step in range(-(-total // size))[shard]:
        # A task that generates samples would fill the last batch; only `total` samples count.
        yield task.batch(seed, step, size, split, slice(0, total - step * size))
