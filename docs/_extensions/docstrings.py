"""Let Sphinx read our docstrings, which are plain text with backticks, as reStructuredText.

In a docstring `x` is code, `(N, *grid, C)` is a shape and no emphasis, and an indented block is an equation
or a drawing whose lines and spaces matter.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.util.inspect import TypeAliasForwardRef

SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
ARGUMENT = re.compile(r"^\s*(?:\\\*)+(?=\w+:)", re.MULTILINE)  # **options: …
SPECIAL = re.compile(r"(?<!\\)([*|])|(?<=\w)_(?!\w)")


def convert(text: str) -> str:
    """A docstring as reStructuredText with the sections of Google's style, for napoleon."""
    lines: list[str] = []
    literal: int | None = None  # indentation of the line that an indented block belongs to
    section: int | None = None
    source = text.split("\n")
    for number, line in enumerate(source):
        indentation = len(line) - len(line.lstrip())
        if literal is not None:
            if not line.strip() or indentation > literal:
                lines.append(line.replace("`", ""))
                continue
            literal = None
        if line.strip() in SECTIONS:
            section = indentation
        elif line.strip() and section is not None and indentation <= section:
            section = None
        lines.append(line)
        if section is None and line.strip() and _begins_block(source, number, indentation):
            lines[-1] = f"{line[:-1]}::" if line.endswith(":") else line
            lines += [""] if line.endswith(":") else ["", "::", ""]
            literal = indentation
    return _escaped("\n".join(lines))


def _begins_block(source: list[str], number: int, indentation: int) -> bool:
    """Whether an indented block of equations or of a drawing follows line `number`."""
    following = next((k for k in range(number + 1, len(source)) if source[k].strip()), None)
    if following is None or source[number].lstrip().startswith((">>>", "...", "- ", "::")):
        return False
    first = source[following]
    deeper = len(first) - len(first.lstrip()) > indentation
    return deeper and not first.lstrip().startswith(">>>")


def _escaped(text: str) -> str:
    """Mark `code` as code, and keep asterisks, bars and trailing underscores from being markup."""
    paragraphs, literal = [], False
    for paragraph in re.split(r"(\n\s*\n)", text):
        is_block = literal and paragraph.lstrip("\n").startswith(" ")
        if paragraph.strip():
            literal = is_block or paragraph.rstrip().endswith("::")
        paragraphs.append(paragraph if is_block or ">>>" in paragraph else _escaped_paragraph(paragraph))
    return "".join(paragraphs)


def _escaped_paragraph(paragraph: str) -> str:
    parts = CODE.split(paragraph)
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = f"``{part.strip('`')}``"
        else:
            parts[k] = SPECIAL.sub(lambda found: "\\" + found[0], part)
    text = "".join(parts)
    return ARGUMENT.sub(
        lambda found: found[0].replace("\\", ""), text
    )  # napoleon escapes their names itself


def _process(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    # The docstring of a package lists its modules for readers of the code; pages have other headings.
    lines[:] = [] if what == "module" else convert("\n".join(lines)).split("\n")


def setup(app: Any) -> dict[str, bool]:
    """Register the extension."""
    # Sphinx writes the aliases of `autodoc_type_aliases` by name, but in a union by their `repr`.
    TypeAliasForwardRef.__repr__ = lambda alias: alias.name  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", _process, priority=400)  # napoleon: 500
    return {"parallel_read_safe": True}
