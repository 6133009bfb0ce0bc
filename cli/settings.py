"""The settings of a training run on the command line: an option for each common one, --set for all, and
the table of all settings below the help.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Annotated, Any

import typer

from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.cli.options import DEVICES, RUN, complete_files, complete_from
from mdlstm_tk.errors import InputError
from mdlstm_tk.models.registry import resolve
from mdlstm_tk.training.config import SettingHelp, choices, convert, list_settings, suggest
from mdlstm_tk.training.tasks import KINDS

NAMES = ("task", "model", "cell")  # settings whose values are registered names
METAVARS = {
    "data": "PATH",
    "init": "RUN",
    "size": "SIZE",
    "resize": "SIZE",
    "crop": "SIZE",
    "windows": "SIZE,...",
    "device": "auto|cpu|cuda|cuda:N",
    **dict.fromkeys(NAMES, "NAME"),
}
SHORT = {"model": "-m"}


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
    """Offer the keys of settings with their meaning, or the values of a key that has a few."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [(f"{row.key}=", row.help) for row in list_settings() if row.key.startswith(key)]
    if key not in [row.key for row in list_settings()]:
        return []
    return [(f"{key}={choice}", "") for choice in choices(key) if choice.startswith(value)]


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes **options an option for each setting that belongs to a panel of the help."""

    @wraps(function)
    def call(**options: Any) -> None:
        function(**options)

    own = inspect.signature(function, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    settings = [
        inspect.Parameter(row.key, keyword, default=None, annotation=Annotated[str | None, _option(row)])
        for row in list_settings()
        if row.panel
    ]
    rest = [parameter.replace(kind=keyword) for parameter in own if parameter.kind != parameter.VAR_KEYWORD]
    call.__signature__ = inspect.Signature([*settings, *rest])  # type: ignore[attr-defined]
    return call


def _option(row: SettingHelp) -> Any:
    values = choices(row.key)
    text, _, empty = row.help.partition("; empty: ")
    words = {"task": (*values, *KINDS), "device": DEVICES}.get(row.key, values)
    if row.key in NAMES:
        text = f"{text.rstrip('.')}: {', '.join(values)}"
    return typer.Option(
        f"--{row.key.replace('_', '-')}",
        *filter(None, [SHORT.get(row.key)]),
        help=f"{text.rstrip('.')}.",
        show_default=row.default or empty.rstrip("."),
        rich_help_panel=row.panel,
        parser=partial(_parse, row.key),
        metavar=METAVARS.get(row.key) or "|".join(values) or "NUMBER",
        autocompletion=complete_files(".npz") if row.key == "data" else complete_from(*words),
    )


def parse_name(key: str, text: str) -> str:
    """Check the name of a task, a network or a cell; the library would do so, after importing torch."""
    if key == "model":
        resolve(text)
    elif text not in (*choices(key), *(KINDS if key == "task" else ())):
        raise InputError(not_registered(key, text, choices(key)))
    return text


def _parse(key: str, text: str) -> Any:
    """Convert the text of an option to the type of its setting; errors begin after the name."""
    if key in NAMES:
        return parse_name(key, text)
    try:
        return convert(key, text)
    except InputError as error:
        raise InputError(str(error).removeprefix(key).lstrip(": ")) from None


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
    title = "Settings for --set KEY=VALUE and config.toml"
    panel = Panel(grid, box=ROUNDED, border_style="dim", title=title, title_align="left")
    Console(emoji=False).print(panel)
