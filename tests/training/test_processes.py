"""Several processes train together, with the losses of one; and workers that prepare batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.command import ENVIRONMENT, mdlstm_process
from helpers.layouts import write
from helpers.processes import descendants, fork_server

from mdlstm_tk.training import Run, configure, load_checkpoint, train

several_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2 or sys.platform == "win32", reason="two cores")
SETTINGS = ("--steps=12", "--evaluate-every=6", "--hidden=4", "--batch-size=8", "--dropout=0", "--json")


@pytest.mark.slow
@several_cores
@pytest.mark.parametrize("kind", ["segment", "diagonal", "digit-strings"])
def test_two_processes_have_the_losses_of_one(kind: str, tmp_path: Path) -> None:
    task = ["--task", kind]
    if kind == "segment":
        task += ["--data", str(write(tmp_path / "data", kind, "folder")), "--augment", "0"]
    settings = [each for each in SETTINGS if kind != "diagonal" or each != "--dropout=0"]
    for name, count in (("one", "1"), ("two", "2")):
        where = ("-o", name, "--processes", count)
        done = mdlstm_process("train", *task, *settings, *where, cwd=tmp_path)
        assert done.code == 0, done.err
        assert done.err.count("next: mdlstm export") == 1 and json.loads(done.out)["run"] == name
    one, two = (Run(tmp_path / name) for name in ("one", "two"))
    losses = [[record["loss"] for record in run.read_metrics()] for run in (one, two)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
    assert np.ptp(losses[0]) > 1e-4
    results = [json.loads(run.result.read_text()) for run in (one, two)]
    assert results[1]["errors"] == pytest.approx(results[0]["errors"], abs=0.02)
    assert {path.name for path in one.folder.iterdir()} == {path.name for path in two.folder.iterdir()}


@pytest.mark.slow
@several_cores
def test_the_error_of_a_process_is_one_line(tmp_path: Path) -> None:
    done = mdlstm_process("train", "--batch-size", "3", "-o", "odd", "--processes", "2", cwd=tmp_path)
    assert done.code != 0 and done.err.count("error:") == 1 and "Traceback" not in done.err
    assert not (tmp_path / "odd" / "last.safetensors").exists()


@pytest.mark.slow
@several_cores
def test_an_interrupt_ends_all_processes_with_a_checkpoint(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to all processes that it knows."""
    words = ("train", "--hidden", "3", "--steps", "1000000", "-o", "run", "--processes", "2", "-q")
    process = subprocess.Popen(
        [sys.executable, "-m", "mdlstm_tk", *words],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    run, deadline = Run(tmp_path / "run"), time.monotonic() + 200
    while not run.last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    before = load_checkpoint(run.last).state.step
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert not descendants(process.pid) and load_checkpoint(run.last).state.step > before
    assert b"Traceback" not in errors


def _train_until_killed(data: Path, folder: Path, ready: Path) -> None:
    def on_step(state: object, *_: object) -> None:
        if getattr(state, "step", 0) == 3:
            ready.write_text(" ".join(map(str, descendants())))
            os.kill(os.getpid(), signal.SIGKILL)

    settings = {"steps": 9, "hidden": 2, "batch_size": 4, "workers": 2}
    train(configure(task="segment", data=str(data), **settings), folder, on_step=on_step)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_with_a_training_that_is_killed(tmp_path: Path) -> None:
    data, ready = write(tmp_path / "data", "segment", "folder"), tmp_path / "ready"
    process = fork_server().Process(target=_train_until_killed, args=(data, tmp_path / "run", ready))
    process.start()
    process.join()
    workers, deadline = {int(pid) for pid in ready.read_text().split()}, time.monotonic() + 20
    assert workers
    while alive := workers & {
        *descendants(1),
        *descendants(),
    }:  # those of a process that ended go to another
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)
