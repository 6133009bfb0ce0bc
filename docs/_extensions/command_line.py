"""Directives whose content comes from the program itself, so that it cannot differ from it.

{verb} infer        usage, description, arguments and options of a verb of `mdlstm`
{settings}          the table of all settings, which are options of `mdlstm train` and keys of `config.toml`
{task-defaults}     the settings that each task and kind of data changes
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import typer
from docutils import nodes
from docutils.parsers.rst import Directive

from mdlstm_tk.cli.app import typer_app
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.tasks import BUILT_IN, task_defaults

DEFAULT = re.compile(r"  \(default: (.+)\)$")  # that a help text names itself


class VerbDirective(Directive):
    """The reference of one verb."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return usage, description, and the parameters in their panels."""
        (name,) = self.arguments
        group: Any = typer.main.get_command(typer_app([name]))
        verb = group.commands[name]
        arguments = [param for param in verb.params if param.param_type_name == "argument"]
        usage = " ".join(["mdlstm", name, "[OPTIONS]", *map(_usage, arguments)])
        result: list[nodes.Node] = [nodes.literal_block(usage, usage, language="text")]
        result += [
            nodes.paragraph("", "", *_text(part)) for part in inspect.cleandoc(verb.help).split("\n\n")
        ]
        panels: dict[str, list[Any]] = {"Arguments": [], "Options": []}
        for param in verb.params:
            is_argument = param.param_type_name == "argument"
            panel = "Arguments" if is_argument else param.rich_help_panel or "Options"
            panels.setdefault(panel, []).append(param)
        for title, params in panels.items():
            if params:
                result.append(nodes.rubric("", title))
                result.append(nodes.definition_list("", *(_option(name, param) for param in params)))
        return result


def _usage(argument: Any) -> str:
    """An argument in the usage of its verb, as FILE... or [RUN]."""
    text = f"{argument.metavar}{'...' if argument.nargs == -1 else ''}"
    return text if argument.required else f"[{text}]"


def _value(param: Any) -> str:
    """The value of an option: a word of its own, its choices or its type; "" for a flag."""
    if param.metavar or param.is_flag:
        return param.metavar or ""
    kind = param.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", float: "NUMBER"}.get(kind, "TEXT")


def _default(param: Any) -> str:
    """The default of an option that its help does not name; "" if there is none, or it says nothing."""
    if isinstance(param.show_default, str) or not param.show_default:
        return param.show_default or ""
    default = param.default
    return "" if default is None or isinstance(default, bool | list | tuple) else str(default)


def _option(verb: str, param: Any) -> nodes.definition_list_item:
    is_option = param.param_type_name == "option"
    names = param.opts if is_option else [param.metavar]
    value = _value(param) if is_option else ""
    term = nodes.term("", "", ids=[f"{verb}-{param.name.replace('_', '-')}"])
    for k, name in enumerate(sorted(names, key=len)):
        term += [nodes.Text(", ")] if k else []
        term += nodes.literal("", name)
    if value:
        term += nodes.literal("", value, classes=["value"])
    text, *named = DEFAULT.split(param.help or "")
    default = named[0] if named else _default(param)
    paragraph = nodes.paragraph("", "", *_text(text))
    if default:
        paragraph += [nodes.Text(" Default: "), *_text(default), nodes.Text(".")]
    elif param.required:
        paragraph += nodes.Text(" Required.")
    return nodes.definition_list_item("", term, nodes.definition("", paragraph))


def _text(text: str) -> list[nodes.Node]:
    """A text in which options, and what stands between backticks, are code."""
    parts = re.split(r"(`[^`]+`|(?<![\w-])--?[a-z][\w-]*)", text)
    code = (
        nodes.literal("", part.strip("`")) if k % 2 else nodes.Text(part) for k, part in enumerate(parts)
    )
    return [node for node in code if node.astext()]


class SettingsDirective(Directive):
    """The fields of `TrainConfig`."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [
            (_code(each.name), _code(str(each.default)), each.metadata["help"])
            for each in fields(TrainConfig)
        ]
        return [_table(("key", "default", "meaning"), (20, 15, 65), rows)]


class TaskDefaultsDirective(Directive):
    """The settings that built-in tasks, and the kinds of the user's own data, change."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        tasks = {name: task_defaults(name) for name in BUILT_IN}
        tasks |= {f"{kind} (your own data)": {**kind_named(kind).defaults} for kind in kind_names()}
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
