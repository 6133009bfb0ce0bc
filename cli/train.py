"""`mdlstm train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import detail, next_command, note, print_json, progress
from mdlstm_tk.cli.options import (
    RUN,
    ForceFolder,
    Json,
    complete_files,
    complete_run,
    output_option,
    with_imports,
)
from mdlstm_tk.cli.settings import Settings, with_settings
from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    from mdlstm_tk.training import Progress, TrainingJob


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
        Path | None, output_option("Folder of the new run.", "runs/MODEL-SIZE", "DIR")
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
    if resume is not None and (output is not None or config is not None):
        raise InputError("--resume takes folder and settings from the run; leave out -o and -c")
    options = {key: value for key, value in options.items() if value is not None}
    from mdlstm_tk import (
        training,
    )  # whose parts are loaded when they are used: a typo is found before torch

    changes = training.parse_settings(settings or [])
    if resume:
        job = training.resume_job(resume, options, changes)
    else:
        job = training.new_job(training.configure(options, changes, config), output, force)
    result = train_with_progress(job)
    if not job.context.is_main:
        return
    from mdlstm_tk.training.progress import describe_times

    run = job.run
    if result["errors"]:
        errors = ", ".join(f"{name} {value:.5g}" for name, value in result["errors"].items())
        cropped = f" cropped to {job.config.crop}" if job.config.crop else ""
        note(f"best weights, on {result['split']} data{cropped}: {errors}")
    note(f"{describe_times(run.read_times())}; wrote {run.best}, {run.curves}, {run.prediction}")
    if json:
        print_json({"run": str(run.folder), **result})
    quoted = shell_quoted(run.folder)
    if job.config.data:
        page = f"mdlstm report {quoted} --data {shell_quoted(job.config.data)}"
        note(f"for a page with examples: {with_imports(page)}")
    # a model for one size would refuse samples of another
    form = "--form scan" if job.task.has_mixed_sizes else f"--size {format_size(job.task.spec.size)}"
    draws = job.task.spec.kind == "density"
    next_command(with_imports(f"mdlstm sample {quoted}" if draws else f"mdlstm export {quoted} {form}"))


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
    metrics = RecentMetrics()
    try:
        with progress(job.config.steps, job.steps_done) as show:

            def on_step(state: Progress) -> None:
                metrics.add(state)
                show(state.step, metrics.describe, state.seconds_left)

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
