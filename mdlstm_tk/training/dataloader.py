"""Batches in the order of the training steps, prepared by this process or ahead of time by workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from mdlstm_tk.data import Batch, Task
from mdlstm_tk.data.task import read_batch
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.training.config import TrainConfig

MAX_STEPS = 10**9  # more than any run has time for


@dataclass(frozen=True)
class _BatchOfStep(Dataset[Batch | MDLSTMError]):
    """This process's shard of the batch of each step, or why it cannot be made, indexed by step."""

    task: Task
    seed: int
    batch_size: int
    shard: slice

    def __getitem__(self, step: int) -> Batch | MDLSTMError:
        try:
            return read_batch(self.task, self.seed, step, self.batch_size, shard=self.shard)
        except MDLSTMError as error:
            return error  # a DataLoader adds the traceback of its worker to the text of a raised one


def dataloader(config: TrainConfig, task: Task, first_step: int, shard: slice) -> Iterator[Batch]:
    """The `shard` of each batch, from `first_step` to the last step; without end with `minutes`.

    Raises:
        MDLSTMError: the task cannot make a batch, see `Task.batch`.
    """
    dataset = _BatchOfStep(task, config.seed, config.batch_size, shard)
    steps = range(first_step, MAX_STEPS if config.minutes else config.steps)
    results: Iterator[Batch | MDLSTMError] = map(dataset.__getitem__, steps)
    if config.workers:
        loader = DataLoader(
            dataset,
            sampler=steps,
            batch_size=None,
            num_workers=config.workers,
            worker_init_fn=_ignore_interrupts,
        )
        results = iter(loader)
    for result in results:
        if isinstance(result, MDLSTMError):
            raise result
        yield result


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; only the training process may react to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
