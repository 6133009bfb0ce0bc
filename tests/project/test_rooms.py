"""Rooms: everything else works in a copy of the package without their folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from helpers.checkout import FOLDERS, ROOT
from helpers.command import Result, mdlstm_process

from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.rooms import Room

Command = Callable[..., Result]


@pytest.fixture(params=["density", "text"])
def room(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def command(room: str, tmp_path: Path) -> Command:
    """`mdlstm` of a copy without the folder of a room, in `tmp_path`."""
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__", *([room] if folder == "mdlstm_tk" else []))
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignore)
    return lambda *words: mdlstm_process(*words, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})


def test_what_a_room_adds_is_unknown_without_its_folder(room: str, command: Command) -> None:
    subprocess.run([sys.executable, "-c", f"import mdlstm_tk.{room}.room"], check=True)  # before all others
    added: Room = import_module(f"mdlstm_tk.{room}.room").ROOM
    listed = command("--help").out.split()
    assert "train" in listed and not added.verbs.keys() & set(listed)
    flags = {f"--{option.name}" for kind in added.kinds for option in kind_named(kind).options}
    for verb in ("train", "infer"):
        done = command(verb, "--help")
        assert done.code == 0 and not flags & set(done.out.split())
    kind, task = next(iter(added.kinds)), next(iter(added.tasks))
    calls = [("train", "--task", kind, "--data", "x"), ("train", "--task", task), *zip(added.verbs)]
    for words in calls:
        done = command(*words)
        assert done.code == 2 and len(done.err.splitlines()) == 1 and done.err.startswith("error: "), done


SCRIPT = """
import sys, numpy
from importlib import import_module
from mdlstm_tk.cli import main
for name in ("data", "models", "training", "export", "report", "runtime"):
    package = import_module(f"mdlstm_tk.{name}")
    assert all(hasattr(package, public) for public in package.__all__)
numpy.save("x.npy", numpy.zeros((8, 8), "float32"))
for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit as end:
        assert end.code == 0, words
"""


@pytest.mark.slow
def test_everything_else_works_without_the_folder_of_a_room(command: Command, tmp_path: Path) -> None:
    # Kernels of the copy would be compiled for a minute; without Numba, networks run in torch operations.
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError(name='numba')")
    verbs = (
        *("train --task digits --steps 2 --hidden 4 -o run", "report run", "export run --size 8"),
        "infer x.npy -m run/model-8x8.onnx",
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *verbs], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0 and done.stdout.strip() in set("0123456789"), done.stderr
