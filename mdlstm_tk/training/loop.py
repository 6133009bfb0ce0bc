"""The training loop: the same for every task, every network and any number of processes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data import Task
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.sizes import format_size
from mdlstm_tk.training.build import make_task
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.dataloader import feed
from mdlstm_tk.training.distributed import Ranks, join
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.trainer import Progress, Trainer

WINDOW = 20  # steps that a running mean of the loss spans
Write = Callable[[dict[str, Any]], None]


def train(
    config: TrainConfig,
    run: Run,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
    task: Task | None = None,
) -> Progress:
    """Train into a run folder: metrics for each step, last checkpoint, best checkpoint.

    Started by torchrun, it is one of several processes that share each batch; the first alone writes.

    Args:
        config: what to train.
        run: where to; `config.toml` is written there.
        resume: go on from its last checkpoint to `config.steps`.
        report: called after each step.
        task: that of the config, if it has been made already.

    Returns:
        Where training ended. On KeyboardInterrupt (also for SIGTERM) the last checkpoint is written before
        it is raised.

    Raises:
        InputError: the config asks for what does not exist, or there is nothing left to resume.
        DeviceError: the device is not there.
        MDLSTMError: training diverged, or the folder cannot be written.
    """
    ranks = join(config.device)
    task = task or make_task(config)
    config = replace(config, size=format_size(task.spec.size))
    part = ranks.part(config.batch_size)
    trainer = Trainer(config, task, ranks)
    if resume:
        checkpoint = load_checkpoint(run.last)
        if checkpoint.step >= config.steps:
            raise InputError(
                f"{run.folder} has done {checkpoint.step} steps already; ask for more with --steps"
            )
        trainer.restore(checkpoint)
    progress, saved, stop = Progress(trainer.step), trainer.step, False
    with ExitStack() as stack:
        write, flush = stack.enter_context(_records(config, run, trainer.step, ranks))
        interrupted = stack.enter_context(_deferred_interrupt())
        try:
            for batch in feed(config, task, trainer.step, part):
                progress, stop = trainer.learn(batch, bool(interrupted))
                judged = progress.step % config.evaluate_every == 0 or progress.step == config.steps
                if judged:
                    progress = replace(progress, validation=trainer.judge())
                write(progress.record())
                report(progress)
                if judged:
                    flush()
                    best = [run.best] if trainer.best_step == trainer.step else []
                    trainer.save(*best, run.last)
                    saved = trainer.step
                    waited = (trainer.step - trainer.best_step) // config.evaluate_every
                    if config.patience and waited >= config.patience:
                        break
                # one of several processes may not stop alone: all hear of it in the next step
                stop = stop or (ranks.world == 1 and bool(interrupted))
                if stop:
                    break
        finally:
            flush()
            if trainer.step > saved:
                trainer.save(run.last, *([] if run.best.exists() else [run.best]))
    if stop:
        raise KeyboardInterrupt
    return progress


@contextmanager
def _records(
    config: TrainConfig, run: Run, step: int, ranks: Ranks
) -> Iterator[tuple[Write, Callable[[], None]]]:
    """Write `config.toml`, and go on after `step` records: what writes one, and what flushes."""
    if not ranks.leads:
        yield lambda record: None, lambda: None
        return
    run.remove_temporaries()
    with atomic_write(run.config) as temporary:
        temporary.write_text(config.to_toml(), encoding="utf-8")
    run.write_metrics(run.read_metrics()[:step] if step else [])
    events = None
    if config.tensorboard:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(str(run.folder), purge_step=step + 1)

    def write(record: dict[str, Any]) -> None:
        file.write(json.dumps(record) + "\n")
        if events is not None:
            flat = record | {f"validation/{k}": v for k, v in record.get("validation", {}).items()}
            for name, value in flat.items():
                if name not in ("step", "validation"):
                    events.add_scalar(name, value, record["step"])

    with run.metrics.open("a", encoding="utf-8") as file, closing(events) if events else ExitStack():
        yield write, file.flush


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM wait for the end of a step, which would otherwise be left half done.

    Yields a list that is no longer empty once one came. The second acts at once.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    outer = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        restore()

    def restore() -> None:
        for number, handler in outer.items():
            signal.signal(number, handler)

    for number in outer:
        signal.signal(number, press)
    try:
        yield pressed
    finally:
        restore()


def running_mean(values: list[float]) -> npt.NDArray[np.float64]:
    """The mean of the last WINDOW values at each step, or of as many as there are yet."""
    total = np.cumsum(np.asarray(values, dtype=np.float64))
    total[WINDOW:] -= total[:-WINDOW].copy()
    return total / np.minimum(np.arange(1, len(values) + 1), WINDOW)
