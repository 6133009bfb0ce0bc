"""The tasks that come with the package."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mdlstm_tk.data.sampling import make_rng
from mdlstm_tk.data.spec import SPLITS, Batch, Sample, Split
from mdlstm_tk.data.task import WHOLE_BATCH, Task, collate


class GeneratedTask(Task):
    """A task that generates each sample with a random generator of its own.

    Attributes:
        samples: samples that each split but "train" is evaluated on.
    """

    samples: ClassVar[Mapping[Split, int]]

    @abstractmethod
    def draw(self, rng: np.random.Generator, split: Split) -> Sample:
        """Return a sample of a split."""

    def count(self, split: Split) -> int:
        return self.samples.get(split, 0)

    def batch(
        self, seed: int, step: int, count: int, split: Split = "train", shard: slice = WHOLE_BATCH
    ) -> Batch:
        draws = range(step * count, (step + 1) * count)[shard]
        rngs = [make_rng(seed, SPLITS.index(split), draw) for draw in draws]
        return collate(self.kind, [self.draw(rng, split) for rng in rngs])
