"""The help of `mdlstm` and of its verbs: usage, the options that most people need, and all others below.

Each line fits the terminal, and no word is broken.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from typer.core import TyperCommand, TyperGroup

MAX_WIDTH = 100  # columns of a line; longer lines are hard to read
TERM_WIDTH = 26  # columns for the names of options; a longer name gets a line of its own
TEXT_WIDTH = 40  # columns for the texts, at least; if fewer are left, all names get lines of their own
INDENT = 8  # columns in front of a text whose name has a line of its own in this case
ARGUMENTS = "Arguments"
COMMON = "Options"
# The options of verbs with many that most people need. Of the other verbs it is all but those for messages.
COMMON_OPTIONS: dict[str, tuple[str, ...]] = {
    "train": (
        *("task", "data", "model", "size", "steps", "minutes"),
        *("config", "settings", "resume", "output"),
    ),
    "compare": ("task", "size", "seeds", "steps", "settings", "output"),
    "export": ("size", "form", "output", "web", "force"),
    "infer": ("model", "output", "output_format", "device", "skip_existing", "force"),
    "verify": ("against", "data", "device", "json"),
}
UNCOMMON_PANELS = ("Messages", "Run", "Limits")


def sections(command: Any) -> dict[str, list[Any]]:
    """The arguments and options of a command by the heading that they stand below, in order."""
    common = COMMON_OPTIONS.get(command.name)
    result: dict[str, list[Any]] = {ARGUMENTS: [], COMMON: []}
    for param in command.params:
        panel, heading = param.rich_help_panel, COMMON
        if param.param_type_name == "argument":
            heading = ARGUMENTS
        elif param.name not in common if common else panel in UNCOMMON_PANELS:
            heading = f"Further options: {panel.lower()}" if panel else "Further options"
        result.setdefault(heading, []).append(param)
    if common:
        result[COMMON].sort(key=lambda param: common.index(param.name))
    return {heading: params for heading, params in result.items() if params}


def value_of(param: Any) -> str:
    """The value of an option in its help: a word of its own, its choices or its type; "" for a flag."""
    if param.metavar or getattr(param, "is_flag", False):
        return param.metavar or ""
    kind = param.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", float: "NUMBER"}.get(kind, "TEXT")


def default_of(param: Any) -> str:
    """The default of an option, in words or as a value; "" if there is none, or it says nothing."""
    if isinstance(param.show_default, str) or not param.show_default:
        return param.show_default or ""
    default = param.default
    if default is None or isinstance(default, bool | list | tuple):
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


class HelpfulCommand(TyperCommand):
    """A verb with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        paragraphs = [_wrapped(text) for text in cleandoc(self.help or "").split("\n\n")]
        arguments = [str(param.metavar) for param in self.params if param.param_type_name == "argument"]
        parts = [*paragraphs, _usage(ctx, *arguments), *_option_tables(sections(self))]
        formatter.write("\n\n".join(parts) + "\n")


class HelpfulGroup(TyperGroup):
    """The command `mdlstm` with this help: the verbs stand before the options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            verb: Any = self.get_command(ctx, name)
            panels.setdefault(verb.rich_help_panel, []).append((name, verb.help.split("\n\n")[0]))
        width = max(len(name) for rows in panels.values() for name, _ in rows)
        verbs = [_table(f"Commands: {panel.lower()}", rows, width) for panel, rows in panels.items()]
        more = _wrapped("mdlstm COMMAND --help shows the options of a command.")
        options = _option_tables({COMMON: self.params})
        parts = [_wrapped(self.help or ""), _usage(ctx, "COMMAND"), *verbs, *options, more]
        formatter.write("\n\n".join(parts) + "\n")


def _usage(ctx: Any, *arguments: str) -> str:
    return f"{_bold('Usage:')} {' '.join([ctx.command_path, '[OPTIONS]', *arguments])}"


def _option_tables(params: dict[str, list[Any]]) -> list[str]:
    """A table for each section, with names in columns of equal width."""
    tables = {heading: [_option_row(param) for param in each] for heading, each in params.items()}
    [*tables.values()][-1].append(("-h, --help", "Show this message."))
    lengths = [len(term) for rows in tables.values() for term, _ in rows]
    width = max(length for length in lengths if length <= TERM_WIDTH)
    return [_table(heading, rows, width) for heading, rows in tables.items()]


def _option_row(param: Any) -> tuple[str, str]:
    """The names of an option with its value, and its meaning with its default."""
    text = f"{param.help} [default: {default}]" if (default := default_of(param)) else param.help
    if param.param_type_name == "argument":
        return param.metavar, text
    names = sorted(param.opts, key=len)
    alignment = "" if len(names[0]) == len("-x") else "    "
    return f"{alignment}{', '.join(names)} {value_of(param)}".rstrip(), text


def _table(heading: str, rows: Sequence[tuple[str, str]], width: int) -> str:
    """Rows of a name and a text, below a heading; the texts begin in one column."""
    lines, is_narrow = [_bold(heading)], _columns() - width - 4 < TEXT_WIDTH
    for term, text in rows:
        body = _wrapped(text, " " * (INDENT if is_narrow else width + 4))
        term = term.lstrip() if is_narrow else term
        if is_narrow or len(term) > width:
            lines += [f"  {_bold(term)}", body]
        else:
            lines.append(f"  {_bold(term)}{body[2 + len(term) :]}")
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    """A paragraph as lines that fit the terminal. Line breaks of the source count as spaces."""
    wrapper = textwrap.TextWrapper(
        _columns(), indent, indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(" ".join(text.split()))


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, MAX_WIDTH)


def _bold(text: str) -> str:
    """A text in bold; Typer takes that away where stdout is no terminal."""
    return text if os.environ.get("NO_COLOR") else f"\033[1m{text}\033[0m"
