"""Run the code in a page of the documentation."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A ```python block of a page.

    Attributes:
        code: its code; line numbers in tracebacks are those of the page.
        printed: the ```text block that follows it, which is what it prints; None if there is none.
    """

    code: ast.Module
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The ```python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        first_line = text.count("\n", 0, found.start(1))
        yield Block(ast.parse("\n" * first_line + found[1], str(page)), found[2])


def run_blocks(page: Path) -> set[str]:
    """Run the blocks of a page in one namespace, in the current folder, and check what they print.

    Returns:
        The packages that are not installed. Blocks that import them are left out.
    """
    namespace = ModuleType("__main__").__dict__
    absent: set[str] = set()
    for code, expected in blocks(page):
        absent |= (needed := _missing_packages(code))
        if needed:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), namespace)
        if expected is not None:
            assert printed.getvalue().split() == expected.split(), f"{page}:{code.body[0].lineno}"
    return absent


def _missing_packages(code: ast.Module) -> set[str]:
    """The packages that a block imports and that are not installed."""
    names = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {package for name in names if find_spec(package := name.partition(".")[0]) is None}
