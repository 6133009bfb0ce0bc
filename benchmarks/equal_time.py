"""Minutes of a training counted as steps, so that what else a machine does changes no result.

Run by torch.distributed.run, this file trains in several processes; see `trained` and `clocked_rate`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from measuring import interleave, python

from mdlstm_tk.data import Batch, Task
from mdlstm_tk.training import Run, TrainConfig, build_network, configure, load_checkpoint, make_task
from mdlstm_tk.training.evaluation import on_device
from mdlstm_tk.training.loop import OnStep, _step, lerp_, resume, train
from mdlstm_tk.training.memory import keep_freed_memory
from mdlstm_tk.training.networks import adam, with_windows

Patches = Iterable[tuple[Any, str, Callable[..., Any]]]
"""Functions of modules, and what takes their place."""
CLOCKED_STEPS = 30
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"}  # as `mdlstm` sets them


def patched(patches: Patches) -> ExitStack:
    """A context in which functions are replaced."""
    stack = ExitStack()
    for module, name, other in patches:
        stack.enter_context(patch.object(module, name, other))
    return stack


class Steps:
    """The steps of a training without its files and validations."""

    def __init__(self, config: TrainConfig) -> None:
        self.task = make_task(config)
        self.config = with_windows(config, self.task)
        self.network = build_network(self.config, self.task.spec)
        self.average = build_network(self.config, self.task.spec).requires_grad_(False)
        self.optimizer = adam(self.network, self.config)
        keep_freed_memory()  # as `train` does

    def batch(self, step: int) -> Batch:
        return self.task.batch(self.config.seed, step, self.config.batch_size)

    def train(self, batch: Batch) -> None:
        tensors = on_device(batch, torch.device("cpu"))
        _step(self.network, tensors, self.task, self.config, self.optimizer, self.config.lr)
        if self.config.average:
            lerp_(self.average, self.network, 1 - self.config.average)


def seconds_a_step(
    configs: Mapping[str, TrainConfig], seconds: float, patches: Mapping[str, Patches] | None = None
) -> dict[str, float]:
    """Processor time of a training step of each configuration on one thread.

    They take turns, so that load slows all of them alike.

    Args:
        configs: by name.
        seconds: for the rounds of all.
        patches: by name, of some.
    """
    numbers = {name: count() for name in configs}
    every = {name: Steps(config) for name, config in configs.items()}

    def step(name: str) -> None:
        with patched((patches or {}).get(name, ())):
            every[name].train(every[name].batch(next(numbers[name])))

    steps = {name: partial(step, name) for name in configs}
    times = interleave(steps, seconds, clock=time.process_time)
    return {name: median(each.ravel().tolist()) for name, each in times.items()}


def trained(
    config: TrainConfig, folder: Path, task: Task | None = None, processes: int = 1
) -> dict[str, Any]:
    """The result of a training in a folder; one of this configuration that was interrupted there goes on.

    Args:
        config: of the training.
        folder: of the run.
        task: of the configuration, if it was read before; of one process.
        processes: that share the training.
    """
    if processes > 1:
        return in_processes(config, folder, processes)
    return new_or_interrupted(config, folder, task)


def new_or_interrupted(
    config: TrainConfig, folder: Path, task: Task | None = None, on_step: OnStep | None = None
) -> dict[str, Any]:
    run = Run(folder)
    if run.last.exists():
        kept = load_checkpoint(run.last).config
        if replace(kept, data=config.data, windows=config.windows) == config:
            run.result.unlink(missing_ok=True)  # a complete one is evaluated again
            return resume(folder, task=task, on_step=on_step)
    return train(config, folder, task=task, force=True, on_step=on_step)


def in_processes(config: TrainConfig, folder: Path, processes: int, threads: int = 1) -> dict[str, Any]:
    """The result of a training in new processes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".toml")
    file.write_text(config.to_toml(), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    python(*launcher, __file__, file, folder, **PASSIVE, OMP_NUM_THREADS=str(threads))
    return Run(folder).read_result()


def clocked_rate(config: TrainConfig, processes: int = 1, threads: int = 1) -> float:
    """Steps a second of a new training, by the clock: of a machine that does nothing else. The first step,
    which compiles, and validations do not count."""
    with tempfile.TemporaryDirectory() as folder:
        result = in_processes(replace(config, minutes=0.0), Path(folder, "run"), processes, threads)
    return float(result["steps_per_second"])


def gain_of_processes(config: TrainConfig, processes: int) -> float:
    """Steps a second of several processes, divided by those of one."""
    if processes == 1:
        return 1.0
    few = replace(config, steps=1 + CLOCKED_STEPS)
    return clocked_rate(few, processes) / clocked_rate(few)


def main() -> None:
    import rival_networks  # noqa: F401  it registers the rivals

    file, folder = sys.argv[1:]
    new_or_interrupted(configure(file), Path(folder))


if __name__ == "__main__":
    main()
