"""The Python blocks of pages in docs/, run from top to bottom of each page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.checkout import ROOT
from helpers.documents import blocks, run_blocks
from helpers.requirements import missing

PAGES = ("pytorch.md", "pytorch_layer.md", "exporting.md")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of other packages
@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    if absent := run_blocks(ROOT / "docs" / name):
        missing(f"not installed: {', '.join(sorted(absent))}")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_blocks(name: str) -> None:
    assert len(list(blocks(ROOT / "docs" / name))) >= 5
    printed = [block.printed for block in blocks(ROOT / "docs" / name) if block.printed]
    assert len(printed) == (ROOT / "docs" / name).read_text(encoding="utf-8").count("```text")


def test_a_page_that_prints_something_else_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:6"):
        run_blocks(page)
    page.write_text(page.read_text().replace("```text\n2", "```text\n1"))
    assert run_blocks(page) == set()
