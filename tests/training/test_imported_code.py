"""Cells, networks and tasks of the user's own: only files that a call names are run."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.checkout import ROOT
from helpers.command import Result, mdlstm

from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import Run, TrainConfig, configure, load_checkpoint, register_task

MINE = """
import torch
from mdlstm_tk import MDLSTM
from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.models import register
from mdlstm_tk.training import register_task

with open("runs.txt", "a") as file:
    file.write("x")


@register("mine")
def mine(channels, outputs, *, hidden=4, cell="graves"):
    body, head = MDLSTM(channels, hidden, cell=cell), torch.nn.Linear(hidden, outputs)
    return torch.nn.Sequential(body, head, torch.nn.Sigmoid())


@register_task("small-diagonal", kind="grid", defaults={"size": "5", "lr": 0.125})
def small_diagonal(config):
    return DiagonalTask(config.grid)
"""


@pytest.fixture
def call(tmp_path: Path, forget: Callable[[], None]) -> Callable[..., Result]:
    """Calls `mdlstm`, which knows what comes with the package and what the call imports, and must end
    with a code."""
    shutil.copy(ROOT / "examples/own_cell.py", tmp_path / "cells.py")
    (tmp_path / "mine.py").write_text(MINE)

    def run(*arguments: object, code: int = 0) -> Result:
        forget()
        done = mdlstm(*arguments, cwd=tmp_path)
        assert done.code == code, done.err
        return done

    return run


CELLS = ("--import", "cells.py")


def test_an_own_cell_from_training_to_inference(tmp_path: Path, call: Callable[..., Result]) -> None:
    name = "input-gated"  # the one without recurrent weights
    np.save(tmp_path / "matrix.npy", np.eye(8, dtype=np.float32))
    call(*CELLS, "train", "--cell", name, "--steps", 20, "-o", "run", "--json", "-q")
    for verb in ("export", "report", "info"):  # which cell is it?
        refused = call(verb, "run", code=2)
        assert f"there is no cell '{name}'" in refused.err and "--import FILE" in refused.err
    described = call(*CELLS, "info", "run", "--json")
    assert json.loads(described.out)["cell"] == name
    assert "mdlstm --import cells.py export run --size 8x8" in described.err
    for form in ("unrolled", "scan"):
        call(*CELLS, "export", "run", "--form", form, "-o", f"{form}.onnx")
    call(*CELLS, "verify", "unrolled.onnx", "--against", "run")
    resumed = call(*CELLS, "train", "--resume", "run", "--steps", 21)
    assert resumed.err.rstrip().endswith("mdlstm --import cells.py export run --size 8x8")
    (tmp_path / "cells.py").unlink()  # an exported model needs the file no longer
    call("infer", "matrix.npy", "-m", "scan.onnx")


def test_a_network_and_a_task_of_a_file_that_runs_once(tmp_path: Path, call: Callable[..., Result]) -> None:
    files = ("--import", "mine.py", "--import", "cells.py")
    verb = ("train", "--task", "small-diagonal", "--model", "mine", "--cell", "coupled", "--steps", "1")
    call(*files, *verb, "-o", "a")
    assert (tmp_path / "runs.txt").read_text() == "x"
    config = load_checkpoint(tmp_path / "a/last.safetensors").config
    assert (config.task, config.model, config.cell) == ("small-diagonal", "mine", "coupled")
    assert (config.size, config.lr, config.hidden) == ("5x5", 0.125, 16)
    assert "mine.py" not in Run(tmp_path / "a").config.read_text()  # nothing stored names code
    assert "--import FILE" in call("train", "--resume", "a", "--steps", "2", code=2).err
    assert (tmp_path / "runs.txt").read_text() == "x"


@pytest.mark.usefixtures("fresh_registries")
def test_tasks_are_registered_from_python() -> None:
    register_task("half", kind="grid", defaults={"steps": 3})(lambda config: None)
    assert configure({"task": "half"}) == TrainConfig(task="half", steps=3)
    for name, kind in (("segment", "grid"), ("mine", "images")):
        with pytest.raises(InputError, match=f"'{name}' and kind '{kind}'"):
            register_task(name, kind=kind)  # type: ignore[arg-type]


def test_an_imported_file_is_a_module_like_any_other(tmp_path: Path) -> None:
    header = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    (tmp_path / "json.py").write_text(f"{header}@dataclass\nclass Settings:\n    depth: int = 3\n")
    module = import_file(tmp_path / "json.py")
    settings = module.Settings(5)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert sys.modules["json"] is json
