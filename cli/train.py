"""`mdlstm train`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, progress
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.sizes import show_size

if TYPE_CHECKING:
    from mdlstm_tk.training import Run, TrainConfig


def train(
    model: Annotated[
        str | None, typer.Option(help="md, horizontal, snake (or the seed's names), or file.py:name.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Of the matrices: 8 or 8x12.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Matrices in a step.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Units of each direction.")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate.")] = None,
    cell: Annotated[str | None, typer.Option(help="graves, mean, stable or leaky.")] = None,
    directions: Annotated[str | None, typer.Option(help="1 or all.")] = None,
    layers: Annotated[int | None, typer.Option(help="Stacked on each other.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
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
    """Train a network on the random-diagonal task.

    Bare, it trains the MD-LSTM on 8x8 matrices for 1000 steps into runs/md-8x8. What is given on the
    command line wins over --set, that over --config, that over the defaults.
    """
    flags = {
        "model": model,
        "size": size,
        "steps": steps,
        "batch_size": batch_size,
        "hidden": hidden,
        "lr": lr,
        "cell": cell,
        "directions": directions,
        "layers": layers,
        "seed": seed,
        "device": device,
    }
    require("torch", "train")
    from mdlstm_tk.training import TrainConfig, build, load_checkpoint
    from mdlstm_tk.training.loop import pick_device
    from mdlstm_tk.training.run import new_run, open_run

    if resume is not None:
        if output is not None or config is not None:
            raise InputError("--resume takes folder and config from the run; leave out -o and -c")
        run = open_run(resume)
        start = load_checkpoint(run.last).config
        _refuse_changes(flags | _settings(settings), start)
    else:
        start = TrainConfig.load(config) if config else TrainConfig()
    chosen = start.updated(_settings(settings), "--set")
    chosen = chosen.updated({k: v for k, v in flags.items() if v is not None}, "command line")
    build(chosen)  # whatever is wrong with the config should show before a folder is made
    pick_device(chosen.device)
    if resume is None:
        run = new_run(_name(chosen), output, force)
    run_training(chosen, run, resume is not None, quiet)
    next_command(f"mdlstm export {run.folder} --size {show_size(chosen.grid)}")


def run_training(config: TrainConfig, run: Run, resume: bool, quiet: bool) -> None:
    """Train with a live line, then draw the run's pictures. Also when interrupted."""
    from mdlstm_tk.training import load_checkpoint, train
    from mdlstm_tk.training.loop import WINDOW
    from mdlstm_tk.training.pictures import draw_run

    done = load_checkpoint(run.last).step if resume else 0
    note(f"training {config.model} on {show_size(config.grid)} for {config.steps} steps into {run.folder}")
    start = time.perf_counter()
    recent: list[tuple[float, float]] = []

    with progress(config.steps, done) as live:

        def report(state: Any) -> None:
            recent.append((state.loss, state.relevant))
            del recent[:-WINDOW]
            rate = (state.step - done) / (time.perf_counter() - start)
            loss, relevant = (sum(values) / len(recent) for values in zip(*recent, strict=True))
            if not quiet:
                live(state.step, f"loss {loss:.4f}  relevant {relevant:.4f}  {rate:.0f} steps/s")

        try:
            train(config, run, resume, report)
        except KeyboardInterrupt:
            if run.last.exists():
                note(f"interrupted; go on with: mdlstm train --resume {run.folder}")
                draw_run(run)
            raise
    draw_run(run)
    note(f"done in {time.perf_counter() - start:.1f} s: {run.curves}, {run.prediction}, {run.best}")


def _settings(settings: list[str] | None) -> dict[str, Any]:
    pairs = [text.partition("=") for text in settings or []]
    for key, equals, value in pairs:
        if not equals or not key:
            raise InputError(f"--set takes key=value, got '{key}{equals}{value}'")
    return {key: value for key, _, value in pairs}


def _refuse_changes(changes: dict[str, Any], start: TrainConfig) -> None:
    """A resumed run may only be given more steps or another device: all else would make it another run."""
    for key, value in changes.items():
        if value is not None and key not in ("steps", "device"):
            raise InputError(
                f"--resume goes on with the run's own {key} = {getattr(start, key, None)!r}; "
                "only --steps and --device can change"
            )


def _name(config: TrainConfig) -> str:
    """What a new run is called: model and size."""
    model = config.model.rpartition(":")[2].lower()
    return f"{model}-{show_size(config.grid)}"
