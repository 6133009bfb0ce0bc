"""Minutes of a training counted as steps, so that what else a machine does changes no result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from measuring import Step, interleave

from mdlstm_tk.data import Task
from mdlstm_tk.training import (
    TrainConfig,
    TrainingJob,
    in_processes,
    load_checkpoint,
    new_job,
    resume_job,
)
from mdlstm_tk.training.dataloader import dataloader
from mdlstm_tk.training.memory import keep_freed_memory
from mdlstm_tk.training.progress import StepTimer
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.trainer import Trainer

Patches = Iterable[tuple[Any, str, Callable[..., Any]]]
"""Functions of modules, and what takes their place."""
CLOCKED_STEPS = 30


def patched(patches: Patches) -> ExitStack:
    """A context in which functions are replaced."""
    stack = ExitStack()
    for module, name, other in patches:
        stack.enter_context(patch.object(module, name, other))
    return stack


def seconds_a_step(
    configs: Mapping[str, TrainConfig], seconds: float, patches: Mapping[str, Patches] | None = None
) -> dict[str, float]:
    """Processor time of a training step of each configuration on one thread.

    They take turns, so that load slows all of them alike. Validations do not count.

    Args:
        configs: by name.
        seconds: for the rounds of all.
        patches: by name, of some.
    """
    keep_freed_memory()  # as `train` does

    def stepping(config: TrainConfig, patches: Patches) -> Step:
        with tempfile.TemporaryDirectory() as folder:
            job = new_job(config, folder, force=True)
        trainer, numbers = Trainer(job), count()

        def step() -> None:
            with patched(patches):
                batch = job.task.batch(config.seed, next(numbers), config.batch_size)
                trainer.train_step(batch, interrupted=False)

        return step

    steps = {name: stepping(config, (patches or {}).get(name, ())) for name, config in configs.items()}
    times = interleave(steps, seconds, clock=time.process_time)
    return {name: median(each.ravel().tolist()) for name, each in times.items()}


def new_or_interrupted_job(config: TrainConfig, folder: Path, task: Task | None = None) -> TrainingJob:
    """A new training in a folder, or the one of this configuration that was interrupted there.

    One that is complete is evaluated again.
    """
    run = Run(folder)
    if run.last.exists():
        of_data = {name: getattr(config, name) for name in ("size", "windows", "data", "data_from_run")}
        if replace(load_checkpoint(run.last).config, **of_data) == config:
            run.result.unlink(missing_ok=True)
            return resume_job(folder, task=task)
    return new_job(config, folder, force=True, task=task)


def gain_of_processes(config: TrainConfig, processes: int) -> float:
    """Steps a second of several processes, divided by those of one, by the clock: of a machine that does
    nothing else."""
    if processes == 1:
        return 1.0
    one, several = (in_processes(number, clocked_rate, config) for number in (1, processes))
    return several / one


def clocked_rate(config: TrainConfig) -> float:
    """Steps a second of this process, or of those that share a training, without the first one."""
    with tempfile.TemporaryDirectory() as folder:
        job = new_job(replace(config, steps=1 + CLOCKED_STEPS, minutes=0), Path(folder, "run"))
    keep_freed_memory()  # as `train` does
    trainer, timer = Trainer(job), StepTimer()
    timer.skip()
    for batch in dataloader(job.config, job.task, 0, job.context.shard):
        trainer.train_step(batch, interrupted=False)
        timer.end_step()
    return timer.steps_per_second or 0.0
