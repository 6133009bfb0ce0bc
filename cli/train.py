"""`mdlstm train`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, progress, quoted
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.sizes import format_size

if TYPE_CHECKING:
    from mdlstm_tk.data import Task
    from mdlstm_tk.training import Progress, Run, TrainConfig

CHANGEABLE = ("steps", "device", "workers", "tensorboard", "data")


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
    given = {key: value for key, value in flags.items() if value is not None}
    require("torch", "train")
    from mdlstm_tk.training import build, load_checkpoint
    from mdlstm_tk.training.build import too_long
    from mdlstm_tk.training.distributed import join
    from mdlstm_tk.training.run_folder import Run, new_run, open_run

    if resume is not None:
        if output is not None or config is not None:
            raise InputError("--resume takes folder and config from the run; leave out -o and -c")
        run = open_run(resume)
        start = load_checkpoint(run.last).config
        _refuse_changes(given | read_settings(settings), start)
        chosen = start.updated(read_settings(settings), "--set").updated(given, "command line")
    else:
        chosen = configure(given, read_settings(settings), config)
    ranks = join(chosen.device)
    network, found = build(chosen)  # whatever is wrong with the config should show before a folder is made
    ranks.part(chosen.batch_size)
    if ranks.leads:
        for line in getattr(found, "summary", ()):
            note(line)
        if crowded := too_long(network, found):
            note(
                f"{len(crowded)} texts, {crowded[0]} the first, need more columns than the network makes "
                "of their images, and teach it nothing; try --set windows=2x1,2x1"
            )
    if resume is None:
        run = Run(
            ranks.leader(new_run(_name(chosen, found), output, force).folder if ranks.leads else Path())
        )
    run_training(chosen, run, resume is not None, quiet, found)
    if ranks.leads:
        next_command(f"mdlstm export {quoted(run.folder)} --size {format_size(found.spec.size)}")


def run_training(
    config: TrainConfig, run: Run, resume: bool, quiet: bool, task: Task | None = None
) -> None:
    """Train with a live line, then draw the run's pictures. Also when interrupted."""
    from mdlstm_tk.training import load_checkpoint, train
    from mdlstm_tk.training.build import make_task
    from mdlstm_tk.training.distributed import join
    from mdlstm_tk.training.evaluation import evaluate_run
    from mdlstm_tk.training.loop import WINDOW
    from mdlstm_tk.viz.run_pictures import draw_run

    task = task or make_task(config)
    if not join(config.device).leads:
        train(config, run, resume, task=task)
        return
    done = load_checkpoint(run.last).step if resume else 0
    note(
        f"training {config.model} on {task.name} {format_size(task.spec.size)} for {config.steps} steps "
        f"into {run.folder}"
    )
    start = time.perf_counter()
    recent: list[dict[str, float]] = []
    judged: dict[str, float] = {}

    with progress(config.steps, done) as live:

        def report(state: Progress) -> None:
            recent.append({"loss": state.loss, **state.errors})
            del recent[:-WINDOW]
            judged.update({f"validation {name}": value for name, value in state.validation.items()})
            if not quiet:
                rate = (state.step - done) / (time.perf_counter() - start)
                means = {name: sum(r[name] for r in recent) / len(recent) for name in recent[-1]}
                shown = "  ".join(f"{name} {value:.3g}" for name, value in (means | judged).items())
                live(state.step, f"{shown}  {rate:.0f} steps/s")

        try:
            train(config, run, resume, report, task)
        except KeyboardInterrupt:
            if run.last.exists():
                note(f"interrupted; go on with: mdlstm train --resume {run.folder}")
                draw_run(run, task)
            raise
    seconds = time.perf_counter() - start
    result = evaluate_run(run, task, seconds)
    draw_run(run, task)
    if result["errors"]:
        errors = ", ".join(f"{name} {value:.5g}" for name, value in result["errors"].items())
        note(f"best weights, on {result['split']} data: {errors}")
    note(f"done in {seconds:.1f} s: {run.curves}, {run.prediction}, {run.best}")


def configure(given: dict[str, Any], settings: dict[str, Any], file: Path | None) -> TrainConfig:
    """Defaults of the task, then the file, then settings, then flags."""
    from mdlstm_tk.training.config import TrainConfig, read_toml

    values = read_toml(file) if file else {}
    start = TrainConfig()
    said = {key: str(value) for key, value in (values | settings | given).items()}
    if said.get("data") and "task" not in said:
        raise InputError("--data needs --task: grid, classify, segment or transcribe")
    if "task" in said:
        from mdlstm_tk.training import default_config

        start = default_config(said["task"], said.get("data", ""), said.get("model"))
    chosen = start.updated(values, str(file)).updated(settings, "--set")
    return chosen.updated(given, "command line")


def read_settings(settings: list[str] | None) -> dict[str, Any]:
    """The pairs of --set key=value."""
    pairs = [text.partition("=") for text in settings or []]
    for key, equals, value in pairs:
        if not equals or not key:
            raise InputError(f"--set takes key=value, got '{key}{equals}{value}'")
    return {key: value for key, _, value in pairs}


def _refuse_changes(changes: dict[str, Any], start: TrainConfig) -> None:
    """What of a resumed run may change: all else would make it another run."""
    for key in changes:
        if key not in CHANGEABLE:
            raise InputError(
                f"--resume goes on with the run's own {key} = {getattr(start, key, None)!r}; "
                f"only {', '.join(CHANGEABLE)} can change"
            )


def _name(config: TrainConfig, task: Task) -> str:
    """What a new run is called: model and size, and in front the task if it is not the diagonal."""
    model = config.model.rpartition(":")[2].lower()
    prefix = "" if task.name == "diagonal" else f"{task.name}-"
    return f"{prefix}{model}-{format_size(task.spec.size)}"
