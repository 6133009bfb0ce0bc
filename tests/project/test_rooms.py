"""Rooms: everything else works in a copy of the package without their folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers.checkout import FOLDERS, ROOT
from helpers.command import Result, mdlstm_process

from mdlstm_tk.kinds.rooms import Room

Command = Callable[..., Result]
PACKAGES = ("data", "models", "training", "export", "report", "runtime")


@pytest.fixture(params=["density"])
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
    added: Room = import_module(f"mdlstm_tk.{room}.room").ROOM
    listed = command("--help").out.split()
    assert "train" in listed and not added.verbs.keys() & set(listed)
    kind, task = next(iter(added.kinds)), next(iter(added.tasks))
    calls = [("train", "--task", kind, "--data", "x"), ("train", "--task", task), *zip(added.verbs)]
    for words in calls:
        done = command(*words)
        assert done.code == 2 and len(done.err.splitlines()) == 1 and done.err.startswith("error: "), done


@pytest.mark.slow
def test_everything_else_works_without_the_folder_of_a_room(command: Command, tmp_path: Path) -> None:
    code = "".join(f"import mdlstm_tk.{name} as m; [getattr(m, n) for n in m.__all__]\n" for name in PACKAGES)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    # Kernels of the copy would be compiled for a minute; without Numba, networks run in torch operations.
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError(name='numba')")
    np.save(tmp_path / "x.npy", np.zeros((8, 8), np.float32))
    for words in (
        ("train", "--task", "digits", "--steps", "2", "--hidden", "4", "-o", "run"),
        ("report", "run"),
        ("export", "run", "--size", "8"),
        ("infer", "x.npy", "-m", "run/model-8x8.onnx"),
    ):
        done = command(*words)
        assert done.code == 0, done.err
    assert done.out.strip() in set("0123456789")
