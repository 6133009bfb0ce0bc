"""`mdlstm compare`."""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, progress, quoted, table
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.training import TrainConfig

MODELS = ("md", "snake", "horizontal")
THRESHOLD = 0.05


def compare(
    task: Annotated[
        str, typer.Option(help="diagonal, digits, digit-strings, textures, gaussian-field[-anisotropic].")
    ] = "diagonal",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each model; else 5, or 3.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each run; else the task's own.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the grids: 8 or 8x12; else the task's own.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of config.toml; repeatable."),
    ] = None,
    as_seed: Annotated[
        bool, typer.Option("--as-seed", help="With the seed's initialisation, layer norm and rate.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for all of it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Train the MD-LSTM and its rivals on the same data for the same steps, and compare them.

    On the random diagonal: MD-LSTM, snake and horizontal LSTM; prints a table and draws overall.png and
    relevant.png. On other tasks: all networks there are for them, with equally many parameters; prints the
    errors on test data. Writes a run folder for each seed.
    """
    require("torch", "train")
    from mdlstm_tk.cli.train import read_settings
    from mdlstm_tk.training import build, default_config

    flags = {"steps": steps, "size": size}
    chosen = read_settings(settings)
    for key in ("model", "seed"):
        if key in chosen:
            raise InputError(
                f"--set {key}: compare trains all models, over several seeds; see mdlstm train"
            )
    base = default_config(task).updated(chosen, "--set")
    base = base.updated({key: value for key, value in flags.items() if value is not None}, "command line")
    build(base)  # what cannot be should show before a folder is made
    if task == "diagonal":
        _compare_on_diagonal(base, seeds or 5, as_seed, output, force, json)
    elif as_seed:
        raise InputError(f"--as-seed is for the diagonal task, got --task {task}")
    else:
        _compare_on_task(base, seeds or 3, output, force, json)


def _compare_on_task(base: TrainConfig, seeds: int, output: Path | None, force: bool, json: bool) -> None:
    """All networks of a task with equally many parameters: a table of errors on test data."""
    from mdlstm_tk.models import model_names
    from mdlstm_tk.training import Progress, make_task
    from mdlstm_tk.training.comparison import compare_models
    from mdlstm_tk.training.loop import WINDOW
    from mdlstm_tk.training.run_folder import Run, new_run
    from mdlstm_tk.viz.plots import plot_comparison

    kind = make_task(base).spec.kind
    models = model_names(kind)
    folder = new_run(f"compare-{base.task}", output, force).folder
    note(f"training {', '.join(models)} on {base.task}, {seeds} seeds of {base.steps} steps, into {folder}")
    with progress(seeds * len(models) * base.steps) as live:

        def report(model: str, seed: int, state: Progress) -> None:
            done = (seed * len(models) + models.index(model)) * base.steps + state.step
            errors = ", ".join(f"{name} {value:.3g}" for name, value in state.errors.items())
            live(done, f"{model}, seed {seed}: loss {state.loss:.3g}, {errors}")

        results = compare_models(base, seeds, folder, report)
    (folder / "summary.json").write_text(json_module.dumps(results, indent=2) + "\n", encoding="utf-8")
    title = f"{base.task} {base.size}, {seeds} seeds, equally many parameters"
    curves = {
        model: [
            [r["loss"] for r in Run(folder / f"{model}-{seed}").read_metrics()] for seed in range(seeds)
        ]
        for model in models
    }
    plot_comparison(folder / "loss.png", title, f"training loss (mean of {WINDOW} steps)", curves)
    if json:
        print_json(results)
        return
    errors = list(results[models[0]]["errors"])
    columns = ["model", "hidden", "parameters", *(c for e in errors for c in (e, "(range)")), "seconds"]
    rows = []
    for model, entry in results.items():
        row = [model, str(entry.get("hidden", "")), str(entry.get("parameters", ""))]
        for values in (entry["errors"].get(error, []) for error in errors):
            row += [f"{mean(values):.4g}", f"{min(values):.4g}–{max(values):.4g}"] if values else ["", ""]
        rows.append([*row, f"{mean(entry['seconds']):.0f}" if "seconds" in entry else ""])
    table(columns, rows, f"{base.task}, {seeds} seeds: errors of the best weights on test data")
    next_command(f"open {quoted(folder)}/loss.png {quoted(folder)}/*/prediction.png")


def _compare_on_diagonal(
    base: TrainConfig, seeds: int, as_seed: bool, output: Path | None, force: bool, json: bool
) -> None:
    """The seed's comparison: overall and relevant loss over the steps."""
    from mdlstm_tk.training import Progress, train
    from mdlstm_tk.training.loop import WINDOW
    from mdlstm_tk.training.run_folder import Run, new_run
    from mdlstm_tk.viz.plots import plot_comparison

    steps, size = base.steps, base.size
    if steps < WINDOW:
        raise InputError(f"--steps must be at least {WINDOW} to compare, got {steps}")
    if as_seed:
        base = replace(base, init="original", lr=0.01, weight_decay=0.0)
    folder = new_run("compare-as-seed" if as_seed else "compare", output, force).folder
    note(f"training {', '.join(MODELS)} on {size}, {seeds} seeds of {steps} steps each, into {folder}")
    records: dict[str, list[list[dict[str, Any]]]] = {model: [] for model in MODELS}
    jobs = [(model, seed) for seed in range(seeds) for model in MODELS]
    with progress(len(jobs) * steps) as live:
        for index, (model, seed) in enumerate(jobs):
            config = replace(base, model=model, seed=seed, layer_norm=as_seed and model == "md")
            run = Run(folder / f"{model}-{seed}")

            def report(state: Progress, index: int = index, model: str = model, seed: int = seed) -> None:
                live(
                    index * steps + state.step,
                    f"{model}, seed {seed}: relevant {state.errors['relevant']:.4f}",
                )

            run.folder.mkdir(parents=True, exist_ok=True)
            train(config, run, report=report)
            records[model].append(run.read_metrics())

    summaries = {model: _summarise(runs) for model, runs in records.items()}
    title = f"random diagonal {size}, {seeds} seeds" + (", as the seed" if as_seed else "")
    for key, name in (("loss", "overall"), ("relevant", "relevant")):
        curves = {model: [[r[key] for r in run] for run in runs] for model, runs in records.items()}
        plot_comparison(folder / f"{name}.png", title, f"{name} loss (mean of 20 steps)", curves)
    (folder / "summary.json").write_text(json_module.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    if json:
        print_json(summaries)
    else:
        columns = ["model", "overall", "relevant", "(worst seed)", f"step below {THRESHOLD}", "(range)"]
        table(columns, [_row(model, summary) for model, summary in summaries.items()], title)
        note("overall and relevant: mean of the last 100 steps, median of the seeds")
    next_command(f"open {quoted(folder / 'overall.png')} {quoted(folder / 'relevant.png')}")


def _summarise(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Last-100-step losses and the step at which the relevant loss passes the threshold, over seeds."""
    overall = [mean(r["loss"] for r in run[-100:]) for run in runs]
    relevant = [mean(r["relevant"] for r in run[-100:]) for run in runs]
    return {
        "overall": median(overall),
        "relevant": median(relevant),
        "relevant_worst": max(relevant),
        "passes_at": [_passes_at([r["relevant"] for r in run]) for run in runs],
    }


def _passes_at(relevant: list[float]) -> int | None:
    """The first step whose last 20 steps average below the threshold, or None."""
    from mdlstm_tk.training.loop import WINDOW, running_mean

    smooth = running_mean(relevant)[WINDOW - 1 :]
    below = (smooth < THRESHOLD).nonzero()[0]
    return int(below[0]) + WINDOW if len(below) else None


def _row(model: str, summary: dict[str, Any]) -> list[str]:
    steps = [step for step in summary["passes_at"] if step is not None]
    never = len(summary["passes_at"]) - len(steps)
    parts = [f"{min(steps)}–{max(steps)}" if len(steps) > 1 else f"{steps[0]}"] if steps else []
    shown = ", ".join([*parts, *([f"never: {never}"] if never else [])])
    middle = f"{median(steps):g}" if steps and never < len(steps) else "never"
    return [
        model,
        f"{summary['overall']:.4f}",
        f"{summary['relevant']:.5f}",
        f"{summary['relevant_worst']:.5f}",
        middle,
        shown,
    ]
