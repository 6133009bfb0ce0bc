"""`mdlstm info`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, print_json, quoted, table, warn
from mdlstm_tk.cli.options import Json, MaxBytes, complete_model_or_run
from mdlstm_tk.errors import require
from mdlstm_tk.sizes import format_size


def info(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RUN",
            help="Exported .onnx file, or run folder.",
            autocompletion=complete_model_or_run,
            show_default=False,
        ),
    ],
    json: Json = False,
    max_bytes: MaxBytes = None,
) -> None:
    """Describe an exported model, or a training run."""
    if target.is_dir():
        require("torch", "train")
        from mdlstm_tk.runtime.model_discovery import models_in
        from mdlstm_tk.training import describe_run

        properties, models = describe_run(target), models_in(target)
    else:
        properties, models = _describe_model(target, max_bytes), [target]
    if json:
        print_json(properties)
    else:
        table(
            [str(target), ""], [[name, _text(name, value)] for name, value in properties.items()], texts=2
        )
    next_command(
        f"mdlstm infer FILE -m {quoted(models[-1])}" if models else f"mdlstm export {quoted(target)}"
    )


def _describe_model(path: Path, max_bytes: int | None) -> dict[str, Any]:
    from mdlstm_tk.runtime import Session
    from mdlstm_tk.runtime.io.npy import MAX_BYTES
    from mdlstm_tk.runtime.isolation.rule import choose_isolation

    limit = max_bytes or MAX_BYTES
    isolated, problem = choose_isolation([path], limit, limited=max_bytes is not None)
    if problem:
        warn(f"{path} is loaded without limits that bind: {problem}")
    with Session(path, "cpu", max_bytes=limit, isolated=isolated) as session:
        return {"kind": "model", "bytes": path.stat().st_size, **asdict(session.metadata)}


def _text(name: str, value: Any) -> str:
    """The cell of the table for a property."""
    if value is None:
        return "any" if name == "grid" else "-"
    if isinstance(value, bool):
        return str(value).lower()
    if name == "grid":
        return format_size(value)
    if isinstance(value, dict):
        value = [f"{key} {entry:g}" for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != "" else "-"
