"""The training loop: one for all tasks, networks and numbers of processes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdlstm_tk.data import Task
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.training import distributed
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.dataloader import dataloader
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.networks import fit_config
from mdlstm_tk.training.progress import Progress, StepTimer, TrainingTimes
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.tasks import make_task, remember_data
from mdlstm_tk.training.trainer import Trainer

WriteRecord = Callable[[dict[str, Any]], None]


def train(
    config: TrainConfig,
    run: Run,
    resume: bool = False,
    on_step: Callable[[Progress], None] = lambda progress: None,
    task: Task | None = None,
) -> Progress:
    """Train into a run folder: `config.toml`, a line of metrics per step, the last and the best checkpoint.

    Under torchrun, several processes share each batch, and only the main one writes.

    Args:
        config: what to train.
        run: the folder, which must exist.
        resume: go on from the last checkpoint to `config.steps`.
        on_step: called after each step.
        task: the task of `config`, if the caller has it already.

    Returns:
        The progress after the last step.

    Raises:
        InputError: the configuration does not describe a network and a task, all steps are done already, or
            training has stopped early.
        DeviceError: the device does not exist.
        MDLSTMError: training diverged, or the folder cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the last checkpoint is written before it is raised.
    """
    context = distributed.init(config.device)
    task = task or make_task(config)
    config = remember_data(fit_config(config, task), run.folder)
    shard = context.shard(config.batch_size)
    trainer = Trainer(config, task, context)
    if resume:
        checkpoint = load_checkpoint(run.last)
        require_steps_left(config, run, checkpoint.step, checkpoint.best_step)
        trainer.restore(checkpoint)
    first_step = saved_step = trainer.step
    progress, stop, timer = Progress(first_step), False, StepTimer()
    earlier_times = run.read_times() if resume else TrainingTimes()

    def save(*paths: Path) -> None:
        trainer.save(*paths)
        if context.is_main:
            run.write_times(earlier_times + timer.times)

    with ExitStack() as stack:
        write_record, flush = stack.enter_context(_metrics_writer(config, run, first_step, context))
        interrupts = stack.enter_context(_deferred_interrupt())
        timer.skip()
        try:
            for batch in dataloader(config, task, first_step, shard):
                progress, stop = trainer.train_step(batch, bool(interrupts))
                timer.end_step()
                validated = progress.step % config.evaluate_every == 0 or progress.step == config.steps
                if validated:
                    progress = replace(progress, validation=trainer.validate())
                    timer.end_validation()
                left = config.steps - progress.step
                progress = replace(
                    progress,
                    steps_per_second=timer.steps_per_second,
                    seconds_left=timer.seconds_left(left, -(-left // config.evaluate_every)),
                )
                write_record(progress.record())
                on_step(progress)
                if validated:
                    flush()
                    best = [run.best] if trainer.best_step == trainer.step else []
                    save(*best, run.last)
                    saved_step = trainer.step
                    if has_stopped_early(config, trainer.step, trainer.best_step):
                        break
                # With several processes, all learn of an interrupt in the next step and stop together.
                stop = stop or (context.world_size == 1 and bool(interrupts))
                if stop:
                    break
                timer.skip()
        finally:
            flush()
            if trainer.step > saved_step:
                save(run.last, *([] if run.best.exists() else [run.best]))
    if stop:
        raise KeyboardInterrupt
    return progress


def has_stopped_early(config: TrainConfig, step: int, best_step: int) -> bool:
    """Whether `config.patience` validations in a row, up to that of `step`, brought no improvement."""
    unimproved = (step - best_step) // config.evaluate_every
    return 0 < config.patience <= unimproved and step % config.evaluate_every == 0


def require_steps_left(config: TrainConfig, run: Run, step: int, best_step: int) -> None:
    """Check that training goes on after a checkpoint.

    Raises:
        InputError: all steps are done, or training has stopped early.
    """
    if step >= config.steps:
        raise InputError(f"{run.folder} has done {step} steps already; ask for more with --steps")
    if has_stopped_early(config, step, best_step):
        raise InputError(
            f"{run.folder} has stopped at step {step}, {config.patience} validations after its best; "
            "go on with --set patience=0"
        )


@contextmanager
def _metrics_writer(
    config: TrainConfig, run: Run, step: int, context: DistributedContext
) -> Iterator[tuple[WriteRecord, Callable[[], None]]]:
    """Write `config.toml`, keep the first `step` records; yield functions to add a record and to flush."""
    if not context.is_main:
        yield lambda record: None, lambda: None
        return
    records = run.read_metrics()[:step] if step else []  # refused, if damaged, before anything is removed
    run.start(resume=step > 0)
    with atomic_write(run.config) as temporary:
        temporary.write_text(config.to_toml(), encoding="utf-8")
    run.write_metrics(records)
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
    """Defer the first Ctrl-C or SIGTERM to the end of the step; a second one takes effect immediately.

    Yields the list of signals received so far.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield received
    finally:
        restore()
