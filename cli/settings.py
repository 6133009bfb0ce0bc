"""The settings of a training run on the command line: --set, the options for single settings, the table of
all settings below the help.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mdlstm_tk.cli.options import RUN, complete_from, parse_choice
from mdlstm_tk.errors import InputError
from mdlstm_tk.training.config import choices, list_settings, suggest


def parse_setting(text: str) -> str:
    """Check the form and the key of KEY=VALUE."""
    key, equals, _ = text.partition("=")
    if not equals or not key:
        raise InputError(f"takes key=value, got '{text}'")
    keys = [row.key for row in list_settings()]
    if key not in keys:
        raise InputError(f"there is no setting '{key}'; {suggest(key, keys)}")
    return text


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Offer the keys of settings with what they mean, or the values of a key that has a few."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [(f"{row.key}=", row.help) for row in list_settings() if row.key.startswith(key)]
    if key not in [row.key for row in list_settings()]:
        return []
    return [(f"{key}={choice}", "") for choice in choices(key) if choice.startswith(value)]


def setting(key: str, *names: str, panel: str, help: str = "", **options: Any) -> Any:
    """An option that sets a key of `TrainConfig`; default and (unless given) help are those of the key."""
    row = next(row for row in list_settings() if row.key == key)
    text, _, empty = row.help.partition("; empty: ")
    if values := choices(key):
        options.setdefault("autocompletion", complete_from(*values))
        options.setdefault("parser", parse_choice(values))
        options.setdefault("metavar", "|".join(values))
    return typer.Option(
        *(names or (f"--{key.replace('_', '-')}",)),
        help=help or f"{text.rstrip('.')}.",
        show_default=row.default or empty.rstrip("."),
        rich_help_panel=panel,
        **options,
    )


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        parser=parse_setting,
        autocompletion=complete_setting,
        show_default=False,
        help="Change any setting; repeatable.",
        rich_help_panel=RUN,
    ),
]


def print_settings() -> None:
    """Print every key of --set and config.toml with its default and its meaning, on stdout."""
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for row in list_settings():
        grid.add_row(Text(row.key, "bold cyan"), Text(row.default or "-", "dim"), Text(row.help))
    title = "Settings for --set KEY=VALUE and config.toml, with the defaults of the diagonal task"
    panel = Panel(grid, box=ROUNDED, border_style="dim", title=title, title_align="left")
    Console(emoji=False).print(panel)
