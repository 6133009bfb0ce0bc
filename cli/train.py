"""`mdlstm train`: every setting of a training is an option."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli import console, options
from mdlstm_tk.errors import InputError
from mdlstm_tk.training.config import choices, list_settings

if TYPE_CHECKING:
    from mdlstm_tk.training import Progress, TrainingJob

CONFIG, OUTPUT = "TOML file of settings.", "Folder of the run.  (default: runs/TASK-MODEL-SIZE)"
METAVARS = {"data": "PATH", "init": "RUN", "windows": "SIZE,...", "device": "auto|cpu|cuda|cuda:N"}
METAVARS |= dict.fromkeys(("size", "resize", "crop"), "SIZE")
METAVARS |= dict.fromkeys(("task", "model", "cell"), "NAME")


def with_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes **settings an option for each setting of `TrainConfig`, in panels."""
    own = [*inspect.signature(verb, eval_str=True).parameters.values()][:-1]
    added = []
    for row in list_settings():
        names = [f"--{row.key.replace('_', '-')}", *(["-m"] if row.key == "model" else [])]
        values = choices(row.key)
        listed = f" ({', '.join(values)})" if METAVARS.get(row.key) == "NAME" and row.key != "task" else ""
        default = row.default or row.empty
        help = f"{row.help.rstrip('.')}{listed}." + (f"  (default: {default})" if default else "")
        metavar = METAVARS.get(row.key) or "|".join(values) or "VALUE"
        how: Any = {"metavar": metavar, "rich_help_panel": row.panel, "show_default": False}
        annotation = Annotated[str | None, typer.Option(*names, help=help, **how)]
        added.append(
            inspect.Parameter(row.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in [*added, *own]]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {each.name: each.annotation for each in parameters}
    return verb


@with_settings
def train(
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help=CONFIG)] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder to continue.")] = None,
    output: Annotated[Path | None, options.output(OUTPUT, "DIR")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 1,
    json: options.Json = False,
    **settings: Any,
) -> None:
    """Train a network on a built-in task, or on your own data.

    Without options it trains the MD-LSTM on 8x8 matrices of the random-diagonal task, into runs/md-8x8.
    Every task has its own defaults, which `mdlstm info TASK` lists. A file given with --config overrides
    them, options override both.
    """
    if resume is not None and (output is not None or config is not None):
        raise InputError("--resume takes folder and settings from the run; leave out -o and -c")
    settings = {key: value for key, value in settings.items() if value is not None}
    from mdlstm_tk import training

    if resume:
        prepare = partial(training.resume_job, resume, settings)
    else:
        prepare = partial(training.new_job, training.configure(settings, config), output, force)
    training.in_processes(processes, _train, prepare, json, console.level)


def _train(prepare: Callable[[], TrainingJob], json: bool, level: int) -> None:
    """Train in this process, which may be one of several that the command started."""
    console.level = level if os.environ.get("RANK", "0") == "0" else 0
    job = prepare()
    result = train_with_progress(job)
    if not job.context.is_main:
        return
    from mdlstm_tk.training.progress import describe_times

    run = job.run
    console.note(f"{run.folder} has {result['ending']}")
    if result["errors"]:
        errors = ", ".join(f"{name} {value:.5g}" for name, value in result["errors"].items())
        weights = "best weights" if job.task.count("validation") else "last weights"
        cropped = f" cropped to {job.config.crop}" if job.config.crop else ""
        chosen = ", which chose them" if result["in_sample"] else ""
        console.note(f"{weights}, on {result['split']} data{cropped}{chosen}: {errors}")
    else:
        console.note("no data were held out, on which the weights could be measured")
    console.note(f"{describe_times(run.read_times())}; wrote {run.best}, {run.curves}, {run.prediction}")
    if json:
        console.print_json({"run": str(run.folder), **result})
    if job.config.data:
        console.note(f"for a page with examples: mdlstm report {run.folder} --data {job.config.data}")
    next_of_run(run.folder)


def train_with_progress(job: TrainingJob) -> dict[str, Any]:
    """Train and draw a run, with a progress bar in the main process; see `mdlstm_tk.training.train`."""
    from mdlstm_tk.report import draw_run
    from mdlstm_tk.training import RecentMetrics, train

    if not job.context.is_main:
        return train(job)
    for line in [*job.notes, job.description]:
        console.note(line)
    for line in job.config.to_toml().splitlines():
        console.note(f"  {line}", least=2)
    metrics, config, seconds = RecentMetrics(), job.config, round(60 * job.config.minutes)
    total, done = (seconds, job.seconds_done) if seconds else (config.steps, job.steps_done)
    try:  # the clock ends a training of minutes, and is what the bar shows
        with console.progress(total, done, "s" if seconds else "steps") as show:

            def on_step(state: Progress) -> None:
                metrics.add(state)
                show(seconds - (state.seconds_left or 0) if seconds else state.step, metrics.describe())

            result = train(job, on_step)
    except KeyboardInterrupt:
        if job.run.best.exists():
            draw_run(job.run, job.task)
        if job.run.last.exists():
            console.next_command("train", "--resume", job.run.folder)
        raise
    draw_run(job.run, job.task, job.network)
    return result


def next_of_run(folder: Path, verb: str = "") -> None:
    """Name the command to type next for a run; "" for the verb of its kind of task."""
    from mdlstm_tk._util.sizes import format_size
    from mdlstm_tk.kinds import training_of
    from mdlstm_tk.training import load_checkpoint, open_run

    checkpoint = load_checkpoint(open_run(folder).checkpoint)
    spec = checkpoint.spec
    verb = verb or training_of(spec.kind).next_verb
    # A model for one size would refuse samples of another, and new images of one's own may have another.
    is_free = checkpoint.config.data or spec.mixed_sizes or len(spec.size) == 1
    size = ["--form", "scan"] if is_free else ["--size", format_size(spec.size)]
    console.next_command(verb, folder, *(size if verb == "export" else []))
