"""The training loop: one for all tasks, networks and numbers of processes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
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
from mdlstm_tk.training.progress import Progress, StepTimer
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
        InputError: the configuration does not describe a network and a task, or all steps are done already.
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
        if checkpoint.step >= config.steps:
            raise InputError(
                f"{run.folder} has done {checkpoint.step} steps already; ask for more with --steps"
            )
        trainer.restore(checkpoint)
    first_step = saved_step = trainer.step
    progress, stop, validations = Progress(first_step), False, 0
    with ExitStack() as stack:
        write_record, flush = stack.enter_context(_metrics_writer(config, run, first_step, context))
        interrupts = stack.enter_context(_deferred_interrupt())
        timer = StepTimer()
        try:
            for batch in dataloader(config, task, first_step, shard):
                progress, stop = trainer.train_step(batch, bool(interrupts))
                validated = progress.step % config.evaluate_every == 0 or progress.step == config.steps
                if validated:
                    progress = replace(progress, validation=trainer.validate())
                    validations += 1
                # the first step and the first validation compile kernels
                timer.tick(warm_up=progress.step == first_step + 1 or (validated and validations == 1))
                if rate := timer.steps_per_second:
                    seconds_left = (config.steps - progress.step) / rate
                    progress = replace(progress, steps_per_second=rate, seconds_left=seconds_left)
                write_record(progress.record())
                on_step(progress)
                if validated:
                    flush()
                    best = [run.best] if trainer.best_step == trainer.step else []
                    trainer.save(*best, run.last)
                    saved_step = trainer.step
                    unimproved = (trainer.step - trainer.best_step) // config.evaluate_every
                    if config.patience and unimproved >= config.patience:
                        break
                # With several processes, all learn of an interrupt in the next step and stop together.
                stop = stop or (context.world_size == 1 and bool(interrupts))
                if stop:
                    break
        finally:
            flush()
            if trainer.step > saved_step:
                trainer.save(run.last, *([] if run.best.exists() else [run.best]))
    if stop:
        raise KeyboardInterrupt
    return progress


@contextmanager
def _metrics_writer(
    config: TrainConfig, run: Run, step: int, context: DistributedContext
) -> Iterator[tuple[WriteRecord, Callable[[], None]]]:
    """Write `config.toml`, keep the first `step` records; yield functions to add a record and to flush."""
    if not context.is_main:
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
