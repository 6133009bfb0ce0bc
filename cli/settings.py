"""The settings of a training run on the command line: an option for each common one, --set for all, and
`mdlstm settings`, which lists them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, table
from mdlstm_tk.cli.options import (
    DEVICES,
    RUN,
    Json,
    complete_files,
    complete_from,
    option,
    parameters_of,
    with_parameters,
)
from mdlstm_tk.kinds import kind_names
from mdlstm_tk.training.config import SettingHelp, choices, list_settings

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
    words = {"task": (*values, *kind_names()), "device": DEVICES}.get(row.key, values)
    help = f"{row.help.rstrip('.')}: {', '.join(values)}." if METAVARS.get(row.key) == "NAME" else row.help
    return option(
        help,
        row.panel,
        *(f"--{row.key.replace('_', '-')}", *(["-m"] if row.key == "model" else [])),
        show_default=row.value is not None and (row.default or row.empty),
        metavar=METAVARS.get(row.key) or "|".join(values) or "NUMBER",
        autocompletion=complete_files(".npz") if row.key == "data" else complete_from(*words),
    )


Settings = Annotated[
    list[str] | None,
    option(
        "Change any setting that mdlstm settings lists; repeatable.",
        *(RUN, "--set"),
        metavar="KEY=VALUE",
        autocompletion=complete_setting,
        show_default=False,
    ),
]


def settings(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="[TASK]",
            help="Registered task, or kind of your own data, whose defaults are shown.",
            autocompletion=complete_from(*choices("task"), *kind_names()),
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List all settings of a training, with their defaults and their meaning.

    Each is a key of --set KEY=VALUE and of config.toml. The common ones are options of mdlstm train, too.
    """
    rows = list_settings(task)
    if json:
        values = {row.key: {"default": row.value, "meaning": row.meaning} for row in rows}
        print_json({"task": task, "settings": values})
    else:
        cells = [[row.key, row.default or "-", row.meaning] for row in rows]
        table(
            ["setting", f"default of {task}" if task else "default", "meaning"], cells, texts=3, folds=True
        )
    if not task:
        names = ", ".join([*choices("task"), *kind_names()])
        note(f"mdlstm settings TASK shows the defaults of a task or kind of data: {names}")
    kind = " --data PATH" if task in kind_names() else ""
    next_command(f"mdlstm train --task {task or 'TASK'}{kind}")
