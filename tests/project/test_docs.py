"""The pages in docs/: their blocks run from top to bottom, and they name every verb and public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.checkout import ROOT, modules
from helpers.documents import blocks, run_blocks
from helpers.requirements import missing

from mdlstm_tk.cli.app import VERBS

PAGES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES += ["CONTRIBUTING.md", "README.md"]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_registries")
@pytest.mark.filterwarnings("ignore")  # those of other packages
@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("examples", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    torch.manual_seed(0)
    if absent := run_blocks(ROOT / name):
        missing(f"not installed: {', '.join(sorted(absent))}")


@pytest.mark.parametrize("name", PAGES)
def test_each_fence_of_a_page_is_of_a_block(name: str) -> None:
    text, found = (ROOT / name).read_text(encoding="utf-8"), [*blocks(ROOT / name)]
    fences = re.findall(r"^ *```(?!\{)\S*", text, re.MULTILINE)
    directives = re.findall(r"^```\{", text, re.MULTILINE)  # of which only the closing fence counts
    shown = len(found) - text.count("<!-- python\n") + sum(block.printed is not None for block in found)
    assert len(fences) == 2 * shown + len(directives)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n", r"page\.md:6"),
        ("```sh check: trains for hours\nmdlstm train --stepz 9\n```\n", "--stepz"),
        ("```sh\nrm -r runs\n```\n", "no test knows"),
    ],
)
def test_a_page_that_is_wrong_is_noticed(tmp_path: Path, page: str, error: str) -> None:
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(Exception, match=error):
        run_blocks(tmp_path / "page.md")


def test_the_reference_has_every_verb_and_every_public_name() -> None:
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{verb\} (\w+)$", text, re.MULTILINE) == list(VERBS)
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    whole = re.findall(r"^\.\. automodule:: (\S+)\n   :members:$", text, re.MULTILINE)
    for package in (name for name, path in modules().items() if path.name == "__init__.py"):
        if package not in (*whole, "mdlstm_tk.cli"):
            names = set(getattr(import_module(package), "__all__", ())) - {"__version__"}
            assert names <= set(re.findall(r"\w+", text)), f"docs/reference.md lacks names of {package}"


@pytest.mark.slow
def test_every_drawing_is_drawn_by_a_script(tmp_path: Path) -> None:
    for script in (path for path in (ROOT / "docs/figures").glob("*.py") if path.stem != "style"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, script, tmp_path], check=True, env=environment)
    drawn, images = ({*os.listdir(folder)} for folder in (tmp_path, ROOT / "docs/images"))
    assert {name for name in images if name.endswith(".svg")} <= drawn <= images
