"""Run the code in a page of the documentation.

```python                       is run, all blocks of a page in one namespace
```sh                           is run, in the folder of the page's test (see `shell`)
```text                         after one of these, is what it prints; … stands for any text
```sh check: REASON             is not run, but its options are checked; Python is compiled
<!-- python … -->               is run, too, but readers do not see it: it makes the files of the page
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from helpers.shell import check_commands, run_commands

LANGUAGES = ("python", "sh", "text", "json", "toml")
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]\w*)(?P<note>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n(?P=indent)```text\n(?P<printed>.*?)^(?P=indent)```$)?"
    r"|^<!-- python\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of a page.

    Attributes:
        language: of the code, "python", "sh" and so on.
        code: its text.
        line: the line of the page that its first line is.
        is_run: whether it is run; otherwise it is only checked.
        printed: the ```text block that follows it, which is what it prints; None if there is none.
    """

    language: str
    code: str
    line: int
    is_run: bool
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page.

    Raises:
        ValueError: a block has another language, or a note that is not "check: " and a reason.
    """
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        if (hidden := found["hidden"]) is not None:
            yield Block("python", hidden, line, True, None)
            continue
        language, note = found["language"], found["note"].strip()
        if language not in LANGUAGES or (note and not re.fullmatch(r"check: \w.*", note)):
            raise ValueError(f"{page}:{line - 1}: unknown kind of block ```{language} {note}")
        code = re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE)
        yield Block(language, code, line, not note, found["printed"])


def run_blocks(page: Path) -> set[str]:
    """Run the blocks of a page in the current folder, and check what they print.

    Returns:
        The packages that are not installed. Python blocks that import them are left out.
    """
    namespace = ModuleType("__main__").__dict__
    absent: set[str] = set()
    for block in blocks(page):
        place = f"{page}:{block.line}"
        if block.language == "python":
            # line numbers in tracebacks are those of the page
            code = ast.parse("\n" * (block.line - 1) + block.code, str(page))
            needed = _missing_packages(code) if block.is_run else set()
            absent |= needed
            if needed or not block.is_run:
                continue
            printed = _run_python(code, page, namespace)
        elif block.language == "sh" and block.is_run:
            printed = run_commands(block.code)
        else:
            _check(block)
            continue
        if block.printed is not None:
            assert _matches(printed, block.printed), f"{place} prints\n{printed}"
    return absent


def _run_python(code: ast.Module, page: Path, namespace: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(page), "exec"), namespace)
    return printed.getvalue()


def _check(block: Block) -> None:
    if block.language == "sh":
        check_commands(block.code)
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "toml":
        tomllib.loads(block.code)


def _matches(printed: str, expected: str) -> bool:
    """True if the words are equal, where … stands for any text."""
    pattern = ".*".join(map(re.escape, " ".join(expected.split()).split("…")))
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def _missing_packages(code: ast.Module) -> set[str]:
    """The packages that a block imports and that are not installed."""
    names = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {package for name in names if find_spec(package := name.partition(".")[0]) is None}
