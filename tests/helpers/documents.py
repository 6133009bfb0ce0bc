"""Run the code in a page of the documentation; CONTRIBUTING.md lists the kinds of blocks.

`mdlstm` runs in this process, so that torch is imported once. Commands that install or build something
are not run: what they name is looked up. Everything else is refused, so that no command is untested.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import typer

from helpers.checkout import ROOT
from helpers.command import mdlstm
from mdlstm_tk.cli.app import VERBS, typer_app

STEPS = "4"  # of a training for which a page does not say --steps
PROGRAMS = ("(ulimit", "docker", "git", "torchrun", "unshare", "xargs")  # in blocks that are only checked
LANGUAGES = ("python", "sh", "text", "json", "toml")
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]\w*)(?P<note>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n(?P=indent)```text\n(?P<printed>.*?)^(?P=indent)```$)?"
    r"|^<!-- python\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of the page, on which the code begins
    is_run: bool  # otherwise it is only checked
    printed: str | None  # the ```text block that follows, which is what it prints


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        if (hidden := match["hidden"]) is not None:
            yield Block("python", hidden, line, True, None)
            continue
        language, note = match["language"], match["note"].strip()
        if language not in LANGUAGES or (note and not re.fullmatch(r"check: \w.*", note)):
            raise ValueError(f"{page}:{line - 1}: unknown kind of block ```{language} {note}")
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        yield Block(language, code, line, not note, match["printed"])


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
            printed = "".join(_run(words) for words in _commands(block.code))
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
        for words in _commands(block.code):
            for is_joint, command in groupby(words, "&&".__eq__):
                if not is_joint:
                    _check_command([*command])
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


def _commands(text: str) -> list[list[str]]:
    """The words of each command in a block, without comments."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _run(words: list[str]) -> str:
    words, source = _redirected(words)
    if words[0] == "mdlstm":
        called = mdlstm(*_with_fewer_steps(words[1:]), stdin=source.read_bytes() if source else b"")
        code, output = called.code, called.out + called.err
    elif words[0] in ("python", "python3") and words[1:3] != ["-m", "venv"]:
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
        code, output = done.returncode, done.stdout + done.stderr
    else:
        _check_command(words)
        return ""
    assert code == 0, f"{shlex.join(words)}: {output}"
    return output


def _check_command(words: list[str]) -> None:
    words, _ = _redirected(words)
    if words[:3] == ["python", "-m", "mdlstm_tk"]:
        words = ["mdlstm", *words[3:]]
    program, *arguments = words
    if program == "mdlstm":
        name = _verb(arguments)
        if name:
            group: Any = typer.main.get_command(typer_app([name]))
            group.commands[name].make_context(name, arguments[arguments.index(name) + 1 :])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets), words
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        for extras in re.findall(r"^(?:\.|mdlstm-tk)\[([\w,-]+)\]$", "\n".join(arguments), re.MULTILINE):
            assert set(extras.split(",")) <= project["optional-dependencies"].keys(), words
    elif program.startswith((".venv/bin/", "python")):
        files = [word for word in arguments if re.match(r"(tests|benchmarks|examples)/", word)]
        assert all((ROOT / name).exists() for name in files), words
    else:
        assert program in (*PROGRAMS, ".", "cd", "export"), f"no test knows what to do with {words}"


def _with_fewer_steps(arguments: list[str]) -> list[str]:
    if _verb(arguments) not in ("train", "compare"):
        return arguments
    if "--steps" in arguments:
        place = arguments.index("--steps") + 1
        steps = int(arguments[place])  # more stay more, so that a page may resume a training
        fewer = steps // 10 if steps <= 100 else 10 + steps // 100
        return [*arguments[:place], str(fewer), *arguments[place + 1 :]]
    return arguments if {"--help", "--resume"} & set(arguments) else [*arguments, "--steps", STEPS]


def _verb(arguments: list[str]) -> str:
    """The verb of a command, which options may stand before; "" if there is none."""
    return next((word for word in arguments if word in VERBS), "")


def _redirected(words: list[str]) -> tuple[list[str], Path | None]:
    """A command without its redirections, and the file that it reads standard input from."""
    source = Path(words[words.index("<") + 1]) if "<" in words else None
    ends = [words.index(sign) for sign in ("<", ">") if sign in words]
    return words[: min(ends, default=None)], source
