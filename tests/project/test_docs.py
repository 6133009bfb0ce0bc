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
WITHOUT_BLOCKS = {
    f"docs/{name}.md"
    for name in ("changelog", "concepts", "contributing", "faq", "index", "reference", "results")
}


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
def test_a_page_has_blocks_of_known_kinds(name: str) -> None:
    page = ROOT / name
    page_blocks = list(blocks(page))
    assert page_blocks or name in WITHOUT_BLOCKS
    fences = re.findall(r"^ *```(?!\{)\S*", page.read_text(encoding="utf-8"), re.MULTILINE)
    directives = re.findall(r"^```\{", page.read_text(encoding="utf-8"), re.MULTILINE)
    hidden = page.read_text(encoding="utf-8").count("<!-- python\n")
    shown = 2 * (len(page_blocks) - hidden) + 2 * sum(block.printed is not None for block in page_blocks)
    assert len(fences) == shown + len(directives)  # of a directive, only the closing fence counts


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n", r"page\.md:6"),
        ("```sh\nmdlstm info nowhere.onnx\n```\n", "nowhere"),
        ("```sh check: trains for hours\nmdlstm train --stepz 9\n```\n", "--stepz"),
        ("```sh\nrm -r runs\n```\n", "no test knows"),
        ("```sh\npip install 'mdlstm-tk[trian]'\n```\n", "trian"),
    ],
)
def test_a_page_that_is_wrong_is_noticed(tmp_path: Path, page: str, error: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(Exception, match=error):
        run_blocks(path)


def test_the_reference_has_every_verb_and_every_public_name() -> None:
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{verb\} (\w+)$", text, re.MULTILINE) == list(VERBS)
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    whole = re.findall(r"^\.\. automodule:: (\S+)\n   :members:$", text, re.MULTILINE)
    for package in (name for name, path in modules().items() if path.name == "__init__.py"):
        if package not in (*whole, "mdlstm_tk.cli"):
            names = set(getattr(import_module(package), "__all__", ())) - {"__version__"}
            absent = names - set(re.findall(r"\w+", text))
            assert not absent, f"docs/reference.md must show these public names of {package}"


def test_every_drawing_is_drawn_by_a_script(tmp_path: Path) -> None:
    scripts = [path for path in (ROOT / "docs/figures").glob("*.py") if path.stem != "style"]
    for script in scripts:
        subprocess.run(
            [sys.executable, script, tmp_path], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    drawn = {path.name for path in tmp_path.iterdir()}
    images = {path.name for path in (ROOT / "docs/images").iterdir()}
    assert {name for name in images if name.endswith(".svg")} <= drawn <= images
