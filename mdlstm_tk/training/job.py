"""A training run that is ready to start: its configuration, its task, its network and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import inf, isfinite
from pathlib import Path
from typing import Any

from torch import nn

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, duration
from mdlstm_tk.data import Split, Task
from mdlstm_tk.data.samples import DIGEST_BYTES
from mdlstm_tk.data.spec import SampleId
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.kinds import training_of
from mdlstm_tk.models import model_options
from mdlstm_tk.training import distributed
from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.evaluation import best_measure
from mdlstm_tk.training.memory import check_memory
from mdlstm_tk.training.networks import build_network, columns_per_step, fit_config
from mdlstm_tk.training.run_folder import Run, new_run, open_run
from mdlstm_tk.training.run_state import RunState
from mdlstm_tk.training.run_task import describe_changes, describe_overlap, match_run
from mdlstm_tk.training.settings import configure_resumed
from mdlstm_tk.training.tasks import (
    find_data,
    load_task,
    make_task,
    remember_data,
)


@dataclass(frozen=True)
class TrainingJob:
    """A training run that is ready to start; see `new_job`, `resume_job` and `train`.

    Attributes:
        config: what to train.
        task: the task of the configuration.
        network: its network, on the CPU. `train` moves and trains it.
        run: the folder to train into.
        context: this process among those that train together. Only the main one should print.
        checkpoint: the last checkpoint of a run that goes on; None for a new one.
        best: the best one until then.
        notes: notes for the user on data, network and memory, one line each.
        samples: the user's samples that the run has had so far, by split.
        learned: those that the weights have learned before, in this run or in that of `init`.
        replaces: whether a new run may replace another one in its folder.
    """

    config: TrainConfig
    task: Task
    network: nn.Module
    run: Run
    context: DistributedContext
    checkpoint: Checkpoint | None = None
    best: Checkpoint | None = None
    notes: tuple[str, ...] = ()
    samples: Mapping[Split, Sequence[SampleId]] = field(default_factory=dict)
    learned: Sequence[SampleId] = ()
    replaces: bool = False

    @property
    def validated_on(self) -> str:
        """The digest of the user's validation samples, see `RunState`."""
        return _digest(self.task.identities.get("validation", ()))

    @property
    def steps_done(self) -> int:
        """Optimizer steps that the run has done already."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def seconds_done(self) -> int:
        """Seconds that a run with `minutes` has trained for already."""
        return round(self.checkpoint.state.seconds) if self.checkpoint else 0

    @property
    def is_trained(self) -> bool:
        """True if nothing is left to train, so that only result and pictures of the run are missing."""
        return self.checkpoint is not None and self.checkpoint.state.is_done(self.config)

    @property
    def description(self) -> str:
        """The network, the task, the length of the training and the folder of the run, in one line."""
        if self.is_trained:
            done = counted(self.steps_done, "step")
            return f"{self.run.folder} has done {done}; writing its result and pictures"
        size, config = format_size(self.task.spec.size), self.config
        length = duration(60 * config.minutes) if config.minutes else counted(config.steps, "step")
        return f"training {config.model} on {self.task.name} {size} for {length} into {self.run.folder}"


@checked
def new_job(
    config: TrainConfig,
    folder: str | Path | None = None,
    force: bool = False,
    task: Task | None = None,
) -> TrainingJob:
    """Prepare a new run and create its folder.

    Args:
        config: see `configure`.
        folder: the run folder; the first free one of runs/NAME, runs/NAME-2, … if None.
        force: allow a folder that is not empty.
        task: the task, if the caller has it; otherwise that of the configuration.

    Raises:
        InputError: the configuration does not describe a network and a task, the folder is not empty, or
            not enough memory is available.
        DeviceError: the device does not exist.
        MissingExtraError: the task needs a package that is not installed.
        MDLSTMError: the folder cannot be written.
    """
    require_packages(config)
    context = distributed.init(config.device)
    task = task or make_task(config)
    best_measure(task, config)  # which refuses a measure that the task does not have
    config = fit_config(config, task)
    network, notes = _build(config, task, context)
    learned: Sequence[SampleId] = ()
    if config.init:
        source = open_run(Path(config.init))
        notes += load_checkpoint(source.checkpoint).start(network, config, task.spec)
        learned = source.read_learned()
    notes += tuple(describe_overlap(task.identities, learned))
    path = new_run(run_name(config, task), folder, force).folder if context.is_main else Path()
    run = Run(context.broadcast(path))
    config = remember_data(config, run.folder)
    return TrainingJob(
        config,
        task,
        network,
        run,
        context,
        notes=notes,
        samples=task.identities,
        learned=learned,
        replaces=force,
    )


@checked
def resume_job(
    folder: str | Path,
    options: Mapping[str, Any] | None = None,
    task: Task | None = None,
) -> TrainingJob:
    """Prepare to go on with a run from its last checkpoint.

    A run that was killed after its last step, before its result and its pictures were written, is only
    evaluated. If the user's data have changed, each sample stays in its split, and new ones are trained on.

    Args:
        folder: the run folder.
        options: changed settings, see `configure_resumed`.
        task: the task, if the caller has it; otherwise that of the run.

    Raises:
        InputError: there is no run, a setting cannot change, the run is complete, or the data have other
            classes or channels.
        DeviceError, MissingExtraError: see `new_job`.
    """
    run = open_run(folder)
    checkpoint = load_checkpoint(run.last)
    config = find_data(configure_resumed(checkpoint.config, options or {}), run.folder)
    if run.is_evaluated:
        require_work_left(config, run, checkpoint.state)
    state = checkpoint.state
    changes = state.describe_rise(checkpoint.config, config)
    settings_file = run.config.read_text(encoding="utf-8", errors="replace") if run.config.exists() else ""
    if settings_file not in ("", checkpoint.config.to_toml()):
        changes.append(f"{run.config} differs from the settings of the last checkpoint, which count")
    best = None if state.is_best or not run.best.exists() else load_checkpoint(run.best)
    if not state.is_best and (best is None or best.step != state.best_step):
        changes.append(f"{run.best} is not the best checkpoint of this training; the best is chosen anew")
        state = replace(state, score=inf, best_step=0, stale=0)
    checkpoint = replace(checkpoint, state=state)
    require_packages(config)
    context = distributed.init(config.device)
    known, learned = run.read_samples(), run.read_learned()
    if task is None:
        task = load_task(config, checkpoint.spec, config.data, known)
    else:
        match_run(task, config, checkpoint.spec)
    config = remember_data(replace(config, size=format_size(task.spec.size)), run.folder)
    now, samples = task.identities, dict(known or {})
    if known and now:
        changes += describe_changes(known, now)
    elif now:
        changes.append(f"{run.samples} is missing, so samples that were trained on are not known")
    if isfinite(state.score) and state.validated_on != _digest(now.get("validation", ())):
        changes.append("validation samples or targets have changed, so the best weights are measured again")
    changes += describe_overlap(now, learned)
    for split, each in now.items():
        seen = dict.fromkeys(samples.get(split, ()))
        samples[split] = [*samples.get(split, ()), *(identity for identity in each if identity not in seen)]
    network, notes = _build(config, task, context)
    return TrainingJob(
        config,
        task,
        network,
        run,
        context,
        checkpoint,
        best or checkpoint,
        (*changes, *notes),
        samples,
        learned,
    )


def _digest(samples: Sequence[SampleId]) -> str:
    """The digest of samples and their targets, in any order and whatever they are called; "" of none."""
    contents = sorted((each.digest, each.target) for each in samples)
    return blake2b(repr(contents).encode(), digest_size=DIGEST_BYTES).hexdigest() if contents else ""


def require_work_left(config: TrainConfig, run: Run, state: RunState) -> None:
    """Check that training goes on.

    Raises:
        InputError: all steps are done, the time is over, or training has stopped early.
    """
    if state.is_complete(config):
        more = "--minutes" if config.minutes else "--steps"
        raise InputError(f"{run.folder} has {state.describe(config)} already; ask for more with {more}")
    if state.has_stopped(config):
        raise InputError(f"{run.folder} has {state.describe(config)}; go on with --patience 0")


def require_packages(config: TrainConfig) -> None:
    """Check for packages that training would miss only after all data have been read.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    if config.tensorboard:
        require("tensorboard", "tensorboard")
    if config.augment:
        require("scipy.ndimage", "data")


def run_name(config: TrainConfig, task: Task) -> str:
    """The name of a new run: TASK-MODEL-SIZE, without the task if it is the default one, and without /."""
    prefix = "" if config.task == TrainConfig.task else f"{task.name}-"
    return f"{prefix}{config.model.lower()}-{format_size(task.spec.size)}".replace("/", "-")


def _build(
    config: TrainConfig, task: Task, context: DistributedContext
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network if there is memory for it; also returns notes on data, network and memory."""
    memory = check_memory(config, task, context.share(config.batch_size), context.device)
    network = build_network(config, task.spec)
    notes = list(task.summary)
    if config.patience and not task.count("validation"):
        notes.append("patience (--patience) ends no training, as there are no validation data")
    if config.data and config.windows:
        notes.append(f"windows of {config.windows} positions; choose others with --windows")
    has_windows = "windows" in model_options(config.model, task.spec.kind)
    remedy = "--windows 2x1,2x1" if has_windows else "a larger --resize, or --model md"
    notes += training_of(task.spec.kind).check_steps(columns_per_step(network), task, remedy)
    if memory:
        notes.append(memory)
    return network, tuple(notes)
