"""`mdlstm info`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import next_command, print_json, table, warn
from mdlstm_tk.cli.options import FileBytes, Json, complete_model_or_run
from mdlstm_tk.cli.progress import next_of_run
from mdlstm_tk.errors import InputError


def info(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RUN",
            help="Exported model, or run folder.",
            autocompletion=complete_model_or_run,
            show_default=False,
        ),
    ],
    json: Json = False,
    max_bytes: FileBytes = None,
) -> None:
    """Describe an exported model, or a training run."""
    from mdlstm_tk.runtime import describe_model

    models: dict[Path, dict[str, Any]] = {}
    if target.is_dir():
        from mdlstm_tk.runtime.model_discovery import archives_in, models_in
        from mdlstm_tk.training import describe_run

        properties = describe_run(target)
        for path in [*archives_in(target), *models_in(target)]:
            with suppress(InputError):  # another's model may lie there, too
                models[path] = describe_model(path, max_bytes)
    else:
        properties = models[target] = describe_model(target, max_bytes)
    for stale in filter(None, (described["stale"] for described in models.values())):
        warn(stale)
    if json:
        print_json(properties)
    else:
        table(
            [str(target), ""], [[name, _text(name, value)] for name, value in properties.items()], texts=2
        )
    if models:
        next_command(f"mdlstm infer FILE -m {shell_quoted([*models][-1])}")
    else:
        from mdlstm_tk.training import open_run

        next_command(next_of_run(open_run(target)))


def _text(name: str, value: Any) -> str:
    """The cell of the table for a property."""
    if value is None:
        return "any" if name == "grid" else "-"
    if isinstance(value, bool):
        return str(value).lower()
    if name in ("grid", "resize") and not isinstance(value, str):
        return format_size(value)
    if isinstance(value, dict):
        value = [
            f"{key} {f'{entry:g}' if isinstance(entry, float) else _text(key, entry)}"
            for key, entry in value.items()
        ]
    if name == "stages":
        value = [
            f"{stage['channels']} → {stage['stored']} features by directions × units "
            f"{stage['directions']} × {stage['units']} over windows of {stage['window']}"
            for stage in value
        ]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != "" else "-"
