"""Directives whose content comes from the program itself, so that it cannot differ from it.

{verb} infer        usage, description, arguments and options of a verb of `mdlstm`
{settings}          the table of all keys of `--set` and `config.toml`
{task-defaults}     the settings that each task and kind of data changes
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from docutils import nodes
from docutils.parsers.rst import Directive

from mdlstm_tk.cli.app import typer_app
from mdlstm_tk.data.user_data import DEFAULTS
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
        panels: dict[str, list[Any]] = {}
        for param in verb.params:
            title = "Arguments" if param in arguments else param.rich_help_panel or "Options"
            panels.setdefault(title, []).append(param)
        result: list[nodes.Node] = [nodes.literal_block(usage, usage, language="text")]
        result += [
            nodes.paragraph("", "", *_text(part)) for part in inspect.cleandoc(verb.help).split("\n\n")
        ]
        annotations = inspect.signature(verb.callback, eval_str=True).parameters
        for title, params in panels.items():
            result.append(nodes.rubric("", title))
            result.append(
                nodes.definition_list(
                    "", *(_option(name, param, annotations[param.name].annotation) for param in params)
                )
            )
        return result


def _option(verb: str, param: Any, annotation: Any) -> nodes.definition_list_item:
    names = param.opts or [param.metavar]
    value = "" if getattr(param, "is_flag", False) or not param.opts else f" {_value(param, annotation)}"
    term = nodes.term("", "", ids=[f"{verb}-{param.name.replace('_', '-')}"])
    for k, name in enumerate(sorted(names, key=len)):
        term += [nodes.Text(", ")] if k else []
        term += nodes.literal("", name)
    if value:
        term += nodes.literal("", value.strip(), classes=["value"])
    text = param.help or ""
    default = _default(param)
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


def _value(param: Any, annotation: Any) -> str:
    """The value of an option: its own metavar, its choices, or its type."""
    if param.metavar:
        return str(param.metavar)
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    kinds = [each for each in get_args(kind) if each is not type(None)] or [kind]
    if get_origin(kind) is Literal:
        kinds = [kind]
    choices = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else ()
    return "|".join(choices) or {int: "INTEGER", float: "NUMBER"}.get(kinds[0], "TEXT")


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return param.show_default
    shown = param.show_default and param.default not in (None, False, (), [])
    return str(param.default) if shown else ""


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
        tasks |= {f"{kind} (your own data)": values for kind, values in DEFAULTS.items()}
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
