"""Input files that are read in a child process, and `mdlstm infer` with isolated models."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.command import mdlstm
from helpers.isolation import kill_during, outer_product, power
from PIL import Image

from mdlstm_tk.errors import InputError, StoppedError
from mdlstm_tk.runtime import Outcome, infer_paths
from mdlstm_tk.runtime.io.readers import InputFile, read_input
from mdlstm_tk.runtime.isolation.limits import Limits
from mdlstm_tk.runtime.isolation.process import ChildProcess
from mdlstm_tk.runtime.isolation.reader import IsolatedReader
from mdlstm_tk.runtime.isolation.runner import IsolatedRunner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="isolation needs Linux or macOS")
RNG = np.random.default_rng(0)


def result_of(read: Callable[[str], InputFile], path: Path) -> InputFile | str:
    """What a file holds, or what is wrong with it."""
    try:
        return read(str(path))
    except InputError as error:
        return str(error)


@pytest.fixture
def reader() -> Iterator[IsolatedReader]:
    with IsolatedReader(Limits(10**7)) as opened:
        yield opened


def test_files_are_read_as_in_this_process(reader: IsolatedReader, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.random((3, 8, 8)))
    np.savez(tmp_path / "b.npz", first=np.eye(3), second=RNG.integers(0, 9, (2, 2)))
    (tmp_path / "c.csv").write_text("1,2\n3,4\n")
    Image.fromarray(RNG.integers(0, 255, (5, 7, 3), np.uint8)).save(tmp_path / "d.png")
    Image.fromarray(RNG.integers(0, 65535, (5, 7), np.uint16)).save(tmp_path / "e.png")
    (tmp_path / "f.npy").write_text("no array")
    (tmp_path / "g \x07.png").write_text("no image")
    np.save(tmp_path / "h.npy", np.zeros((2, 10**6)))
    np.save(tmp_path / "i.npy", np.array([np.nan]))
    (tmp_path / "j.npy").mkdir()
    for path in [*sorted(tmp_path.iterdir()), tmp_path / "none.npy", tmp_path / "x.mat"]:
        expected = result_of(partial(read_input, max_bytes=10**7), path)
        found = result_of(reader.read, path)
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected
            continue
        assert (found.label, found.is_image, list(found.arrays)) == (
            expected.label,
            expected.is_image,
            list(expected.arrays),
        )
        for name, x in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], x, strict=True)


def test_a_file_that_kills_the_reader_fails_alone(reader: IsolatedReader, tmp_path: Path) -> None:
    good = tmp_path / "good.npy"
    np.save(good, np.eye(3))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for _ in range(2):
        for _ in range(2):
            held = os.open(pipe, os.O_RDWR)  # whoever reads the pipe waits
            try:
                with pytest.raises(InputError, match=r"pipe could not be read: .*SIGSEGV"):
                    kill_during(lambda: reader.read(str(pipe)), lambda: reader._process.pid, signal.SIGSEGV)
            finally:
                os.close(held)
        np.testing.assert_array_equal(reader.read(str(good)).arrays[None], np.eye(3))


def test_files_that_kill_the_reader_one_after_the_other_end_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = IsolatedReader._ask

    def dying(self: IsolatedReader, sources: list[str], *further: Any) -> Any:
        if any("bad" in source for source in sources):
            if not self._process.is_usable:
                self._process = ChildProcess("reader", self._limits)
            os.kill(self._process.pid, signal.SIGSEGV)
        return ask(self, sources, *further)

    monkeypatch.setattr(IsolatedReader, "_ask", dying)
    names = ["0good", "1bad", "2bad", "3good", "4bad", "5bad", "6bad", "7good"]
    for name in names:
        np.save(tmp_path / f"{name}.npy", RNG.random((8, 8)))
    run = infer_paths([tmp_path / f"{name}.npy" for name in names], model, tmp_path / "out", isolated=True)
    outcomes: list[Outcome] = []
    with pytest.raises(StoppedError, match=r"3 files in a row could not be read; .*6bad\.npy: .*SIGSEGV"):
        outcomes.extend(run.outcomes)
    errors = {Path(outcome.job.source).stem: outcome.error for outcome in outcomes}
    assert {name for name, error in errors.items() if error is None} == {"0good", "3good"}
    assert {name for name, error in errors.items() if error} == {"1bad", "2bad", "4bad", "5bad"}


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_does_not_wait_for_a_file_that_takes_long(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.random((8, 8)))
    os.mkfifo(tmp_path / "b.npy")
    held = os.open(tmp_path / "b.npy", os.O_RDWR)  # whoever reads it waits
    run = infer_paths([tmp_path / "a.npy", tmp_path / "b.npy"], model, tmp_path / "out", isolated=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            kill_during(lambda: list(run.outcomes), os.getpid, signal.SIGINT)
    finally:
        os.close(held)


def files_in(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        np.save(folder / f"{number:03}.npy", RNG.random((3, 3)))
    return folder


def run_with_deaths(
    folder: Path, model: Path, culprits: set[int], monkeypatch: pytest.MonkeyPatch
) -> list[str | None]:
    """The errors of all files, where runs that include one of the culprits crash."""
    run = IsolatedRunner.run

    def crashing(self: IsolatedRunner, feeds: Any) -> Any:
        # An array of a culprit is marked by its first value.
        if np.isin(feeds["x"][:, 0, 0, 0], list(culprits)).any():
            if not self._process.is_usable:
                self._process, _ = self._load()
            os.kill(self._process.pid, signal.SIGSEGV)
        return run(self, feeds)

    monkeypatch.setattr(IsolatedRunner, "run", crashing)
    return [
        outcome.error
        for outcome in infer_paths([folder], model, folder.parent / "out", isolated=True).outcomes
    ]


def test_a_child_that_dies_fails_the_files_that_kill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(outer_product())
    folder = files_in(tmp_path / "in", 70)
    for number in (5, 66):
        np.save(folder / f"{number:03}.npy", np.full((3, 3), number + 1000))
    errors = run_with_deaths(folder, tmp_path / "m.onnx", {1005, 1066}, monkeypatch)
    assert {number for number, error in enumerate(errors) if error} == {5, 66}
    assert "005.npy: the model crashed (SIGSEGV)" in str(errors[5])
    assert len(list((tmp_path / "out").iterdir())) == 68


def test_a_model_that_always_dies_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(outer_product())
    folder = files_in(tmp_path / "in", 9)
    for path in folder.iterdir():
        np.save(path, np.full((3, 3), 1000))
    with pytest.raises(StoppedError, match=r"3 runs in a row failed; .*SIGSEGV"):
        run_with_deaths(folder, tmp_path / "m.onnx", {1000}, monkeypatch)


def test_infer_isolates_models_that_were_not_exported_here(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.random((8, 8)))
    command = ("infer", "x.npy", "-o", "y.npy", "--force", "-m")

    def is_isolated(*arguments: object, **variables: str) -> bool:
        done = mdlstm(*command, *arguments, cwd=tmp_path, env=variables)
        assert done.code == 0, done.err
        assert "Traceback" not in done.err
        return f"{arguments[0]} on cpu (CPUExecutionProvider), isolated\n" in done.err

    own = tmp_path / "own.onnx"
    own.write_bytes(model.read_bytes())
    assert not is_isolated(own)
    expected = (tmp_path / "y.npy").read_bytes()
    assert is_isolated(own, "--timeout", "60")
    assert is_isolated(own, "--max-bytes", 10**6)
    (tmp_path / "state").mkdir()
    assert is_isolated(own, XDG_STATE_HOME=str(tmp_path / "state"))
    assert (tmp_path / "y.npy").read_bytes() == expected
    (tmp_path / "state").chmod(0o777)  # others could write there
    assert is_isolated(own, XDG_STATE_HOME=str(tmp_path / "state"))
    changed = onnx.load(own)
    changed.graph.name = "another"
    own.write_bytes(changed.SerializeToString())
    assert is_isolated(own)


def test_json_and_standard_streams(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.random((8, 8)))
    data = (tmp_path / "x.npy").read_bytes()
    here = mdlstm("infer", "-", "-o", "y.npy", "-m", model, cwd=tmp_path, stdin=data)
    expected = (tmp_path / "y.npy").read_bytes()
    done = mdlstm(
        "infer", "-", "-o", "z.npy", "-m", model, "--timeout", "60", "--json", cwd=tmp_path, stdin=data
    )
    assert (here.code, done.code) == (0, 0), done.err
    assert (tmp_path / "z.npy").read_bytes() == expected
    assert '"isolated": true' in done.out


def test_limits_on_the_command_line_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(power(50))
    np.save(tmp_path / "x.npy", np.ones((5000, 5000), np.float32))
    done = mdlstm("infer", "x.npy", "-m", "m.onnx", "--timeout", "0.2", cwd=tmp_path)
    assert done.code == 1
    *_, line = done.err.splitlines()
    assert line == "error: x.npy: the model was stopped after 0.2 s; allow more with --timeout"
    done = mdlstm("info", "m.onnx", "--json", cwd=tmp_path)
    assert json.loads(done.out)["channels"] == 1, done.err
