"""Batches in the order of steps, made in this process or ahead of time by others."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mdlstm_tk.data import Batch, Task
from mdlstm_tk.training.config import TrainConfig


@dataclass(frozen=True)
class _Steps(Dataset[Batch]):
    """Batches by step."""

    task: Task
    seed: int
    count: int
    part: slice

    def __getitem__(self, step: int) -> Batch:
        return self.task.batch(self.seed, step, self.count, shard=self.part)


def feed(config: TrainConfig, task: Task, first: int, part: slice) -> Iterator[Batch]:
    """`part` of each batch from step `first` to the last."""
    steps = _Steps(task, config.seed, config.batch_size, part)
    order = range(first, config.steps)
    if config.workers == 0:
        return (steps[step] for step in order)
    loader = DataLoader(
        steps,
        sampler=order,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=config.workers,
        worker_init_fn=_ignore_interrupts,
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches all processes; the one that trains decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
