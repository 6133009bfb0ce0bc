"""Compare networks on one task, over several seeds.

All networks get equally many parameters, but for the original settings of the random diagonal, which have
equal hidden units. On that task three networks are compared by their training losses (see
`diagonal_comparison`). On every other one, all networks that are registered for it are compared by the
errors of their best weights on test data, next to baselines without training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from mdlstm_tk._util.text import counted, to_json
from mdlstm_tk.data import Split, Task, TaskSpec, batches
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import model_names, model_options
from mdlstm_tk.training import distributed
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.diagonal_comparison import (
    LAST,
    MODELS,
    ORIGINAL_SETTINGS,
    TASK,
    diagonal_rows,
    init_original_,
    summarize_diagonal,
)
from mdlstm_tk.training.job import new_job
from mdlstm_tk.training.loop import train
from mdlstm_tk.training.networks import build_network, count_parameters, fit_config
from mdlstm_tk.training.progress import WINDOW, Progress
from mdlstm_tk.training.run_folder import Run, new_run
from mdlstm_tk.training.run_task import describe_overlap
from mdlstm_tk.training.tasks import check_settings, default_config, make_task, with_model

LEAST_TRIED = 64  # hidden units, up to which a network may have as many parameters as with fewer
SIZE_TOLERANCE = 0.1  # by which numbers of parameters may differ, unsaid


@dataclass(frozen=True)
class ComparisonPlan:
    """Which runs a comparison consists of; see `plan_comparison`.

    Attributes:
        config: configuration of the MD-LSTM; the configurations of the other networks derive from it.
        models: names of the networks.
        seeds: number of runs of each network, with seeds 0, 1, …
        folder: holds a run folder MODEL-SEED for each run, `summary.json`, and the pictures.
        original_settings: use initialisation, layer norm and learning rate of the original code.
        notes: notes for the user on the data and the sizes of networks, one line each.
    """

    config: TrainConfig
    models: tuple[str, ...]
    seeds: int
    folder: Path
    original_settings: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_diagonal(self) -> bool:
        return self.config.task == TASK

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all runs together."""
        return self.seeds * len(self.models) * self.config.steps

    @property
    def description(self) -> str:
        """The networks to train, the number of seeds, and the folder of the files."""
        subject = f"the random diagonal {self.config.size}" if self.is_diagonal else self.config.task
        return (
            f"training {', '.join(self.models)} on {subject}, {counted(self.seeds, 'seed')} of "
            f"{counted(self.config.steps, 'step')} each, into {self.folder}"
        )

    @property
    def title(self) -> str:
        """The title of table and pictures."""
        name = "random diagonal" if self.is_diagonal else self.config.task
        equal = "original settings, equal units" if self.original_settings else "equally many parameters"
        return f"{f'{name} {self.config.size}'.strip()}, {counted(self.seeds, 'seed')}, {equal}"

    def run(self, model: str, seed: int) -> Run:
        """The run of a network and a seed."""
        return Run(self.folder / f"{model}-{seed}")


class ComparisonProgress(NamedTuple):
    """The state of a comparison after a training step.

    Attributes:
        model: the network that is being trained.
        seed: its seed.
        steps_done: optimizer steps of all runs so far.
        progress: of the current run.
    """

    model: str
    seed: int
    steps_done: int
    progress: Progress

    def describe(self) -> str:
        """A line such as "md, seed 0: loss 0.012, relevant 0.03"."""
        errors = {"loss": self.progress.loss, **self.progress.errors}
        values = ", ".join(f"{name} {value:.3g}" for name, value in errors.items())
        return f"{self.model}, seed {self.seed}: {values}"


class Table(NamedTuple):
    """A table of texts; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        plan: what was compared.
        results: the content of `summary.json`, by network or baseline. Random diagonal: see
            `summarize_diagonal`. Other tasks: "hidden", "parameters", "seconds" of each run, and "errors"
            on test data, or without such on validation data, each a list over the seeds; baselines have
            errors only.
        split: the data of the errors.
        notes: what makes the numbers differ for other reasons than the networks, one line each.
    """

    plan: ComparisonPlan
    results: dict[str, dict[str, Any]]
    split: Split = "test"
    notes: tuple[str, ...] = ()

    def curves(self, name: str) -> dict[str, list[list[float]]]:
        """A loss or error at each training step, by network and seed."""
        plan = self.plan
        return {
            model: [[r[name] for r in plan.run(model, seed).read_metrics()] for seed in range(plan.seeds)]
            for model in plan.models
        }

    def table(self) -> Table:
        """The summary as a table."""
        if self.plan.is_diagonal:
            last = min(LAST, self.plan.config.steps)
            note = f"overall and relevant: mean of the last {counted(last, 'step')}, median of the seeds"
            return Table(self.plan.title, *diagonal_rows(self.results), note)
        errors = list(self.results[self.plan.models[0]]["errors"])
        columns = ["model", "hidden", "parameters"]
        columns += [column for error in errors for column in (error, "(range)")]
        rows = [_row(name, entry, errors) for name, entry in self.results.items()]
        data = "test data" if self.split == "test" else "validation data, which chose them"
        seeds = counted(self.plan.seeds, "seed")
        title = f"{self.plan.config.task}, {seeds}: errors of the best weights on {data}"
        return Table(title, [*columns, "seconds"], rows)


def configure_comparison(task: str, options: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a comparison starts from: the task's defaults with changes.

    Args:
        task: name of a task, or with data its kind.
        options: changed settings.

    Raises:
        InputError: there is no such task or setting, or it sets the model, the seed or first weights.
    """
    for key in ("model", "seed", "init"):
        if key in options:
            raise InputError(
                f"a comparison trains all models from random weights over several seeds; leave out {key}"
            )
    check_settings(task, options)
    config = replace(default_config(task, str(options.get("data", ""))), patience=0)  # equally many steps
    return config.updated(options, "options")


def plan_comparison(
    config: TrainConfig,
    seeds: int | None = None,
    folder: Path | None = None,
    force: bool = False,
    original_settings: bool = False,
) -> ComparisonPlan:
    """Prepare a comparison and create its folder.

    Args:
        config: see `configure_comparison`.
        seeds: runs of each network; 5 on the random diagonal and 3 on other tasks if None.
        folder: the folder; the first free one of runs/compare…, runs/compare…-2, … if None.
        force: allow a folder that is not empty.
        original_settings: initialisation, layer norm and learning rate of the original code, for the
            random diagonal only.

    Raises:
        InputError: the configuration does not describe a network and a task, it has too few steps, or is
            for minutes or with patience, the folder is not empty, there are no original settings for the
            task, `seeds` is below 1, or several processes were started.
    """
    if seeds is not None and seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    for key in ("minutes", "patience"):
        if value := getattr(config, key):
            raise InputError(
                f"networks are compared after equally many steps, got {key}={value}; use --{key} 0"
            )
    if distributed.init(config.device).world_size > 1:
        raise InputError("networks are compared in one process; start the comparison without torchrun")
    task = make_task(config)  # finds errors before a folder is created
    spec, notes = task.spec, (*task.summary, *describe_overlap(task.identities))
    build_network(config, spec)
    if config.task == TASK:
        if config.steps < WINDOW:
            raise InputError(f"steps must be at least {WINDOW} to compare, got {config.steps}")
        name, models, seeds = "compare", MODELS, seeds or 5
        if original_settings:
            name = "compare-original-settings"
            config = config.updated(ORIGINAL_SETTINGS, name)
    elif original_settings:
        raise InputError(f"original settings exist for the task {TASK} only, got {config.task}")
    else:
        models, others = models_for(spec)
        notes += (f"left out, as for grids of two axes: {', '.join(others)}",) * bool(others)
        name, seeds = f"compare-{config.task}", seeds or 3
        notes += tuple(_describe_sizes(config, models, task))
    folder = new_run(name, folder, force).folder
    return ComparisonPlan(config, models, seeds, folder, original_settings, notes)


def compare_models(
    plan: ComparisonPlan,
    on_step: Callable[[ComparisonProgress], None] = lambda progress: None,
    on_run_end: Callable[[Run, Task], None] | None = None,
) -> Comparison:
    """Train all networks of a plan on the same data for the same steps, and write `summary.json`.

    Args:
        plan: see `plan_comparison`.
        on_step: called after each training step.
        on_run_end: called with each finished run and its task, such as `mdlstm_tk.report.draw_run`.

    Raises:
        MDLSTMError: see `new_job` and `train`.
    """
    results: dict[str, dict[str, Any]] = {}
    steps_done, samples = 0, set()
    split: Split = "test"

    def report(model: str, seed: int, before: int, progress: Progress) -> None:
        on_step(ComparisonProgress(model, seed, before + progress.step, progress))

    for seed in range(plan.seeds):
        seed_config = replace(plan.config, seed=seed)
        task = make_task(seed_config)
        for model in plan.models:
            if plan.original_settings:
                config = with_model(seed_config, model, task.spec.kind)
            else:
                config = with_equal_parameters(seed_config, model, task)
            job = new_job(config, plan.run(model, seed).folder, True, task)
            if plan.original_settings:
                init_original_(job.network, seed)
            result = train(job, partial(report, model, seed, steps_done))
            split = result["split"] or "validation"  # of which there may be none
            entry = results.setdefault(model, {"hidden": config.hidden, "seconds": []})
            entry["parameters"] = result["parameters"]
            entry["seconds"].append(result["seconds"])
            _append_errors(entry, result["errors"])
            if on_run_end is not None:
                on_run_end(job.run, task)
            steps_done += plan.config.steps
        samples |= {batch.x.tobytes() for batch in islice(batches(task, split, seed, 64), 1)}
        for name, errors in task.baselines(seed, plan.config.steps * plan.config.batch_size).items():
            row = f"{name} (baseline)" if name in plan.models else name
            _append_errors(results.setdefault(row, {}), errors)
    own = f"each seed has {split} samples of its own, which the range of the errors includes"
    notes = (own,) if len(samples) > 1 and not plan.is_diagonal else ()
    comparison = Comparison(plan, results, split, notes)
    if plan.is_diagonal:
        overall, relevant = comparison.curves("loss"), comparison.curves("relevant")
        results.update({m: summarize_diagonal(overall[m], relevant[m]) for m in plan.models})
    Run.write(plan.folder / "summary.json", to_json(results, indent=2) + "\n")
    return comparison


def models_for(spec: TaskSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The networks that take the grids of a task, and those that do not."""
    names = model_names(spec.kind)
    taken = [each for each in names if len(spec.size) == 2 or "ndim" in model_options(each, spec.kind)]
    return tuple(taken), tuple(each for each in names if each not in taken)


def with_equal_parameters(config: TrainConfig, model: str, task: Task) -> TrainConfig:
    """The configuration of `model` whose number of parameters is closest to that of `config`.

    Settings that `model` does not have get their defaults, and `hidden` is chosen. Both have the windows
    that suit the data, see `fit_config`.
    """
    fitted, spec = fit_config(config, task), task.spec
    if model == config.model:
        return fitted
    target = _count(fitted, spec, fitted.hidden)
    return with_parameters(fit_config(with_model(config, model, spec.kind), task), spec, target)


def with_parameters(config: TrainConfig, spec: TaskSpec, target: int) -> TrainConfig:
    """`config` with the `hidden` for which its number of parameters is closest to `target`."""
    low, high = 1, 2  # bisection: the target lies between the parameters of `low` and of `high` units
    least = before = _count(config, spec, low)
    count = _count(config, spec, high)
    while (count < target or count == least) and (count > before or high < LEAST_TRIED):
        low, high = high, 2 * high
        before, count = count, _count(config, spec, high)
    if count == least:
        raise InputError(f"the network '{config.model}' is no larger with more hidden units; leave it out")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _count(config, spec, middle) < target else (low, middle)
    return replace(config, hidden=min(low, high, key=lambda n: abs(_count(config, spec, n) - target)))


def _describe_sizes(config: TrainConfig, models: Sequence[str], task: Task) -> list[str]:
    """A line for each network that cannot have about as many parameters as `config`."""
    target, notes = 0, []
    for model in (config.model, *models):
        chosen = with_equal_parameters(config, model, task)
        count = _count(chosen, task.spec, chosen.hidden)
        target = target or count
        if abs(count - target) > SIZE_TOLERANCE * target:
            units = counted(chosen.hidden, "hidden unit")
            notes.append(
                f"{model} has {count} parameters with {units}, {config.model} {target}: it "
                "cannot have as many"
            )
    return notes


def _append_errors(entry: dict[str, Any], errors: Mapping[str, float]) -> None:
    values = entry.setdefault("errors", {})  # stays empty if the task has no data to evaluate on
    for name, value in errors.items():
        values.setdefault(name, []).append(value)


def _row(name: str, entry: Mapping[str, Any], errors: list[str]) -> list[str]:
    row = [name, str(entry.get("hidden", "")), str(entry.get("parameters", ""))]
    for error in errors:
        values = entry["errors"].get(error, [])
        row += [f"{mean(values):.4g}", f"{min(values):.4g}–{max(values):.4g}"] if values else ["", ""]
    return [*row, f"{mean(entry['seconds']):.0f}" if "seconds" in entry else ""]


def _count(config: TrainConfig, spec: TaskSpec, hidden: int) -> int:
    return count_parameters(build_network(replace(config, hidden=hidden), spec))
