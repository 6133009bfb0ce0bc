"""`mdlstm info`."""

from __future__ import annotations

from dataclasses import asdict, fields
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.cli import console, options
from mdlstm_tk.errors import InputError

TARGET = "Exported model, run folder, or name of a task or of a kind of your own data."


def info(
    target: Annotated[str, typer.Argument(metavar="MODEL|RUN|TASK", help=TARGET)],
    json: options.Json = False,
) -> None:
    """Describe an exported model or a run, or list the settings of a task with their defaults."""
    path = Path(target)
    if not path.exists():
        _list_settings(target, json)
        return
    properties = _describe_run(path) if path.is_dir() else describe_model(path)
    if json:
        console.print_json(properties)
        return
    shown = {name: value for name, value in properties.items() if value not in (None, "", (), [], {})}
    cells = [[name, _text(name, value)] for name, value in shown.items()]
    console.table([target, ""], cells, texts=2)


def describe_model(path: Path) -> dict[str, Any]:
    """Metadata of a model, read from its file without running it.

    Raises:
        InputError: it is no exported model.
    """
    from mdlstm_tk.runtime.session import read_metadata

    values = asdict(read_metadata(path))
    return {"bytes": path.stat().st_size, **values, **values.pop("more")}


def _describe_run(folder: Path) -> dict[str, Any]:
    """The settings of a run and how far it got."""
    from mdlstm_tk.cli.train import next_of_run
    from mdlstm_tk.export.runs import note_if_stale
    from mdlstm_tk.kinds import kind_named
    from mdlstm_tk.runtime.infer import models_in
    from mdlstm_tk.training import load_checkpoint, open_run
    from mdlstm_tk.training.networks import count_parameters

    run = open_run(folder)
    last = load_checkpoint(run.last if run.last.exists() else run.best)
    models, losses = models_in(folder), [record["loss"] for record in run.read_metrics()[-100:]]
    is_negated = last.config.best_by in kind_named(last.spec.kind).higher
    score = 0.0 + (-last.state.score if is_negated else last.state.score)
    properties = {
        "kind": "run",
        **asdict(last.config),
        "task": last.spec.name,
        "steps_done": last.state.step,
        "training_seconds": round(last.state.seconds, 1),
        "parameters": count_parameters(last.network()),
        "best_step": last.state.best_step,
        "best_score": score if isfinite(score) else None,
        "last_100_loss": sum(losses) / len(losses) if losses else None,
        "exports": sorted(path.name for path in models),
    }
    for model in models:
        if stale := note_if_stale(model):
            console.note(f"warning: {stale}")
    if models:
        console.next_command("infer", "FILE", "-m", models[-1])
    else:
        next_of_run(folder)
    return properties


def _list_settings(task: str, json: bool) -> None:
    from mdlstm_tk.kinds import kind_names
    from mdlstm_tk.training.config import TrainConfig
    from mdlstm_tk.training.tasks import task_defaults

    is_kind = task in kind_names()
    try:
        defaults = {**task_defaults(task, data="PATH" if is_kind else ""), "task": task}
    except InputError as error:
        raise InputError(f"{task} is neither a file nor a run folder, and {error}") from None
    rows = [
        (each.name, defaults.get(each.name, each.default), each.metadata["help"])
        for each in fields(TrainConfig)
    ]
    if json:
        console.print_json({name: {"default": value, "meaning": help} for name, value, help in rows})
    else:
        cells = [[name, "-" if value == "" else _text("", value), help] for name, value, help in rows]
        console.table(["setting", f"default of {task}", "meaning"], cells, texts=3)
    console.next_command("train", "--task", task, *(["--data", "PATH"] if is_kind else []))


def _text(name: str, value: Any) -> str:
    """The cell of the table for a property."""
    if name in ("grid", "resize") and isinstance(value, tuple):
        return format_size(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(key, each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text("", each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
