"""Run the shell commands of the documentation, with fewer optimizer steps than a page says.

`mdlstm` runs in this process, so that torch is imported once. Commands that install or build something are
not run: what they name is looked up. Everything else is refused, so that no command of a page is untested.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import typer

from helpers.checkout import ROOT
from helpers.command import mdlstm
from mdlstm_tk.cli.main import typer_app

STEPS = "4"  # of a training for which a page does not say --steps
PROGRAMS = ("(ulimit", "docker", "git", "torchrun", "unshare")  # allowed in blocks that are only checked


def commands(text: str) -> list[list[str]]:
    """The words of each command in a block, without comments."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_commands(text: str) -> str:
    """Run the commands of a block in the current folder.

    Returns:
        What they print, standard output and standard error together.
    """
    return "".join(_run(words) for words in commands(text))


def check_commands(text: str) -> None:
    """Check that the options of the commands in a block exist and that their values are valid."""
    for words in commands(text):
        for command in _split(words, "&&"):
            _check(command)


def _run(words: list[str]) -> str:
    words, source = _redirected(words)
    if words[0] == "mdlstm":
        return _mdlstm(_with_fewer_steps(words[1:]), source)
    if words[0] in ("python", "python3") and words[1:3] != ["-m", "venv"]:
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return done.stdout + done.stderr
    _check(words)
    return ""


def _mdlstm(arguments: list[str], source: Path | None) -> str:
    done = mdlstm(*arguments, stdin=source.read_bytes() if source else b"")
    output = done.out + done.err
    assert done.code == 0, f"mdlstm {shlex.join(arguments)}: {output}"
    return output


def _check(words: list[str]) -> None:
    words, _ = _redirected(words)
    if words[:3] == ["python", "-m", "mdlstm_tk"]:
        words = ["mdlstm", *words[3:]]
    program, *arguments = words
    if program == "mdlstm" and arguments[0].startswith("--"):
        return
    if program == "mdlstm":
        verb = typer.main.get_command(typer_app(arguments[0]))
        verb.make_context(arguments[0], arguments[1:])
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
    if arguments[0] not in ("train", "compare", "demo"):
        return arguments
    if "--steps" in arguments:
        place = arguments.index("--steps") + 1
        steps = int(arguments[place])  # more stay more, so that a page may resume a training
        fewer = steps // 10 if steps <= 100 else 10 + steps // 100
        return [*arguments[:place], str(fewer), *arguments[place + 1 :]]
    return arguments if {"--help", "--resume"} & set(arguments) else [*arguments, "--steps", STEPS]


def _redirected(words: list[str]) -> tuple[list[str], Path | None]:
    """A command without its redirections, and the file that it reads standard input from."""
    source = Path(words[words.index("<") + 1]) if "<" in words else None
    ends = [words.index(sign) for sign in ("<", ">") if sign in words]
    return words[: min(ends, default=None)], source


def _split(words: list[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
