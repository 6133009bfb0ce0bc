"""The settings of a training run on the command line: an option for each common one, --set for all, and
the table of all settings below the help.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from mdlstm_tk.cli.options import (
    DEVICES,
    RUN,
    complete_files,
    complete_from,
    option,
    parameters_of,
    with_parameters,
)
from mdlstm_tk.training.config import SettingHelp, choices, list_settings
from mdlstm_tk.training.tasks import KINDS

METAVARS = {
    "data": "PATH",
    "init": "RUN",
    "windows": "SIZE,...",
    "device": "auto|cpu|cuda|cuda:N",
    **dict.fromkeys(("size", "resize", "crop"), "SIZE"),
    **dict.fromkeys(("task", "model", "cell"), "NAME"),
}


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Offer the keys of settings with their meaning, or the values of a key that has a few."""
    key, equals, value = incomplete.partition("=")
    rows = list_settings()
    if not equals:
        return [(f"{row.key}=", row.help) for row in rows if row.key.startswith(key)]
    values = choices(key) if key in [row.key for row in rows] else ()
    return [(f"{key}={choice}", "") for choice in values if choice.startswith(value)]


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes **options an option for each setting that belongs to a panel of the help."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    settings = [
        inspect.Parameter(row.key, keyword, default=None, annotation=Annotated[str | None, _option(row)])
        for row in list_settings()
        if row.panel
    ]
    return with_parameters(function, [*settings, *parameters_of(function)])


def _option(row: SettingHelp) -> Any:
    """The option of a setting. The library checks and converts its text."""
    values = choices(row.key)
    words = {"task": (*values, *KINDS), "device": DEVICES}.get(row.key, values)
    names = f": {', '.join(values)}." if METAVARS.get(row.key) == "NAME" else "."
    return option(
        row.help.rstrip(".") + names,
        row.panel,
        *(f"--{row.key.replace('_', '-')}", *(["-m"] if row.key == "model" else [])),
        show_default=row.default or row.empty,
        metavar=METAVARS.get(row.key) or "|".join(values) or "NUMBER",
        autocompletion=complete_files(".npz") if row.key == "data" else complete_from(*words),
    )


Settings = Annotated[
    list[str] | None,
    option(
        "Change any setting; repeatable.",
        *(RUN, "--set"),
        metavar="KEY=VALUE",
        autocompletion=complete_setting,
        show_default=False,
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
        grid.add_row(Text(row.key, "bold cyan"), Text(row.default or "-", "dim"), Text(row.meaning))
    title = "Settings for --set KEY=VALUE and config.toml"
    panel = Panel(grid, box=ROUNDED, border_style="dim", title=title, title_align="left")
    Console(emoji=False).print(panel)
