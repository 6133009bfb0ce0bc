"""Models that are isolated in a child process: equal results, limits that bind, and deaths."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.crafted_models import BOOL, INT64, crafted, info, node
from helpers.isolation import kill_during, outer_product, power
from PIL import Image

from mdlstm_tk.errors import InputError, MDLSTMError, StoppedError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.isolation import limits as limits_module
from mdlstm_tk.runtime.isolation import process
from mdlstm_tk.runtime.isolation.runner import IsolatedRunner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="isolation needs Linux or macOS")
RNG = np.random.default_rng(0)


def with_many_outputs() -> bytes:
    """A model of x and of integers k with outputs of several types."""
    nodes = [
        node("Neg", "x", "y"),
        node("Cast", "x", "int", to=INT64),
        node("Cast", "x", "bool", to=BOOL),
        node("Cast", "x", "half", to=10),
        node("Add", "k k", "twice"),
    ]
    model = crafted(
        nodes,
        inputs='["x", "k"]',
        output_names='["y", "int", "bool", "half", "twice"]',
        further_windows="[null, null, null, null]",
    )
    shape = (None, 2, 2, 1)
    model.graph.input.append(info("k", INT64, (None, 3)))
    outputs = [("int", INT64, shape), ("bool", BOOL, shape), ("half", 10, shape)]
    outputs += [("twice", INT64, (None, 3))]
    model.graph.output.extend(info(*output) for output in outputs)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def isolated(model: Path) -> Iterator[Session]:
    with Session(model, "cpu", isolated=True) as session:
        yield session


def pid_of(session: Session) -> int:
    assert isinstance(session._runner, IsolatedRunner)
    return session._runner._process.pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("this did not happen within ten seconds")


def test_results_equal_those_of_a_session_in_this_process(isolated: Session, model: Path) -> None:
    here = Session(model, "cpu")
    assert isolated.isolated and not here.isolated
    assert (isolated.device, isolated.provider, isolated.reason) == (here.device, here.provider, None)
    assert isolated.metadata == here.metadata
    for batch in (1, 300, 7):  # larger, then smaller: the shared file grows and is used again
        x = RNG.random((batch, 8, 8, 1))
        np.testing.assert_array_equal(isolated(x), here(x), strict=True)
    for y, expected in zip(isolated.run_many([x[0], x]), here.run_many([x[0], x]), strict=True):
        np.testing.assert_array_equal(y, expected, strict=True)
    with pytest.raises(InputError, match="9x9"):
        isolated(np.zeros((9, 9)))
    isolated.warm_up()


def test_outputs_of_all_kinds_and_further_inputs() -> None:
    data = with_many_outputs()
    here, x, k = Session(data, "cpu"), RNG.normal(size=(5, 2, 2, 1)), RNG.integers(0, 9, (5, 3))
    with Session(data, "cpu", isolated=True) as session:
        outputs, expected = session(x, k=k), here(x, k=k)
    assert list(outputs) == list(expected)
    for name, y in expected.items():
        np.testing.assert_array_equal(outputs[name], y, strict=True)
        assert outputs[name].flags.writeable


def test_a_run_is_stopped_inside_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would only look at the time after the first product, which takes seconds."""
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.1)
    with Session(power(50), "cpu", timeout=0.5, isolated=True) as session:
        pid = pid_of(session)
        with pytest.raises(StoppedError, match=r"after 0\.5 s; .*--timeout"):
            session(np.ones((6000, 6000), np.float32))
        assert not is_alive(pid)
        np.testing.assert_array_equal(session(np.eye(2)), 1 + np.eye(2))


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "BASE_BYTES", 2**28)
    with Session(outer_product(), "cpu", max_bytes=10**6, isolated=True) as session:
        np.testing.assert_array_equal(session(np.ones((5000, 1, 1))), np.full((5000, 1, 1), 2.0))
        with pytest.raises(StoppedError, match=r"more than 0\.3 GiB of memory; .*--max-bytes"):
            session(np.ones((20_000, 1, 1)))
        np.testing.assert_array_equal(session(np.ones((2, 1, 1))), np.full((2, 1, 1), 2.0))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGSEGV, r"crashed \(SIGSEGV\)"),
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGXCPU, "after 120 s"),
    ],
    ids=str,
)
def test_a_crash_is_one_line_and_the_next_call_runs(number: int, message: str) -> None:
    with Session(power(500), "cpu", isolated=True) as session:
        pid, large = pid_of(session), np.ones((1000, 1000), np.float32)
        with pytest.raises(StoppedError, match=message):
            kill_during(lambda: session(large), lambda: pid, number)
        assert not is_alive(pid)
        np.testing.assert_array_equal(session(np.eye(2)), 1 + np.eye(2))
        assert pid_of(session) != pid
        pid = pid_of(session)
    assert not is_alive(pid)
    with pytest.raises(MDLSTMError, match="closed"):
        session(np.eye(2))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_run_and_the_next_call_gets_its_own_result() -> None:
    with Session(power(500), "cpu", isolated=True) as session:
        with pytest.raises(KeyboardInterrupt):
            kill_during(lambda: session(np.ones((1000, 1000), np.float32)), os.getpid, signal.SIGINT)
        np.testing.assert_array_equal(session(np.eye(2)), 1 + np.eye(2))


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_impossible_timeouts_are_refused(timeout: float) -> None:
    with pytest.raises(InputError, match="timeout must be"):
        Session(outer_product(), "cpu", timeout=timeout, isolated=True)


def test_a_session_that_is_dropped_ends_its_child(model: Path) -> None:
    session = Session(model, "cpu", isolated=True)
    pid = pid_of(session)
    del session
    gc.collect()
    assert not is_alive(pid)


def test_threads_may_share_an_isolated_session(isolated: Session, model: Path) -> None:
    here, inputs = Session(model, "cpu"), RNG.random((40, 1, 8, 8, 1))
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(inputs, pool.map(isolated, inputs), strict=True):
            np.testing.assert_array_equal(y, here(x))


def test_a_forked_process_does_not_talk_to_the_child_of_its_parent(isolated: Session) -> None:
    x = RNG.random((8, 8))
    expected, pid = isolated(x), pid_of(isolated)
    copy = os.fork()
    if copy == 0:
        is_equal = np.array_equal(isolated(x), expected) and pid_of(isolated) != pid
        isolated._runner._process.kill()  # type: ignore[union-attr]
        os._exit(0 if is_equal else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0
    np.testing.assert_array_equal(isolated(x), expected)
    assert pid_of(isolated) == pid


def test_errors_of_loading_are_those_of_a_session_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "bad \x1b[31m.onnx"
    for data in (b"no model", crafted([node("NoSuch", "x", "y")]).SerializeToString()):
        path.write_bytes(data)
        with pytest.raises(InputError) as here:
            Session(path, "cpu")
        with pytest.raises(InputError) as there:
            Session(path, "cpu", isolated=True)
        assert str(there.value) == str(here.value)
    with pytest.raises(InputError, match="device must be"):
        Session(crafted().SerializeToString(), "tpu", isolated=True)


def test_the_child_ends_with_its_parent(model: Path) -> None:
    """Even if the parent is killed in the middle of a run."""
    code = """if True:
        import sys, numpy
        from mdlstm_tk.runtime import Session
        session = Session(sys.stdin.buffer.read(), "cpu", isolated=True)
        print(session._runner._process.pid, flush=True)
        session(numpy.ones((1, 5000, 5000, 1), numpy.float32))
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin and parent.stdout
        parent.stdin.write(power(500))
        parent.stdin.close()
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert is_alive(pid)
        parent.kill()
    wait_until(lambda: not is_alive(pid))


def test_nothing_in_the_current_folder_is_imported(model: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for name in ("json", "socket", "numpy", "onnxruntime", "PIL"):
        (tmp_path / f"{name}.py").write_text("import os; open('imported', 'w'); os._exit(9)")
    code = """if True:
        import os, sys
        sys.path.remove("")
        os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), "", "."])
        from mdlstm_tk.cli import main
        main(sys.argv[1:])
    """
    command = [sys.executable, "-c", code, "infer", "x.png", "-m", str(model), "--timeout", "9"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "isolated" in done.stderr) == (0, True), done.stderr
    assert not (tmp_path / "imported").exists()
