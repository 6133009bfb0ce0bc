"""The batches of all steps, prepared by the training process or ahead of time by workers."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mdlstm_tk._util.user_code import import_file, imported_files
from mdlstm_tk.data.files import given
from mdlstm_tk.data.task import Batch, Task
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import Group


def training_batches(config: TrainConfig, task: Task, first: int, group: Group) -> Iterator[Batch]:
    """This process's share of the batch of each step from `first` on; without end with `minutes`."""
    group.share(config.batch_size)
    steps = range(first, 10**9 if config.minutes else config.steps)
    read = _Steps(task, config.seed, config.batch_size, group.shard)
    results: Iterator[Any] = map(read.__getitem__, steps)
    if config.workers:
        options: Any = {"num_workers": config.workers, "worker_init_fn": _begin_worker}
        results = iter(DataLoader(read, sampler=steps, batch_size=None, collate_fn=given, **options))
    for result in results:
        if isinstance(result, Exception):
            raise result
        yield result


class _Steps(Dataset[Any]):
    """The batch of each step, or why there is none. A worker that unpickles it imports the user's files
    first, which may define the task."""

    def __init__(self, *arguments: Any) -> None:
        self.task, self.seed, self.count, self.shard = self.arguments = arguments

    def __getitem__(self, step: int) -> Any:
        try:
            return self.task.batch(self.seed, step, self.count, shard=self.shard)
        except MDLSTMError as error:
            return error  # a DataLoader adds the traceback of its worker to the text of a raised one

    def __reduce__(self) -> Any:
        return _load_steps, (imported_files(), pickle.dumps(self.arguments))


def _load_steps(files: list[Path], arguments: bytes) -> _Steps:
    for file in files:
        import_file(file)
    return _Steps(*pickle.loads(arguments))


def _begin_worker(_: int) -> None:
    """Leave Ctrl-C to the training process, and end with it, also if it is killed: torch looks at the
    parent of the worker, which may be a fork server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    training = parent_process()
    assert training is not None
    training.join()
    os._exit(1)
