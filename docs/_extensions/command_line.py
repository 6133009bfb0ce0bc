"""Directives whose content comes from the program itself, so that it cannot differ from it.

{verb} infer        usage, description, arguments and options of a verb of `mdlstm`
{settings}          the table of all keys of `--set` and `config.toml`
{task-defaults}     the settings that each task and kind of data changes
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from docutils import nodes
from docutils.parsers.rst import Directive

from mdlstm_tk.cli.app import typer_app
from mdlstm_tk.cli.help import default_of, sections, value_of
from mdlstm_tk.kinds import kind_names, training_of
from mdlstm_tk.training.config import list_settings
from mdlstm_tk.training.tasks import BUILT_IN, find_task


class VerbDirective(Directive):
    """The reference of one verb."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return usage, description, and the parameters in their panels."""
        (name,) = self.arguments
        verb = typer.main.get_command(typer_app(name))
        arguments = [param for param in verb.params if param.param_type_name == "argument"]
        usage = " ".join(["mdlstm", name, "[OPTIONS]", *(param.metavar for param in arguments)])
        result: list[nodes.Node] = [nodes.literal_block(usage, usage, language="text")]
        result += [
            nodes.paragraph("", "", *_text(part)) for part in inspect.cleandoc(verb.help).split("\n\n")
        ]
        for title, params in sections(verb).items():
            result.append(nodes.rubric("", title))
            result.append(nodes.definition_list("", *(_option(name, param) for param in params)))
        return result


def _option(verb: str, param: Any) -> nodes.definition_list_item:
    names = param.opts or [param.metavar]
    value = value_of(param) if param.param_type_name == "option" else ""
    term = nodes.term("", "", ids=[f"{verb}-{param.name.replace('_', '-')}"])
    for k, name in enumerate(sorted(names, key=len)):
        term += [nodes.Text(", ")] if k else []
        term += nodes.literal("", name)
    if value:
        term += nodes.literal("", value, classes=["value"])
    text = param.help or ""
    default = default_of(param)
    paragraph = nodes.paragraph("", "", *_text(text))
    if default:
        paragraph += [nodes.Text(" Default: "), *_text(default), nodes.Text(".")]
    elif param.required:
        paragraph += nodes.Text(" Required.")
    return nodes.definition_list_item("", term, nodes.definition("", paragraph))


def _text(text: str) -> list[nodes.Node]:
    """A text in which options are code."""
    parts = re.split(r"(?<![\w-])(--?[a-z][\w-]*)", text)
    return [nodes.literal("", part) if k % 2 else nodes.Text(part) for k, part in enumerate(parts) if part]


class SettingsDirective(Directive):
    """The table of `mdlstm_tk.training.list_settings`."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [(_code(row.key), _code(row.default), row.meaning) for row in list_settings()]
        return [_table(("key", "default", "meaning"), (20, 15, 65), rows)]


class TaskDefaultsDirective(Directive):
    """The settings that built-in tasks, and the kinds of the user's own data, change."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        tasks = {name: find_task(name).defaults for name in BUILT_IN}
        tasks |= {f"{kind} (your own data)": training_of(kind).defaults for kind in kind_names()}
        rows = [
            (name, _code(", ".join(f"{key}={value}" for key, value in values.items() if value != "")))
            for name, values in tasks.items()
            if values
        ]
        return [_table(("task", "settings"), (30, 70), rows)]


def _code(text: str) -> nodes.Node:
    return nodes.literal("", text) if text else nodes.inline("", "")


def _table(
    heading: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[str | nodes.Node]]
) -> nodes.table:
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(widths))
    group += nodes.thead("", _row(heading))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group)


def _row(cells: Sequence[str | nodes.Node]) -> nodes.row:
    content = [nodes.Text(cell) if isinstance(cell, str) else cell for cell in cells]
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in content))


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("verb", VerbDirective)
    app.add_directive("settings", SettingsDirective)
    app.add_directive("task-defaults", TaskDefaultsDirective)
    return {"parallel_read_safe": True}
