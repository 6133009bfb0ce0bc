"""The parent's side of an isolated process: what a hostile child may say, limits, and the rule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdlstm_tk._util.private_folder import private_folder
from mdlstm_tk.errors import InputError, MDLSTMError, StoppedError
from mdlstm_tk.runtime.isolation import limits as limits_module
from mdlstm_tk.runtime.isolation import process, rule
from mdlstm_tk.runtime.isolation.limits import Limits
from mdlstm_tk.runtime.isolation.messages import MAX_MESSAGE_BYTES, ProtocolError
from mdlstm_tk.runtime.isolation.runner import IsolatedRunner
from mdlstm_tk.runtime.isolation.shared_file import SharedFile
from mdlstm_tk.runtime.metadata import Metadata

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="isolation needs Linux or macOS")

FAKE_CHILD = """
import json, os, sys, time
connection = json.loads(sys.argv[2])["connection"]
for reply in {replies!r}:
    os.write(connection, reply)
    os.read(connection, 10**6)
time.sleep(60)
"""
LOADED: dict[str, Any] = {
    "props": Metadata("0", (2, 2), "unrolled", "N H W C", 1, 1).to_props(),
    "output_names": ["y"],
    "device": "cpu",
    "provider": "CPUExecutionProvider",
    "reason": None,
    "captures_graphs": False,
}
X = np.ones((1, 2, 2, 1), np.float32)


def raw(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def message(value: Any) -> bytes:
    return raw(json.dumps(value).encode())


def says(monkeypatch: pytest.MonkeyPatch, *replies: bytes) -> None:
    """Let children say that they are ready and then give these replies."""
    monkeypatch.setattr(process, "BOOT", FAKE_CHILD.format(replies=(message({}), *replies)))


HOSTILE = {
    "no JSON": raw(b"[1"),
    "no text": raw(b"\xff\xfe"),
    "no object": raw(b"[]"),
    "deep": raw(b"[" * 100_000),
    "a huge number": raw(b"9" * 100_000),
    "too long": (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
    "an unknown error": message({"error": "KeyboardInterrupt", "message": "x"}),
    "an error that is a list": message({"error": [], "message": "x"}),
    "an error without a message": message({"error": "InputError"}),
    "an unknown cause": message({"error": "StoppedError", "message": "", "cause": "boredom"}),
}
HOSTILE_LOADING = {
    **HOSTILE,
    "nothing": message({}),
    "props of numbers": message({**LOADED, "props": {"a": 1}}),
    "props in a list": message({**LOADED, "props": []}),
    "no names": message({**LOADED, "output_names": [None]}),
    "a name twice": message({**LOADED, "output_names": ["y", "y"]}),
    "a device with escapes": message({**LOADED, "device": "cpu\x1b[31m"}),
    "a provider with a line break": message({**LOADED, "provider": "CPU\nerror"}),
    "a reason that is a number": message({**LOADED, "reason": 1}),
    "a number for a truth value": message({**LOADED, "captures_graphs": 1}),
}


@pytest.mark.parametrize("case", HOSTILE_LOADING)
def test_hostile_replies_to_loading_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, HOSTILE_LOADING[case])
    with pytest.raises(MDLSTMError, match="invalid reply"):
        IsolatedRunner(b"", "m.onnx", "cpu", False, Limits(10**6))


def outputs(*entries: Any) -> bytes:
    return message({"outputs": list(entries)})


HOSTILE_RUNS = {
    **HOSTILE,
    "nothing": message({}),
    "an object": message({"outputs": {"y": 1}}),
    "no description": outputs("y"),
    "another length": outputs(["y", "<f4"]),
    "another name": outputs(["z", "<f4", [1]]),
    "no name": outputs([None, "<f4", [1]]),
    "too few": outputs(),
    "one too many": outputs(["y", "<f4", [1]], ["y", "<f4", [1]]),
    "objects": outputs(["y", "|O", [1]]),
    "texts": outputs(["y", "<U9", [1]]),
    "a foreign byte order": outputs(["y", ">f4" if sys.byteorder == "little" else "<f4", [1]]),
    "a record": outputs(["y", [["a", "<f4"]], [1]]),
    "a negative extent": outputs(["y", "<f4", [-1]]),
    "two negative extents": outputs(["y", "<f4", [-2, -2]]),
    "a fraction": outputs(["y", "<f4", [1.0]]),
    "a truth value": outputs(["y", "<f4", [True]]),
    "too many axes": outputs(["y", "<f4", [1] * 99]),
    "larger than the file": outputs(["y", "<f4", [5]]),
    "terabytes": outputs(["y", "<f4", [10**12]]),
    "an overflow": outputs(["y", "<f4", [2**32, 2**32]]),
    "an extent that is hidden by 0": outputs(["y", "<f4", [0, 2**70]]),
}


@pytest.mark.parametrize("case", HOSTILE_RUNS)
def test_hostile_replies_to_a_run_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, message(LOADED), HOSTILE_RUNS[case])
    runner = IsolatedRunner(b"", "m.onnx", "cpu", False, Limits(10**6))
    pid = runner._process.pid
    with pytest.raises(MDLSTMError, match="invalid reply"):
        runner.run({"x": X})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_honest_fake_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusals above are due to what each reply holds. The fake returns its input."""
    says(monkeypatch, message(LOADED), outputs(["y", "<f4", [4]]))
    runner = IsolatedRunner(b"", "m.onnx", "cpu", False, Limits(10**6))
    np.testing.assert_array_equal(runner.run({"x": X})["y"], X.ravel(), strict=True)
    runner.close()


def test_errors_keep_their_kind_and_lose_their_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, message({"error": "InputError", "message": "a \x1b[31m\nb\x07.onnx"}))
    with pytest.raises(InputError) as caught:
        IsolatedRunner(b"", "b\x07.onnx", "cpu", False, Limits(10**6))
    assert str(caught.value) == "a \\x1b[31m\\nb\x07.onnx"  # the label is what the user wrote


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (f"os._exit({limits_module.EXIT_MEMORY})", "GiB of memory; allow more with --max-bytes"),
        ("os._exit(3)", r"crashed \(exit code 3\)"),
        ("os.abort()", r"crashed \(SIGABRT\)"),
        ("os.kill(os.getpid(), 24)", "took more than 60 s to load"),
    ],
)
def test_why_a_child_ended(ends: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BOOT", f"import os\n{ends}")
    with pytest.raises(StoppedError, match=message):
        IsolatedRunner(b"", "m.onnx", "cpu", False, Limits(10**6))


def test_a_child_that_does_not_start_or_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0.1)
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(limits_module, "LOAD_SECONDS", 0.1)
    monkeypatch.setattr(process, "BOOT", "import time; time.sleep(60)")
    with pytest.raises(MDLSTMError, match=r"did not start within 0\.1 s"):
        IsolatedRunner(b"", "m.onnx", "cpu", False, Limits(10**6))
    monkeypatch.setattr(process, "START_SECONDS", 60)
    says(monkeypatch)
    with pytest.raises(StoppedError, match=r"m\.onnx took more than 0\.1 s"):
        IsolatedRunner(b"", "m.onnx", "cpu", False, Limits(10**6))


@pytest.mark.parametrize("is_mapped", [True, False])
def test_arrays_pass_through_the_shared_file(is_mapped: bool) -> None:
    created = SharedFile.create()
    ours, theirs = SharedFile(created.descriptor, is_mapped=is_mapped), created
    arrays = [
        ("a", np.arange(7)),
        (None, np.zeros((0, 3), np.float16)),
        ("ü", np.asfortranarray(np.eye(3))),
    ]
    arrays += [("scalar", np.array(True)), ("large", np.ones(10**6, np.float32))]
    entries = json.loads(json.dumps(ours.write(arrays)))
    for (name, x), (found, y) in zip(arrays, theirs.read(entries, 10**8), strict=True):
        assert name == found
        np.testing.assert_array_equal(x, y, strict=True)
    with pytest.raises(ProtocolError, match="larger"):
        theirs.read(entries, 1000)
    with pytest.raises(MDLSTMError, match="expected numbers"):
        ours.write([("text", np.array(["a"]))])
    ours.write_bytes(b"abc")
    assert theirs.read_bytes(3) == b"abc"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_a_child_cannot_shorten_the_shared_file() -> None:
    shared = SharedFile.create()
    shared.write_bytes(b"abc")
    with pytest.raises(PermissionError):
        os.ftruncate(shared.descriptor, 0)


def test_limits_grow_with_max_bytes_up_to_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "available_memory", lambda: 8 * 2**30)
    assert Limits(2**28).memory == 2 * 2**30
    assert "more than 2.0 GiB of memory; allow more with --max-bytes" in Limits(2**28).memory_advice()
    assert Limits(2**30).memory == Limits(2**40).memory == 4 * 2**30
    assert "smaller batch" in Limits(2**40).memory_advice()
    monkeypatch.setattr(limits_module, "available_memory", lambda: None)
    assert Limits(2**30).memory == 5 * 2**30
    assert (Limits(1).run_seconds, Limits(1).load_seconds) == (120, 60)
    assert (Limits(1, timeout=5).run_seconds, Limits(1, timeout=5).load_seconds) == (5, 60)
    assert (Limits(1, timeout=90).run_seconds, Limits(1, timeout=90).load_seconds) == (90, 90)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("sys.platform", "linux")  # where XDG_STATE_HOME counts
    folder = private_folder("state")
    assert folder is not None
    return folder / "exported"


def test_only_models_that_were_noted_are_ones_own(state: Path, tmp_path: Path) -> None:
    path, missing = tmp_path / "m.onnx", tmp_path / "none.onnx"
    path.write_bytes(b"model")
    assert rule.is_from_elsewhere(path, 100) and not rule.was_exported_here(b"model")
    rule.note_export(b"model")
    assert not rule.is_from_elsewhere(path, 100) and rule.was_exported_here(b"model")
    assert not rule.was_exported_here(b"another")
    assert rule.is_from_elsewhere(path, 3)  # too large to be read
    assert rule.choose_isolation([path], 100, limited=False) == (None, None)
    assert rule.choose_isolation([path], 100, limited=True) == (True, None)
    assert rule.choose_isolation([path], 100, limited=True, isolated=False) == (False, None)
    assert rule.choose_isolation([missing], 100, limited=False) == (None, None)
    path.write_bytes(b"changed")
    assert rule.choose_isolation([missing, path], 100, limited=False) == (True, None)
    state.chmod(0o777)
    assert not rule.was_exported_here(b"model")


def test_the_number_of_notes_is_limited(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "MAX_NOTES", 3)
    for number in range(5):
        rule.note_export(bytes([number]))
        for age, note in enumerate(sorted(state.iterdir(), key=lambda path: path.stat().st_mtime)):
            os.utime(note, (age, age))
    assert [rule.was_exported_here(bytes([number])) for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_where_isolation_is_missing_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule.sys, "platform", "win32")
    (tmp_path / "m.onnx").touch()
    isolated, problem = rule.choose_isolation([tmp_path / "m.onnx"], 100, limited=True)
    assert isolated is None and problem is not None and "container" in problem
    with pytest.raises(MDLSTMError, match="needs Linux or macOS"):
        IsolatedRunner(b"", "m.onnx", "cpu", False, Limits(10**6))


def limited_process(by_address_space: bool, rest: str) -> int:
    """The exit code of a process that limits itself to 100 MB, and then does the rest."""
    code = f"""if True:
        import os, sys, time
        from mdlstm_tk.runtime.isolation import limits
        limits.BASE_BYTES = 10**8
        limits.limit_this_process(limits.Limits(1), os.getppid(), by_address_space={by_address_space})
        {rest}
    """
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit the address space")
def test_the_address_space_is_limited() -> None:
    rest = "try: bytes(10**9)\n        except MemoryError: sys.exit(7)"
    assert limited_process(True, rest) == 7
    assert limited_process(True, "bytes(10**7)") == 0


def test_resident_memory_is_watched_where_the_address_space_is_not_limited() -> None:
    assert (
        limited_process(False, "x = bytearray(b'1' * 10**9); time.sleep(60)") == limits_module.EXIT_MEMORY
    )
    assert limited_process(False, "x = bytearray(b'1' * 10**7); time.sleep(0.2)") == 0


def test_the_processor_time_and_the_shared_file_are_limited() -> None:
    busy = "limits.limit_cpu_time(0.2)\n        while True: pass"
    assert limited_process(True, busy) == -signal.SIGXCPU
    create = "from mdlstm_tk.runtime.isolation.shared_file import SharedFile as File"
    write = "try: File.create().write_bytes(bytes(5 * 10**7))\n        except OSError: sys.exit(7)"
    assert limited_process(True, f"{create}\n        {write}") == 7
