"""`mdlstm train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import detail, next_command, note, print_json, progress
from mdlstm_tk.cli.options import (
    OUTPUT,
    RUN,
    ForceFolder,
    Json,
    complete_files,
    complete_run,
    with_imports,
)
from mdlstm_tk.cli.settings import Settings, with_settings
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.training import Progress, TrainConfig, TrainingJob

TIMED_STEPS = 20  # after which the length of the training is told


@with_settings
def train(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="TOML file of settings.",
            show_default="the task's own settings",
            autocompletion=complete_files(".toml"),
            rich_help_panel=RUN,
        ),
    ] = None,
    settings: Settings = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run folder to continue, up to --steps if given.",
            show_default="a new run",
            autocompletion=complete_run,
            rich_help_panel=RUN,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the new run.",
            show_default="runs/MODEL-SIZE",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: ForceFolder = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Train a network on a built-in task, or on your own data.

    Without options it trains the MD-LSTM on 8x8 matrices of the random-diagonal task, into runs/md-8x8.

    Every task has its own defaults. A file given with --config overrides the defaults, --set overrides the
    file, and the other options override all of them. Under torchrun, the processes share each batch.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if resume is not None and (output is not None or config is not None):
        raise InputError("--resume takes folder and settings from the run; leave out -o and -c")
    require("torch", "train")
    from mdlstm_tk.training import configure, new_job, parse_settings, resume_job
    from mdlstm_tk.training.progress import describe_times

    changes = parse_settings(settings or [])
    if resume is None:
        job = new_job(configure(options, changes, config), output, force)
    else:
        job = resume_job(resume, options, changes)
    result = train_with_progress(job)
    if not job.context.is_main:
        return
    run = job.run
    if result["errors"]:
        errors = ", ".join(f"{name} {value:.5g}" for name, value in result["errors"].items())
        cropped = f" cropped to {job.config.crop}" if job.config.crop else ""
        note(f"best weights, on {result['split']} data{cropped}: {errors}")
    note(f"{describe_times(run.read_times())}; wrote {run.best}, {run.curves}, {run.prediction}")
    if json:
        print_json({"run": str(run.folder), **result})
    folder = shell_quoted(run.folder)
    if job.config.data:
        page = f"mdlstm report {folder} --data {shell_quoted(job.config.data)}"
        note(f"for a page with examples: {with_imports(page)}")
    # a model for one size would refuse samples of another
    form = "--form scan" if job.task.has_mixed_sizes else f"--size {format_size(job.task.spec.size)}"
    draws = job.task.spec.kind == "density"
    next_command(with_imports(f"mdlstm sample {folder}" if draws else f"mdlstm export {folder} {form}"))


def describe_length(state: Progress, config: TrainConfig) -> str:
    """How long training takes on this machine, from the rate of its first steps."""
    rate, left = state.steps_per_second or 0.0, state.seconds_left or 0.0
    if config.minutes:
        return f"about {state.step + rate * left:,.0f} steps in {config.minutes:g} minutes on this machine"
    return f"the {config.steps} steps will take about {left / 60:.2g} minutes on this machine"


def train_with_progress(job: TrainingJob) -> dict[str, Any]:
    """Train and draw a run, with a progress bar in the main process; see `mdlstm_tk.training.train`."""
    from mdlstm_tk.report import draw_run
    from mdlstm_tk.training import RecentMetrics, train

    if not job.context.is_main:
        return train(job)
    for line in (*job.notes, job.description):
        note(line)
    for line in job.config.to_toml().splitlines():
        detail(f"  {line}")
    metrics, config = RecentMetrics(), job.config
    seconds = round(60 * config.minutes)  # which the bar counts if they end the training; else steps
    try:
        with progress(seconds or config.steps, job.seconds_done if seconds else job.steps_done) as show:

            def on_step(state: Progress) -> None:
                metrics.add(state)
                if state.step == job.steps_done + TIMED_STEPS:
                    note(describe_length(state, config))
                left = round(state.seconds_left or 0)
                show(seconds - left if seconds else state.step, metrics.describe, state.seconds_left)

            result = train(job, on_step)
    except KeyboardInterrupt:
        if job.run.best.exists():
            draw_run(job.run, job.task)
        if job.run.last.exists():
            again = with_imports(f"mdlstm train --resume {shell_quoted(job.run.folder)}")
            note(f"interrupted; continue with: {again}")
        raise
    draw_run(job.run, job.task, job.network)
    return result
