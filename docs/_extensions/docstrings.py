"""Let Sphinx read our docstrings, which are plain text with backticks, as reStructuredText.

In a docstring `x` is code, `(N, *grid, C)` is a shape and no emphasis, and an indented block is an equation
or a drawing whose lines and spaces matter. `docs/NAME.md` becomes a link to that page.

Sphinx is imported where it is needed, so that `convert` can be tested without it.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
PAGE = re.compile(r"`?docs/([\w/-]+)\.md`?")  # a page of the site
# "C. None: …" would be an item of a list.
LETTER = re.compile(r"^(\s*(?:\w+: )?[A-Za-z])\.(?=\s|$)", re.MULTILINE)
MODULE = re.compile(r"(?<![\w.~])(?=\w+\.\w)")  # before a name with its module
ARRAY = re.compile(r"numpy\.ndarray\[tuple\[Any, \.\.\.\], numpy\.dtype\[(.+?)\]\]")
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
        returned = number and source[number - 1].strip() in ("Returns:", "Yields:")
        # napoleon takes what stands before the first colon for a type, but ours come from the annotation
        lines.append(f"{line[:indentation]}: {line.strip()}" if returned else line)
        if section is None and line.strip() and _begins_block(source, number, indentation):
            lines[-1] = f"{line[:-1]}::" if line.endswith(":") else line
            lines += [""] if line.endswith(":") else ["", "::", ""]
            literal = indentation
    return _escaped("\n".join(lines))


def _begins_block(source: list[str], number: int, indentation: int) -> bool:
    """True if an indented block of equations or of a drawing follows line `number`."""
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
    parts = CODE.split(LETTER.sub(r"\1\\.", paragraph))
    for k, part in enumerate(parts):
        if PAGE.fullmatch(part) or not k % 2:
            parts[k] = SPECIAL.sub(lambda found: "\\" + found[0], PAGE.sub(r":doc:`/\1`", part))
        else:
            parts[k] = f"``{part.strip('`')}``"
    text = "".join(parts)
    return ARGUMENT.sub(
        lambda found: found[0].replace("\\", ""), text
    )  # napoleon escapes their names itself


def _process(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    # The docstring of a package lists its modules for readers of the code; pages have other headings.
    lines[:] = [] if what == "module" else convert("\n".join(lines)).split("\n")


def _shorten_types(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Leave out the modules of attributes' types, which napoleon writes in full."""
    for number, line in enumerate(lines):
        if line.lstrip().startswith(":vartype"):
            field, kind = line.split(": ", 1)
            kind = ARRAY.sub(r"numpy.typing.NDArray[\1]", kind)
            lines[number] = f"{field}: {MODULE.sub('~', kind)}"


def _signature(
    _app: Any, what: str, _name: str, thing: Any, _options: Any, arguments: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """The arguments of a constructor, not those of `__new__`; and defaults that Python can parse."""
    if what == "class" and arguments == "(*args, **kwargs)":
        from sphinx.util.inspect import stringify_signature

        found = inspect.signature(thing.__init__)
        found = found.replace(parameters=list(found.parameters.values())[1:])
        arguments = stringify_signature(found, show_annotation=False, show_return_annotation=False)
    return arguments and arguments.replace("<factory>", "..."), result


def _skip(_app: Any, _what: str, _name: str, thing: Any, _skipped: bool, _options: Any) -> bool | None:
    """Skip the fields of named tuples, which the class describes."""
    return True if (inspect.getdoc(thing) or "").startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Register the extension."""
    from sphinx.domains.python import PyClasslike
    from sphinx.util.inspect import TypeAliasForwardRef

    # Sphinx writes the aliases of `autodoc_type_aliases` by name, but in a union by their `repr`.
    TypeAliasForwardRef.__repr__ = lambda alias: alias.name  # type: ignore[method-assign]
    for field in PyClasslike.doc_field_types:
        field.label = "Attributes" if field.name == "variable" else field.label
    app.connect("autodoc-process-docstring", _process, priority=400)  # napoleon: 500
    app.connect("autodoc-process-docstring", _shorten_types, priority=600)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
