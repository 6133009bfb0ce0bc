"""Links inside the repository: each leads to a file that exists and, after "#", to one of its headings.

Sphinx checks those between pages of docs/ when the site is built. This test also reads the files that hosts
show, the notebook, and the comments and docstrings that name a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.checkout import ROOT

REPOSITORY = r"https://github\.com/mdlstm-tk/mdlstm-tk/(?:blob|raw|tree)/main/"
FENCED = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\"")
MENTION = re.compile(r"\bdocs/[a-z_/-]+\.md(?:#[\w-]+)?")

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
NOTEBOOKS = list((ROOT / "examples").glob("*.ipynb"))
FOLDERS = ("mdlstm_tk", "models", "export", "cli", "examples", "benchmarks", "tests", "docs")
SOURCES = sorted({path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")})


def anchors(page: Path) -> set[str]:
    """The names that GitHub and MyST give to the headings of a page."""
    found: set[str] = set()
    text = page.read_text(encoding="utf-8")
    if included := INCLUDE.search(text):
        return anchors(page.parent / included[1])
    for line in FENCED.sub("", text).splitlines():
        if heading := re.match(r"#{1,3} (.+)", line):
            title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            name = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            repeated = sum(each == name or re.fullmatch(rf"{name}-\d+", each) is not None for each in found)
            found.add(f"{name}-{repeated}" if repeated else name)
    return found


def links(text: str) -> Iterator[str]:
    """The targets of the links in a Markdown text, without those in code."""
    for match in LINK.finditer(CODE.sub("code", FENCED.sub("", text))):
        yield match[1] or match[2]


def dead(page: Path, targets: Iterator[str], folder: Path | None = None) -> list[str]:
    """The links of a page that lead nowhere; those to other sites are not followed."""
    found = []
    for target in targets:
        within = re.match(REPOSITORY, target)
        if not within and re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = (target[within.end() :] if within else target).partition("#")
        file = ((ROOT if within else folder or page.parent) / path) if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(target)
    return found


def notebook_text(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert dead(page, links(page.read_text(encoding="utf-8"))) == []


def test_links_of_notebooks_lead_somewhere() -> None:
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        assert dead(notebook, links(notebook_text(notebook))) == []


def test_pages_that_code_names_exist() -> None:
    named = {
        path: found
        for path in SOURCES
        if path != Path(__file__).resolve() and (found := MENTION.findall(path.read_text(encoding="utf-8")))
    }
    assert (ROOT / "export/api.py").resolve() in named
    found = {path: dead(path, iter(names), ROOT) for path, names in named.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_dead_links_are_found(tmp_path: Path) -> None:
    """A file, a heading, a heading of the page itself, and a file of the repository at its host."""
    (tmp_path / "other.md").write_text(
        "# Other\n\n## A `b`: c\n\n## A `b`: c\n\n```sh\n# not a heading\n```\n"
    )
    page = tmp_path / "page.md"
    here = "https://github.com/mdlstm-tk/mdlstm-tk/blob/main"
    alive = f"[a](other.md#a-b-c) [b](other.md#a-b-c-1) [c](#page) [d]({here}/README.md#mdlstm-tk) `[e](f)`"
    wrong = [
        "gone.md",
        "other.md#gone",
        "other.md#not-a-heading",
        "#gone",
        f"{here}/gone",
        f"{here}/README.md#gone",
    ]
    page.write_text("# Page\n\n" + alive + "".join(f" [x]({target})" for target in wrong))
    assert dead(page, links(page.read_text())) == wrong
