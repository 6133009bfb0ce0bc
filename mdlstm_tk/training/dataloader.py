"""Batches in the order of the training steps, prepared by this process or ahead of time by workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mdlstm_tk.data import Batch, Task
from mdlstm_tk.training.config import TrainConfig

MAX_STEPS = 10**9  # more than any run has time for


@dataclass(frozen=True)
class _BatchOfStep(Dataset[Batch]):
    """This process's shard of the batch of each step, indexed by step."""

    task: Task
    seed: int
    batch_size: int
    shard: slice

    def __getitem__(self, step: int) -> Batch:
        return self.task.batch(self.seed, step, self.batch_size, shard=self.shard)


def dataloader(config: TrainConfig, task: Task, first_step: int, shard: slice) -> Iterator[Batch]:
    """The `shard` of each batch, from `first_step` to the last step; without end with `minutes`."""
    dataset = _BatchOfStep(task, config.seed, config.batch_size, shard)
    steps = range(first_step, MAX_STEPS if config.minutes else config.steps)
    if config.workers == 0:
        return (dataset[step] for step in steps)
    loader = DataLoader(
        dataset,
        sampler=steps,
        batch_size=None,
        collate_fn=_identity,
        num_workers=config.workers,
        worker_init_fn=_ignore_interrupts,
    )
    return iter(loader)


def _identity(batch: Any) -> Any:
    return batch


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; only the training process may react to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
