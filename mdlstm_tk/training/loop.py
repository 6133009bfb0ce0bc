"""`train`: the one function that trains, for all tasks, networks and numbers of processes."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch

from mdlstm_tk._util.folders import locked
from mdlstm_tk._util.text import to_json
from mdlstm_tk.data import Split
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.kinds import training_of
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.dataloader import dataloader
from mdlstm_tk.training.job import TrainingJob
from mdlstm_tk.training.memory import keep_freed_memory
from mdlstm_tk.training.networks import count_parameters
from mdlstm_tk.training.progress import Progress, StepTimer, TrainingTimes
from mdlstm_tk.training.trainer import Trainer

SMALL_STEP = 20_000_000  # operations of the forward pass of a step, about
OnStep = Callable[[Progress], None]


def train(job: TrainingJob, on_step: OnStep = lambda progress: None) -> dict[str, Any]:
    """Train into the run folder of a job, then measure the best weights and write `result.json`.

    The folder gets `config.toml`, a line of metrics per step, and the last and the best checkpoint. Under
    `in_processes` or torchrun, several processes share each batch, and only the main one writes. In the
    end, `job.network` holds the best weights, in eval mode.

    Args:
        job: see `new_job` and `resume_job`. A job is trained once.
        on_step: called in the main process after each step; on a GPU after some steps, for each of them.

    Returns:
        The content of `result.json`: task, model, parameters; "ending", see `RunState.describe`; step,
        split and errors by name, on the test split if there is one, else on the validation split, or
        None and {} if there is neither; "in_sample", true of the validation split, whose data have
        chosen the weights; "seconds" of the optimizer steps, summed over interruptions, their rate
        "steps_per_second", and apart from them "validation_seconds" and "compilation_seconds", see
        `TrainingTimes`; and what the kind adds. {} in processes other than the main one.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the last checkpoint is written before it is raised.
        MDLSTMError: training diverged, a process that prepares batches was killed, the folder cannot be
            written, or another training works in it.
        InputError: the run has gone on since it was opened, or another one has been trained in its folder.
    """
    keep_freed_memory()
    with _folder_of(job), _threads_of(job):
        trainer = Trainer(job)
        if job.best is not None and job.best is job.checkpoint:
            trainer.save(job.run.best)  # which a kill may have prevented
        if trainer.state.validated_on != job.validated_on:
            trainer.measure_best_again(job.validated_on)
        is_due = job.is_trained or trainer.state.step % job.config.evaluate_every == 0
        if is_due and trainer.state.validated < trainer.state.step:  # it was interrupted there
            _validate_last_step(job, trainer)
        if not trainer.state.is_done(job.config):
            _train_steps(job, trainer, on_step)
        return _conclude(job, trainer)


@contextmanager
def _folder_of(job: TrainingJob) -> Iterator[None]:
    """Keep other trainings out of the folder, from which the main process alone reads and writes."""
    if not job.context.is_main:
        yield
        return
    run = job.run
    with locked(run.folder, "give another folder"):
        if job.checkpoint is not None and load_checkpoint(run.last).step != job.steps_done:
            raise InputError(f"{run.folder} has gone on since it was opened; open it again")
        if job.checkpoint is None and not job.replaces and run.last.exists():
            raise InputError(
                f"{run.folder} has been trained into since this run was prepared; give another folder, or "
                "train into it with force=True (--force)"
            )
        yield


@contextmanager
def _threads_of(job: TrainingJob) -> Iterator[None]:
    """Use one thread if a step is so small that waking others takes longer than they save."""
    samples = job.context.share(job.config.batch_size)
    positions = samples * prod(job.task.largest_batch(job.config.seed, job.config.batch_size))
    threads = torch.get_num_threads()
    if 2 * count_parameters(job.network) * positions < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_steps(job: TrainingJob, trainer: Trainer, on_step: OnStep) -> None:
    """Train until the last step, an early stop, or an interrupt."""
    config, run, context = job.config, job.run, job.context
    saved_step, stop, start = trainer.state.step, False, time.perf_counter() - trainer.state.seconds
    is_alone = context.world_size == 1
    timer = StepTimer()
    earlier_times = run.read_times() if job.checkpoint else TrainingTimes()

    def save() -> None:
        # The last checkpoint first: it knows whether it is the best, should the other not get written.
        trainer.save(run.last, *([run.best] if trainer.state.is_best else []))
        if context.is_main:
            run.write_times(earlier_times + timer.times)

    with ExitStack() as stack:
        write_record, flush = stack.enter_context(_metrics_writer(job))
        interrupts = stack.enter_context(deferred_interrupt())
        timer.skip()
        try:
            for batch in dataloader(config, job.task, saved_step, context.shard):
                is_due = trainer.train_step(batch, bool(interrupts))
                timer.end_step()
                if config.minutes:  # else a checkpoint depends on the steps alone
                    seconds = context.main_number(time.perf_counter() - start)
                    trainer.state = replace(trainer.state, seconds=seconds)
                step, seconds = trainer.state.step, trainer.state.seconds
                validates = trainer.state.is_complete(config) or step % config.evaluate_every == 0
                if not (is_due or validates or (is_alone and interrupts)):
                    continue
                for progress, was_interrupted in trainer.read_metrics():
                    if validates and progress.step == step:
                        try:
                            progress = replace(progress, validation=trainer.validate())
                        except BaseException:  # the validation is made up for on resuming
                            if context.is_main:
                                write_record(progress.record())
                            raise
                        timer.end_validation()
                    steps_left = config.steps - progress.step
                    seconds_left = timer.seconds_left(steps_left, -(-steps_left // config.evaluate_every))
                    if config.minutes:
                        seconds_left = max(60 * config.minutes - seconds, 0.0)
                    rate = timer.steps_per_second
                    progress = replace(progress, steps_per_second=rate, seconds_left=seconds_left)
                    # Several processes learn of an interrupt from the metrics, and stop together.
                    stop = stop or was_interrupted
                    if context.is_main:
                        write_record(progress.record())
                        on_step(progress)
                stop = stop or (is_alone and bool(interrupts))
                if validates:
                    flush()
                    save()
                    saved_step = step
                    if trainer.state.is_done(config):
                        break
                if stop:
                    break
                timer.skip()
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):  # torch raises no class of its own for it
                raise
            raise MDLSTMError(
                f"a process that prepares batches was killed ({error!s:.200}); if memory is short, "
                "try fewer workers or a smaller cache"
            ) from None
        finally:
            try:
                for progress, _ in trainer.read_metrics():  # of steps since the last reading, on a GPU
                    if context.is_main:
                        write_record(progress.record())
            finally:
                flush()
                if trainer.state.step > saved_step and trainer.is_whole:
                    save()
    if stop:
        raise KeyboardInterrupt


def _validate_last_step(job: TrainingJob, trainer: Trainer) -> None:
    """Validate after the step at which a run was interrupted, as an uninterrupted one does."""
    validation = trainer.validate()
    if job.context.is_main:
        step, records = job.steps_done, job.run.read_metrics()
        last = next((record for record in records if record["step"] == step), {"step": step})
        last |= {"validation": validation} if validation else {}
        job.run.write_metrics([*(record for record in records if record["step"] < step), last])
    trainer.save(job.run.last, *([job.run.best] if trainer.state.is_best else []))


def _conclude(job: TrainingJob, trainer: Trainer) -> dict[str, Any]:
    """Measure the best weights on the device of the training as the kind does, and write `result.json`."""
    run, task, network = job.run, job.task, job.network
    if trainer.best_weights is None:  # no validation gave a number
        trainer.keep_best()
        if job.context.is_main:
            warnings.warn(
                "no validation gave a number, so the last weights count as the best; are there NaN or very "
                "large values in the data?",
                stacklevel=3,
            )
    assert trainer.best_weights is not None
    network.load_state_dict(trainer.best_weights)
    best_step = trainer.state.best_step or trainer.state.step
    split: Split = "test" if task.count("test") else "validation"
    has_samples = task.count(split) > 0
    errors, details = training_of(task.spec.kind).conclude(job, best_step, split)
    if not job.context.is_main:
        return {}
    times = run.read_times()
    result = {
        "task": task.name,
        "model": job.config.model,
        "parameters": count_parameters(network),
        "ending": trainer.state.describe(job.config),
        "step": best_step,
        "seconds": round(times.training, 1),
        "steps_per_second": round(times.steps / times.training, 3) if times.training else None,
        "validation_seconds": round(times.validation, 1),
        "compilation_seconds": round(times.compilation, 1),
        "split": split if has_samples else None,
        "in_sample": has_samples and split == "validation",
        "errors": errors,
        **details,
    }
    run.write_result(result)
    return result


@contextmanager
def _metrics_writer(
    job: TrainingJob,
) -> Iterator[tuple[Callable[[dict[str, Any]], None], Callable[[], object]]]:
    """Prepare the folder, keep the records up to the checkpoint; yield functions to add one and to flush
    all."""
    config, run = job.config, job.run
    if not job.context.is_main:
        yield lambda record: None, lambda: None
        return
    records = []
    if job.checkpoint is not None:
        records = [record for record in run.read_metrics() if record["step"] <= job.steps_done]
    run.start(resume=job.checkpoint is not None)
    run.write(run.config, config.to_toml())
    if job.samples:
        run.write_samples(job.samples, job.learned)
    run.write_metrics(records)
    events = None
    if config.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(str(run.folder), purge_step=job.steps_done + 1)

    def write(record: dict[str, Any]) -> None:
        file.write(to_json(record) + "\n")
        if events is not None:
            flat = record | {f"validation/{k}": v for k, v in record.get("validation", {}).items()}
            for name, value in flat.items():
                if name not in ("step", "validation"):
                    events.add_scalar(name, value, record["step"])

    with run.metrics.open("a", encoding="utf-8") as file, closing(events) if events else ExitStack():
        yield write, file.flush


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Defer the first Ctrl-C or SIGTERM to the end of the step; a second one takes effect immediately.

    Yields the list of signals received so far.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield signals
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: one of C code, which Python could not set again; a shell lets background jobs ignore Ctrl-C
    kept = None, signal.SIG_IGN
    previous = {number: handler for number, handler in handlers.items() if handler not in kept}

    def on_signal(number: int, frame: Any) -> None:
        signals.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield signals
    finally:
        restore()
