"""The pages in docs/: their blocks run from top to bottom, and they name every verb and public name;
CONTRIBUTING.md lists the kinds of blocks."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from helpers.checkout import ROOT, modules
from helpers.command import succeed

from mdlstm_tk.cli.app import VERBS, typer_app

PAGES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES += ["CONTRIBUTING.md", "README.md"]
BLOCK = re.compile(
    r"^```(?P<language>python|sh)(?P<check> check:[^\n]*)?\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<printed>.*?)^```$)?"
    r"|^<!-- python\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_registries")
@pytest.mark.filterwarnings("ignore")  # those of other packages
@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And print what the page says, where … stands for any text. Of blocks that are only checked, Python is
    parsed, and so are the arguments of `mdlstm`."""
    monkeypatch.chdir(tmp_path)
    for folder in ("examples", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    torch.manual_seed(0)
    namespace = ModuleType("__main__").__dict__
    text = (ROOT / name).read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        code, is_run = block["hidden"] or block["code"], not block["check"]
        if block["language"] == "sh":
            for line in code.replace("\\\n", "").splitlines():
                (run if is_run else check)(line)
        else:  # line numbers in tracebacks are those of the page
            tree = ast.parse("\n" * (text.count("\n", 0, block.start()) + 1) + code, name)
            if is_run:
                exec(compile(tree, name, "exec"), namespace)
        printed, expected = (
            " ".join(each.split()) for each in (capsys.readouterr().out, block["printed"] or "…")
        )
        assert re.fullmatch(".*".join(map(re.escape, expected.split("…"))), printed), printed


def run(line: str) -> None:
    """Run a command, `mdlstm` in this process. Trainings take few steps; more stay more, so that a page may
    resume one."""
    words = shlex.split(line, comments=True)
    if {"train", "compare"} & {*words} and not {"--steps", "--resume"} & {*words}:
        words += ["--steps", "4"]
    for k, word in enumerate(words):
        if word == "--steps":
            words[k + 1] = str(4 + int(words[k + 1]) // 100)
    match words[:1]:
        case ["mdlstm"]:
            print(succeed(*words[1:]).out)
        case ["python"]:
            subprocess.run([sys.executable, *words[1:]], check=True)
        case _:
            assert not words, f"no test knows how to run {line}"


def check(line: str) -> None:
    """Parse the arguments of `mdlstm`."""
    words = shlex.split(line, comments=True)
    for verb in {*VERBS} & {*words} if words[:1] == ["mdlstm"] else ():
        group: Any = typer.main.get_command(typer_app([verb]))
        group.commands[verb].make_context(verb, words[words.index(verb) + 1 :])


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
