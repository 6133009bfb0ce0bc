"""The Python blocks of docs/pytorch*.md, run from top to bottom of each page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from helpers.checkout import ROOT
from helpers.requirements import missing

PAGES = sorted((ROOT / "docs").glob("pytorch*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[ast.Module]:
    """The blocks of a page; line numbers in tracebacks are those of the page."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        first_line = text.count("\n", 0, found.start(1))
        yield ast.parse("\n" * first_line + found[1], str(page))


def missing_packages(block: ast.Module) -> set[str]:
    """The packages that a block imports and that are not installed."""
    names = set()
    for node in ast.walk(block):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {package for name in names if find_spec(package := name.partition(".")[0]) is None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of other packages
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that needs a package which is not installed is left out, and the test is skipped at last."""
    monkeypatch.chdir(tmp_path)
    namespace = ModuleType("__main__").__dict__
    absent = set()
    for block in blocks(page):
        absent |= (needed := missing_packages(block))
        if not needed:
            exec(compile(block, str(page), "exec"), namespace)
    if absent:
        missing(f"not installed: {', '.join(sorted(absent))}")


def test_there_are_pages_with_blocks() -> None:
    assert ROOT / "docs/pytorch_layer.md" in PAGES
    assert all(list(blocks(page)) for page in PAGES)
