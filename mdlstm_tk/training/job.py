"""A training run from its configuration to `result.json`, in this order: prepare, train, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data import Task
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import distributed
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.evaluation import evaluate_run
from mdlstm_tk.training.loop import require_steps_left, train
from mdlstm_tk.training.memory import check_memory, check_weights
from mdlstm_tk.training.networks import build_network, fit_config, texts_without_room
from mdlstm_tk.training.progress import Progress
from mdlstm_tk.training.run_folder import Run, new_run, open_run
from mdlstm_tk.training.settings import configure_resumed, named_code
from mdlstm_tk.training.tasks import find_data, load_task, make_task


@dataclass(frozen=True)
class TrainingJob:
    """A training run that is ready to start.

    Attributes:
        config: what to train.
        task: the task of the configuration.
        run: the folder to train into.
        context: this process among those that train together. Only the main one should print.
        resumed: does the run go on from its last checkpoint?
        steps_done: optimizer steps that the run has done already.
        is_trained: are all steps done, so that only the result and the pictures of the run are missing?
        notes: what the user should know about the data before training starts, one line each.
    """

    config: TrainConfig
    task: Task
    run: Run
    context: DistributedContext
    resumed: bool = False
    steps_done: int = 0
    is_trained: bool = False
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What is trained, for how long, and where the files go."""
        if self.is_trained:
            return f"{self.run.folder} has done {self.steps_done} steps; writing its result and pictures"
        size = format_size(self.task.spec.size)
        return (
            f"training {self.config.model} on {self.task.name} {size} for {self.config.steps} steps "
            f"into {self.run.folder}"
        )


def new_job(config: TrainConfig, folder: Path | None = None, force: bool = False) -> TrainingJob:
    """Prepare a new run and create its folder.

    Args:
        config: see `configure`.
        folder: the run folder; the first free one of runs/NAME, runs/NAME-2, … if None.
        force: allow a folder that is not empty.

    Raises:
        InputError: the configuration does not describe a network and a task, or the folder is not empty.
        DeviceError: the device does not exist.
        MissingExtraError: the task needs a package that is not installed.
        MDLSTMError: the folder cannot be written.
    """
    context = distributed.init(config.device)
    task = make_task(config)
    config = fit_config(config, task)
    notes = _check(config, task, context)
    created = new_run(run_name(config, task), folder, force).folder if context.is_main else Path()
    run = Run(context.broadcast(created), config.code)
    return TrainingJob(config, task, run, context, notes=notes)


def resume_job(
    folder: Path,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    on_message: Callable[[str], None] = lambda message: None,
) -> TrainingJob:
    """Prepare to go on with a run from its last checkpoint.

    A run that was killed after its last step, before its result and its pictures were written, is only
    evaluated.

    Args:
        folder: the run folder.
        options: changed settings, see `configure_resumed`. A model or cell "file.py:name" is no change: it
            says where the file of the run's own network or cell is.
        settings: the same from another source, whose values `options` replaces.
        on_message: called, in the main process only, before the user's data are read, with a line that says
            where they are.

    Raises:
        InputError: there is no run, a setting cannot change, the run is complete, or it names a Python file
            that the user does not name.
        DeviceError, MissingExtraError: see `new_job`.
    """
    code = named_code(settings or {}, options or {})
    changes, set_values = (
        {key: value for key, value in (values or {}).items() if key not in code}
        for values in (options, settings)
    )
    run = open_run(folder, code)
    checkpoint = load_checkpoint(run.last, code)
    if run.best.exists():
        load_checkpoint(run.best, code)  # it is evaluated in the end: better refused now
    config = find_data(configure_resumed(checkpoint.config, changes, set_values), folder)
    is_trained = False
    try:
        require_steps_left(config, run, checkpoint.step, checkpoint.best_step)
    except InputError:
        if run.is_evaluated:
            raise
        is_trained = True
    context = distributed.init(config.device)
    if config.data and context.is_main:
        on_message(f"reading the data of the run at {config.data}")
    task = load_task(config, checkpoint.spec, config.data)
    notes = _check(config, task, context)
    return TrainingJob(config, task, run, context, True, checkpoint.step, is_trained, notes)


def run_job(
    job: TrainingJob, on_step: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Train unless that is done, then measure the best weights and write `result.json`.

    Args:
        job: see `new_job` and `resume_job`.
        on_step: called after each step, in the main process only.

    Returns:
        The content of `result.json`, see `evaluate_run`; {} in processes other than the main one.

    Raises:
        KeyboardInterrupt: training was interrupted; the last checkpoint is written before.
        MDLSTMError: training diverged, or the folder cannot be written.
    """
    is_main = job.context.is_main
    if not job.is_trained:
        train(job.config, job.run, job.resumed, on_step if is_main else lambda progress: None, job.task)
    return evaluate_run(job.run, job.task) if is_main else {}


def run_name(config: TrainConfig, task: Task) -> str:
    """The name of a new run: MODEL-SIZE, preceded by the task unless that is "diagonal"."""
    model = config.model.rpartition(":")[2].lower()
    prefix = "" if task.name == "diagonal" else f"{task.name}-"
    return f"{prefix}{model}-{format_size(task.spec.size)}"


def _check(config: TrainConfig, task: Task, context: DistributedContext) -> tuple[str, ...]:
    """Find errors of the configuration before a folder is created; return notes on data and network."""
    check_weights(config, task.spec)
    network = build_network(config, task.spec)
    samples = context.shard(config.batch_size)
    notes = list(getattr(task, "summary", ()))
    if config.data and config.windows:
        notes.append(f"windows of {config.windows} positions; choose others with --windows")
    if names := texts_without_room(network, task):
        notes.append(
            f"{len(names)} texts ({names[0]} is the first) need more steps than the network makes of "
            "their images, so nothing is learned from them; try --set windows=2x1,2x1"
        )
    if note := check_memory(network, config, task, samples.stop - samples.start, context.device):
        notes.append(note)
    return tuple(notes)
