"""`mdlstm train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, progress, quoted
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.sizes import format_size

if TYPE_CHECKING:
    from mdlstm_tk.training import Progress, TrainingJob


def train(
    task: Annotated[
        str | None,
        typer.Option(
            help="diagonal, digits, digit-strings, textures, gaussian-field[-anisotropic]; "
            "with --data its kind: grid, classify, segment or transcribe."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="An .npz, or a folder of images, to train on.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="md, horizontal, snake, conv, or file.py:name.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the grids: 8 or 8x12.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a step.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Units of each direction.")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate.")] = None,
    cell: Annotated[str | None, typer.Option(help="graves, mean, stable or leaky.")] = None,
    directions: Annotated[str | None, typer.Option(help="1 or all.")] = None,
    layers: Annotated[int | None, typer.Option(help="Stacked on each other.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that prepare batches.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, splits and data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Also write events for TensorBoard.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A TOML file to start from.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of config.toml; repeatable."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The run's folder.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run's folder, to --steps if given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train into a folder that is not empty.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a network on a built-in task, or on your own data.

    Bare, it trains the MD-LSTM on 8x8 matrices of the random-diagonal task into runs/md-8x8.
    Every task has settings of its own to start from; --config wins over them, --set over that, and what
    is given on the command line over all. Under torchrun, the processes share each batch.
    """
    flags = {
        "task": task,
        "data": data,
        "model": model,
        "size": size,
        "steps": steps,
        "batch_size": batch_size,
        "hidden": hidden,
        "lr": lr,
        "cell": cell,
        "directions": directions,
        "layers": layers,
        "precision": precision,
        "workers": workers,
        "seed": seed,
        "device": device,
        "tensorboard": tensorboard,
    }
    options = {key: value for key, value in flags.items() if value is not None}
    require("torch", "train")
    from mdlstm_tk.training import configure, new_job, parse_settings, resume_job

    changes = parse_settings(settings or [])
    if resume is None:
        job = new_job(configure(options, changes, config), output, force)
    elif output is not None or config is not None:
        raise InputError("--resume takes folder and config from the run; leave out -o and -c")
    else:
        job = resume_job(resume, options, changes)
    result = train_with_progress(job, quiet)
    if job.context.is_main:
        if result["errors"]:
            errors = ", ".join(f"{name} {value:.5g}" for name, value in result["errors"].items())
            note(f"best weights, on {result['split']} data: {errors}")
        note(f"done in {result['seconds']} s: {job.run.curves}, {job.run.prediction}, {job.run.best}")
        next_command(f"mdlstm export {quoted(job.run.folder)} --size {format_size(job.task.spec.size)}")


def train_with_progress(job: TrainingJob, quiet: bool = False) -> dict[str, Any]:
    """Run a job, with a live line in the main process; see `train_and_draw`."""
    from mdlstm_tk.training import RecentMetrics, describe_progress
    from mdlstm_tk.viz.run_pictures import train_and_draw

    if not job.context.is_main:
        return train_and_draw(job)
    for line in (*job.notes, job.description):
        note(line)
    metrics = RecentMetrics()
    try:
        with progress(job.config.steps, job.steps_done) as live:

            def show(state: Progress) -> None:
                means = metrics.update(state)
                if not quiet:
                    live(state.step, describe_progress(state, means))

            return train_and_draw(job, show)
    except KeyboardInterrupt:
        if job.run.last.exists():
            note(f"interrupted; go on with: mdlstm train --resume {quoted(job.run.folder)}")
        raise
