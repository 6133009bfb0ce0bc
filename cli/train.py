"""`mdlstm train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk._util.sizes import format_size, parse_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.cli.console import detail, next_command, note, print_json, progress, with_options
from mdlstm_tk.cli.options import (
    DATA,
    DEVICES,
    KINDS,
    MODELS,
    NETWORK,
    OPTIMIZATION,
    OUTPUT,
    RUN,
    TASKS,
    ForceFolder,
    Json,
    complete_files,
    complete_from,
    complete_run,
    parse_cell,
    parse_device,
    parse_model,
    parse_resize_text,
    parse_size_text,
    parse_task,
    parse_windows,
)
from mdlstm_tk.cli.settings import Settings, setting
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.training import Progress, TrainingJob


def train(
    task: Annotated[
        str | None,
        setting(
            "task",
            panel=DATA,
            metavar="TASK",
            help=f"Built-in task: {', '.join(TASKS)}; or, with --data, its kind: {', '.join(KINDS)}.",
            parser=parse_task,
            autocompletion=complete_from(*TASKS, *KINDS),
        ),
    ] = None,
    data: Annotated[
        str | None,
        setting("data", panel=DATA, metavar="PATH", autocompletion=complete_files(".npz")),
    ] = None,
    size: Annotated[str | None, setting("size", panel=DATA, metavar="SIZE", parser=parse_size_text)] = None,
    resize: Annotated[
        str | None, setting("resize", panel=DATA, metavar="SIZE", parser=parse_resize_text)
    ] = None,
    crop: Annotated[str | None, setting("crop", panel=DATA, metavar="SIZE", parser=parse_size_text)] = None,
    model: Annotated[
        str | None,
        setting(
            "model",
            "--model",
            "-m",
            panel=NETWORK,
            metavar="|".join([*MODELS, "file.py:name"]),
            parser=parse_model,
            autocompletion=complete_from(*MODELS),
        ),
    ] = None,
    cell: Annotated[
        str | None,
        setting(
            "cell",
            panel=NETWORK,
            metavar="|".join([*BUILT_IN_CELLS, "file.py:name"]),
            parser=parse_cell,
            autocompletion=complete_from(*BUILT_IN_CELLS),
        ),
    ] = None,
    directions: Annotated[str | None, setting("directions", panel=NETWORK)] = None,
    hidden: Annotated[int | None, setting("hidden", panel=NETWORK, min=1)] = None,
    layers: Annotated[int | None, setting("layers", panel=NETWORK, min=1)] = None,
    windows: Annotated[
        str | None, setting("windows", panel=NETWORK, metavar="SIZE,...", parser=parse_windows)
    ] = None,
    dropout: Annotated[float | None, setting("dropout", panel=NETWORK, min=0)] = None,
    steps: Annotated[int | None, setting("steps", panel=OPTIMIZATION, min=1)] = None,
    batch_size: Annotated[int | None, setting("batch_size", panel=OPTIMIZATION, min=1)] = None,
    lr: Annotated[float | None, setting("lr", panel=OPTIMIZATION, min=0)] = None,
    schedule: Annotated[str | None, setting("schedule", panel=OPTIMIZATION)] = None,
    clip: Annotated[float | None, setting("clip", panel=OPTIMIZATION, min=0)] = None,
    precision: Annotated[str | None, setting("precision", panel=OPTIMIZATION)] = None,
    seed: Annotated[int | None, setting("seed", panel=RUN, min=0)] = None,
    device: Annotated[
        str | None,
        setting(
            "device",
            panel=RUN,
            metavar="auto|cpu|cuda|cuda:N",
            parser=parse_device,
            autocompletion=complete_from(*DEVICES),
        ),
    ] = None,
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
) -> None:
    """Train a network on a built-in task, or on your own data.

    Without options it trains the MD-LSTM on 8x8 matrices of the random-diagonal task, into runs/md-8x8.

    Every task has its own defaults; those shown here are of the diagonal task. A file given with --config
    overrides the defaults, --set overrides the file, and the other options override all of them. Under
    torchrun, the processes share each batch.
    """
    flags = {
        "task": task,
        "data": data,
        "size": size,
        "resize": resize,
        "crop": crop,
        "model": model,
        "cell": cell,
        "directions": directions,
        "hidden": hidden,
        "layers": layers,
        "windows": windows,
        "dropout": dropout,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "schedule": schedule,
        "clip": clip,
        "precision": precision,
        "seed": seed,
        "device": device,
    }
    options = {key: value for key, value in flags.items() if value is not None}
    if resume is not None and (output is not None or config is not None):
        raise InputError("--resume takes folder and settings from the run; leave out -o and -c")
    require("torch", "train")
    from mdlstm_tk.training import configure, new_job, parse_settings, resume_job
    from mdlstm_tk.training.progress import describe_times

    changes = parse_settings(settings or [])
    if resume is None:
        configuration = configure(options, changes, config)
        if configuration.data and not {"data"} & {*options, *changes}:
            note(f"reading the data at {configuration.data}, which {config} names")
        job = new_job(configuration, output, force)
    else:
        job = resume_job(resume, options, changes, note)
    result = train_with_progress(job)
    if not job.context.is_main:
        return
    run = job.run
    if result["errors"]:
        errors = ", ".join(f"{name} {value:.5g}" for name, value in result["errors"].items())
        crop = job.config.crop
        cropped = f" cropped to {format_size(parse_size(crop))}" if crop else ""
        note(f"best weights, on {result['split']} data{cropped}: {errors}")
    note(f"{describe_times(run.read_times())}; wrote {run.best}, {run.curves}, {run.prediction}")
    if json:
        print_json({"run": str(run.folder), **result})
    # a model for one size would refuse samples of another
    form = "--form scan" if job.task.has_mixed_sizes else f"--size {format_size(job.task.spec.size)}"
    if job.config.data:
        page = with_options(
            f"mdlstm report {shell_quoted(run.folder)}", {"data": job.config.data, **run.code}
        )
        note(f"for a page with examples: {page}")
    draws = job.task.spec.kind == "density"
    following = "sample {}" if draws else "export {} " + form
    next_command(with_options(f"mdlstm {following.format(shell_quoted(run.folder))}", run.code))


def train_with_progress(job: TrainingJob) -> dict[str, Any]:
    """Run a job, with a progress bar in the main process, and draw it, also if it is interrupted."""
    from mdlstm_tk.report import draw_run
    from mdlstm_tk.training import RecentMetrics, describe_progress, run_job

    if not job.context.is_main:
        return run_job(job)
    for line in (*job.notes, job.description):
        note(line)
    for line in job.config.to_toml().splitlines():
        detail(f"  {line}")
    metrics = RecentMetrics()
    try:
        with progress(job.config.steps, job.steps_done) as show:

            def on_step(state: Progress) -> None:
                show(state.step, describe_progress(state, metrics.update(state)), state.seconds_left)

            result = run_job(job, on_step)
        draw_run(job.run, job.task)
        return result
    except KeyboardInterrupt:
        if job.run.best.exists():
            draw_run(job.run, job.task)
        if job.run.last.exists():
            again = with_options(f"mdlstm train --resume {shell_quoted(job.run.folder)}", job.run.code)
            note(f"interrupted; continue with: {again}")
        raise
