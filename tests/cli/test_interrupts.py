"""Ctrl-C, at any moment of any verb: exit code 130, one line, and nothing half-written."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.command import mdlstm
from PIL import Image
from safetensors.numpy import load_file

from mdlstm_tk.cli import app
from mdlstm_tk.export import export_run
from mdlstm_tk.training import Run

VERBS = {
    "train": ("train", "--steps", "300", "-o", "new"),
    "export": ("export", "run", "--size", "6x7", "-o", "new.onnx"),
    "infer": ("infer", "matrix.npy", "images", "-m", "scan.onnx", "-o", "results"),
    "verify": ("verify", "scan.onnx", "--against", "run"),
    "report": ("report", "run", "-o", "new.html"),
}
START = """if True:
    import sys
    from mdlstm_tk.cli import main
    print("ready", flush=True)
    main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a model for any grid, and inputs of it."""
    folder = tmp_path_factory.mktemp("interrupts")
    shutil.copytree(trained.folder, folder / "run")
    export_run(Run(folder / "run"), folder / "scan.onnx", form="scan")
    rng = np.random.default_rng(0)
    np.save(folder / "matrix.npy", rng.random((700, 700), np.float32))
    (folder / "images").mkdir()
    for k in range(20):
        np.save(folder / f"images/{k}.npy", rng.random((90 + k, 90), np.float32))
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that is about to call `mdlstm`."""
    process = subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to all processes of a group
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def check_whole(folder: Path) -> None:
    """Check that every file below a folder can be read to its end."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": np.load,
        ".png": lambda path: Image.open(path).load(),
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".onnx": lambda path: onnx.checker.check_model(onnx.load(path)),
        ".safetensors": load_file,
        ".html": lambda path: path.read_text().rindex("</html>"),
        ".toml": lambda path: path.read_text().index("task"),
    }
    for path in folder.rglob("*"):
        if path.is_file():
            readers[path.suffix](path)  # one of another type would be left over


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.weekly)])
@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_at_random_moments(verb: str, count: int, folder: Path, tmp_path: Path) -> None:
    rng = random.Random(f"{verb} {count}")
    shutil.copytree(folder, tmp_path / "whole")
    begin = time.perf_counter()
    with start(tmp_path / "whole", *VERBS[verb]) as process:
        _, err = process.communicate()
        assert process.returncode == 0, err
    duration = time.perf_counter() - begin
    for number in range(count):
        place = tmp_path / str(number)
        shutil.copytree(folder, place)
        with start(place, *VERBS[verb]) as process:
            time.sleep(rng.random() * duration)
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate()
        if process.returncode != 0:  # else all was done
            assert (process.returncode, err.splitlines()[-1]) == (130, "error: interrupted"), err
            assert err.count("error:") == 1, err
        assert not [text for text in ("Traceback", "terminate", "ignored") if text in err], err
        check_whole(place)


def interrupt_in_a_callback() -> None:
    """C code, as of a compiler, cannot pass an exception on."""
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()
    while True:
        time.sleep(0.01)


def interrupt_that_becomes_an_error() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("initialisation failed") from None


def interrupt_that_is_dropped() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "verb",
    [interrupt, interrupt_in_a_callback, interrupt_that_becomes_an_error, interrupt_that_is_dropped],
)
def test_no_interrupt_is_lost(verb: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mdlstm_tk.cli.doctor")
    module.doctor = verb  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(app, "with_messages", lambda function: function)
    done = mdlstm("doctor")
    assert (done.code, done.err) == (130, "error: interrupted\n")


def test_ctrl_c_while_a_verb_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "load", lambda name: interrupt())
    done = mdlstm("doctor")
    assert (done.code, done.err) == (130, "error: interrupted\n")
