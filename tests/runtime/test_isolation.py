"""Isolated sessions: the same results, limits that hold, and a parent that survives."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
from helpers.crafted_models import crafted, node
from helpers.isolation import STOPPED, kill_during, outer_product, power

import mdlstm_tk
from mdlstm_tk.errors import InputError, MDLSTMError, StoppedError
from mdlstm_tk.runtime import Session, isolation
from mdlstm_tk.runtime.isolation import IsolatedRunner, ProtocolError, receive

pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="isolation needs POSIX")
RNG = np.random.default_rng(0)
X = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)


@pytest.fixture(scope="module")
def isolated(model: Path) -> Iterator[Session]:
    with Session(model, "cpu", isolated=True) as session:
        yield session


def pid_of(session: Session) -> int:
    assert isinstance(session.graphs, IsolatedRunner)
    return session.graphs._child._popen.pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_equal_those_of_a_session_in_this_process(isolated: Session, model: Path) -> None:
    here = Session(model, "cpu")
    assert isolated.isolated and not here.isolated
    assert (isolated.device, isolated.provider, isolated.reason) == (here.device, here.provider, None)
    assert isolated.metadata == here.metadata
    for batch in (1, 300, 7):
        x = RNG.random((batch, 8, 8, 1))
        np.testing.assert_array_equal(isolated(x), here(x), strict=True)
    for y, expected in zip(isolated.run_many([x[0], x]), here.run_many([x[0], x]), strict=True):
        np.testing.assert_array_equal(y, expected, strict=True)
    inputs = RNG.random((40, 1, 8, 8, 1))
    with ThreadPoolExecutor(4) as pool:  # threads may share it
        for x, y in zip(inputs, pool.map(isolated, inputs), strict=True):
            np.testing.assert_array_equal(y, here(x), strict=True)
    with pytest.raises(InputError, match="9x9"):
        isolated(np.zeros((9, 9)))
    isolated.warm_up()
    y = isolated(x)
    y += 1  # the caller owns it


@pytest.mark.parametrize("case", STOPPED)
def test_attacks_end_in_one_line(case: str) -> None:
    """Neither loading nor running the file ends this process, or takes more than its limits."""
    data = STOPPED[case]().SerializeToString()
    with pytest.raises(MDLSTMError) as error:
        Session(data, "cpu", isolated=True, timeout=2, max_bytes=2**28)(X)
    assert "\n" not in str(error.value)


def test_a_run_is_stopped_inside_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would only look at the time after the first product, which takes seconds."""
    monkeypatch.setattr(isolation, "GRACE_SECONDS", 0.1)
    with Session(power(50), "cpu", timeout=0.5, isolated=True) as session:
        pid = pid_of(session)
        with pytest.raises(StoppedError, match=r"after 0\.5 s; .*timeout=") as error:
            session(np.ones((6000, 6000), np.float32))
        assert error.value.cause == "time"
        assert not is_alive(pid)
        np.testing.assert_array_equal(session(np.eye(2)), 1 + np.eye(2))


def test_a_child_that_follows_runs_on_the_device_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    class Child(isolation._Child):
        def ask(self, request: Any, *arguments: Any) -> Any:
            devices.extend([request["device"]] if "device" in request else [])
            request |= {"device": "cpu"} if "device" in request else {}
            reply, outputs = super().ask(request, *arguments)
            return {**reply, "device": "cuda:1"}, outputs

    monkeypatch.setattr(isolation, "_Child", Child)
    with Session(power(1), isolated=True) as session:
        os.kill(pid_of(session), signal.SIGKILL)
        with pytest.raises(StoppedError):
            session(np.eye(2))
        session(np.eye(2))
    assert devices == ["auto", "cuda:1"]


def test_a_reply_in_the_last_moment_does_not_fail_the_next_call(isolated: Session, model: Path) -> None:
    assert isinstance(isolated.graphs, IsolatedRunner)
    isolated.graphs._child._stop_late()  # the timer fired while the reply came
    x = RNG.random((8, 8))
    np.testing.assert_array_equal(isolated(x), Session(model, "cpu")(x))


def test_max_bytes_limits_the_memory() -> None:
    with Session(outer_product(), "cpu", max_bytes=2**28, isolated=True) as session:
        np.testing.assert_array_equal(session(np.ones((5000, 1, 1))), np.full((5000, 1, 1), 2.0))
        with pytest.raises(StoppedError, match=r"more than 256 MiB of memory .*max_bytes=") as error:
            session(np.ones((20_000, 1, 1)))
        assert error.value.cause == "memory"
        np.testing.assert_array_equal(session(np.ones((2, 1, 1))), np.full((2, 1, 1), 2.0))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=str)
def test_a_crash_is_one_line_and_the_next_call_runs(number: signal.Signals) -> None:
    with Session(power(500), "cpu", isolated=True) as session:
        pid, large = pid_of(session), np.ones((1000, 1000), np.float32)
        with pytest.raises(StoppedError, match=rf"crashed \({number.name}\)"):
            kill_during(lambda: session(large), lambda: pid, number)
        np.testing.assert_array_equal(session(np.eye(2)), 1 + np.eye(2))
        assert pid_of(session) != pid
        pid = pid_of(session)
    assert not is_alive(pid)
    with pytest.raises(MDLSTMError, match="closed"):
        session(np.eye(2))


def test_closing_during_a_run_is_no_crash() -> None:
    session = Session(power(500), "cpu", isolated=True)
    timer = Timer(0.3, session.close)
    timer.start()
    with pytest.raises(MDLSTMError, match=r"session (was|is) closed"):
        session(np.ones((1000, 1000), np.float32))
    timer.join()


def test_an_interrupt_ends_the_run_and_the_next_call_gets_its_own_result() -> None:
    with Session(power(500), "cpu", isolated=True) as session:
        with pytest.raises(KeyboardInterrupt):
            kill_during(lambda: session(np.ones((1000, 1000), np.float32)), os.getpid, signal.SIGINT)
        np.testing.assert_array_equal(session(np.eye(2)), 1 + np.eye(2))


def test_children_end_with_their_sessions(model: Path) -> None:
    session = Session(model, "cpu", isolated=True)
    pid = pid_of(session)
    copy = pickle.loads(pickle.dumps(session))
    assert copy.isolated and pid_of(copy) != pid
    del session
    gc.collect()
    assert not is_alive(pid)


def test_a_forked_process_does_not_talk_to_the_child_of_its_parent(isolated: Session) -> None:
    x = RNG.random((8, 8))
    expected, pid = isolated(x), pid_of(isolated)
    copy = os.fork()
    if copy == 0:
        is_equal = np.array_equal(isolated(x), expected) and pid_of(isolated) != pid
        isolated.graphs.close()  # type: ignore[union-attr]
        os._exit(0 if is_equal else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0
    np.testing.assert_array_equal(isolated(x), expected)
    assert pid_of(isolated) == pid


def test_errors_of_loading_are_those_of_a_session_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    for data in (b"no model", crafted([node("NoSuch", "x", "y")]).SerializeToString()):
        path.write_bytes(data)
        with pytest.raises(InputError) as here:
            Session(path, "cpu")
        with pytest.raises(InputError) as there:
            Session(path, "cpu", isolated=True)
        assert str(there.value) == str(here.value)
    with pytest.raises(InputError, match="device must be"):
        Session(crafted().SerializeToString(), "tpu", isolated=True)


def test_a_child_that_cannot_start_says_why(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise OSError('a library is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MDLSTMError, match="OSError: a library is missing"):
        Session(model, "cpu", isolated=True)


def test_a_package_that_was_found_in_the_current_folder_is_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = str(Path(mdlstm_tk.__file__).parents[1])
    monkeypatch.setattr(sys, "path", ["", "relative", "/absolute"])
    assert isolation.module_path() == [root, "/absolute"]
    monkeypatch.setattr(sys, "path", ["/absolute", root])
    assert isolation.module_path() == ["/absolute", root]


def test_the_child_ends_with_its_parent() -> None:
    """Even if the parent is killed in the middle of a run."""
    code = """if True:
        import sys, numpy
        from mdlstm_tk.runtime import Session
        session = Session(sys.stdin.buffer.read(), "cpu", isolated=True)
        print(session.graphs._child._popen.pid, flush=True)
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
    for _ in range(500):
        if not is_alive(pid):
            return
        time.sleep(0.02)
    raise AssertionError("the child still runs after ten seconds")


def test_the_child_writes_no_files_and_imports_nothing_from_the_current_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "socket", "numpy", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("import os; open('imported', 'w'); os._exit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with Session(model, "cpu", isolated=True) as session:
        session(np.zeros((8, 8)))
        if sys.platform == "linux":
            limits = Path(f"/proc/{pid_of(session)}/limits").read_text()
            assert "Max file size             0                    0" in limits


def message(array: list[Any]) -> bytes:
    """A message with any description of an array."""
    header = json.dumps({"arrays": [array]}).encode()
    return len(header).to_bytes(4, "big") + header


HOSTILE = {
    "too long": b"\xff" * 4,
    "no JSON": b"\0\0\0\1x",
    "no object": b"\0\0\0\2[]",
    "nested": (10**5).to_bytes(4, "big") + b"[" * 10**5,
    "an object in place of numbers": message(["y", "|O", [1]]),
    "no name": message([None, "<f4", [1]]),
    "a negative extent": message(["y", "<f4", [-1]]),
    "a large extent": message(["y", "<f4", [2**60]]),
    "an extent that is a bool": message(["y", "<f4", [True]]),
    "33 axes": message(["y", "<f4", [1] * 33]),
    "more than allowed": message(["y", "<f4", [10**6]]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_invalid_replies_are_refused(case: str) -> None:
    """A model may have taken over its child."""
    here, there = socket.socketpair()
    with here, there:
        there.settimeout(5)
        there.sendall(HOSTILE[case])
        with pytest.raises(ProtocolError):
            receive(here.makefile("rb", 0), 1000)  # type: ignore[arg-type]


def test_where_isolation_is_missing_it_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation.sys, "platform", "win32")
    with pytest.raises(MDLSTMError, match="isolated=True needs Linux or macOS"):
        Session(model, "cpu", isolated=True)
