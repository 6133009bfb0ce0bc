"""`IsolatedRunner`: a model that is loaded and run in a child process with limits on memory and time.

The model check keeps out the operators that are known to be dangerous. A child process limits the rest:
an operator that runs for hours or takes all memory, and a mistake in ONNX Runtime that ends its process.
Only arrays, numbers and short texts come back; nothing from the child is unpickled. A child is still a
process of the user, so against an attacker who can run code in it, use a container.

Memory    On Linux the address space of the child is limited (RLIMIT_AS), so that an allocation beyond it
          fails. macOS does not enforce that limit, and CUDA reserves address space that it does not use;
          there a thread of the child ends it once its resident memory exceeds the limit.
Time      ONNX Runtime stops a run between two operators. The parent ends a child that does not answer
          within `GRACE_SECONDS` after that, as one operator may take any time.
Files     The child can write none (RLIMIT_FSIZE).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from mdlstm_tk import errors
from mdlstm_tk._util.text import printable
from mdlstm_tk.errors import (
    TILED_EXPORT,
    Argument,
    Export,
    InputError,
    MDLSTMError,
    Message,
    StoppedError,
)
from mdlstm_tk.runtime.io.npy import MORE_BYTES, Array
from mdlstm_tk.runtime.runner import MODEL, GraphInfo, TensorType, timeout_error

MEMORY_BYTES = 2**32  # of a child, beside Python and ONNX Runtime themselves, if `max_bytes` is not set
RUN_SECONDS = 120.0  # of a run without a timeout
LOAD_SECONDS = 120.0  # for starting a child and loading a model, or the timeout if that is longer
GRACE_SECONDS = 0.5
END_SECONDS = 5.0
EXIT_MEMORY = 81  # exit code of a child that took too much

MAX_HEADER_BYTES = 2**24  # of a message, without its arrays
MAX_TEXT = 2000  # characters of an error message
MAX_RANK = 32
DTYPES = {np.dtype(code).str: np.dtype(code) for code in "?bhilqBHILQefd"}
ERRORS = {
    kind.__name__: kind for kind in (MDLSTMError, InputError, errors.DeviceError, errors.MissingExtraError)
}

START = """
import json, sys
config = json.loads(sys.argv[1])
sys.path[:] = config["path"]
from mdlstm_tk.runtime.isolation_child import main
main(config)
"""

Packet = dict[str, Any]


class ProtocolError(Exception):
    """The other side sent something invalid."""


class IsolatedRunner:
    """A `Runner` in a child process. Arguments and errors are those of `OpenModel._open`.

    Calls take turns. If the child ends, its call fails; the next call starts another child.
    """

    def __init__(self, graphs: Mapping[str, bytes], label: str, **options: Any) -> None:
        if sys.platform not in ("linux", "darwin"):
            advice = " needs Linux or macOS; run files from others in a container"
            raise MDLSTMError(Argument("isolated", True), advice)
        self._graphs, self._label = dict(graphs), label
        self._run_seconds = RUN_SECONDS if options["timeout"] is None else options["timeout"]
        self._memory = options["max_bytes"] or MEMORY_BYTES
        self._options = options | {"timeout": self._run_seconds}
        self._lock = threading.Lock()
        self._is_closed = False
        reply = self._load()
        try:
            self.graphs = {name: _graph_info(reply["graphs"][name]) for name in graphs}
            self.device, self.provider = printable(reply["device"]), printable(reply["provider"])
            reason = reply["reason"]
            self.reason = None if reason is None else printable(reason[:MAX_TEXT])
        except (KeyError, TypeError, AttributeError):
            raise self._invalid("no facts about the graphs") from None
        self._options["device"] = self.device  # of the children that follow, too, also for "auto"

    def run(self, feeds: Mapping[str, Array], graph: str = MODEL) -> dict[str, Array]:
        """As `LocalRunner.run`."""
        with self._lock:
            if self._is_closed:
                raise MDLSTMError("this session is closed; open the model again")
            if not self._child.is_usable:
                self._load()
            try:
                _, outputs = self._child.ask(
                    {"graph": graph}, feeds.items(), self._run_seconds, self._memory
                )
            except ProtocolError as error:
                raise self._invalid(str(error)) from None
            except StoppedError as error:
                raise self._explained(error, timeout_error(self._run_seconds)) from None
            if outputs.keys() != self.graphs[graph].outputs.keys():
                raise self._invalid("outputs of other names")
            return outputs

    def interrupt(self) -> None:
        """Stop the run in progress, which raises."""
        self._child.kill()

    def close(self) -> None:
        """End the process; later runs raise an `MDLSTMError`."""
        self._is_closed = True
        self._child.kill()

    def _load(self) -> Packet:
        """Start a child that loads the graphs; returns its reply."""
        self._child = _Child(self._memory, self._options["threads"])
        files = [(name, np.frombuffer(data, np.uint8)) for name, data in self._graphs.items()]
        seconds = max(LOAD_SECONDS, self._run_seconds)
        try:
            reply, _ = self._child.ask({"label": self._label, **self._options}, files, seconds, 0)
            return reply
        except ProtocolError as error:
            raise self._invalid(str(error)) from None
        except StoppedError as error:
            text = f"{self._label} took more than {seconds:g} s to load; allow more with "
            too_slow = StoppedError(Message(text, Argument("timeout")), "time")
            raise self._explained(error, too_slow) from None
        except BaseException:
            self._child.kill()
            raise

    def _invalid(self, problem: str) -> MDLSTMError:
        """End a child that sent something invalid, and return the exception to raise."""
        self._child.kill()
        return MDLSTMError(f"the isolated process sent an invalid reply ({problem}) and was ended")

    def _explained(self, error: StoppedError, too_slow: StoppedError) -> StoppedError:
        """The error with a message that says which limit was reached, or that the session was closed."""
        if self._is_closed:
            return StoppedError("this session was closed while the model ran", "crash")
        if error.cause == "time":
            return too_slow
        if error.cause == "memory":
            size = f"{self._memory / 2**20:.0f} MiB"
            text = f"{self._label} needed more than {size} of memory and was stopped"
            advice = MORE_BYTES, ", or run it in tiles with a model from: ", TILED_EXPORT
            return StoppedError(Message(text, *advice), "memory")
        return StoppedError(f"{self._label} crashed ({error})", "crash")


def module_path() -> list[str]:
    """The absolute entries of this process's module path, and the folder of the package, which a relative
    one may have led to."""
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    package = str(Path(__file__).parents[2])
    return path if package in path else [package, *path]


class _Child:
    """A child process, which starts here. `memory` are the bytes that it may allocate beside its modules.

    It has the module path of this process, and inherits neither standard input nor open files. It has no
    terminal, so that Ctrl-C reaches the parent alone.
    """

    def __init__(self, memory: int, threads: int) -> None:
        config = {
            "parent": os.getpid(),
            "memory": memory,
            "threads": threads or os.cpu_count() or 1,
            "path": module_path(),
        }
        flags = ["-P", *(["-s"] if sys.flags.no_user_site else [])]
        pipe: Any = subprocess.PIPE
        try:
            self._popen = subprocess.Popen(
                [sys.executable, *flags, "-c", START, json.dumps(config)],
                bufsize=0,
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise MDLSTMError(f"cannot start a process for isolation: {error.strerror or error}") from None
        self._owner, self._is_late = os.getpid(), False
        self._end = weakref.finalize(self, _end, self._popen, self._owner)

    @property
    def is_usable(self) -> bool:
        """True if it lives, as far as is known, and was not started before a fork."""
        return self._end.alive and not self._is_late and self._owner == os.getpid()

    def ask(
        self, request: Packet, arrays: Iterable[tuple[str, Array]], seconds: float, max_bytes: int
    ) -> tuple[Packet, dict[str, Array]]:
        """Send a request with arrays, and wait for a reply whose arrays take at most `max_bytes`. The
        child is killed `GRACE_SECONDS` after the time for it.

        Raises:
            MDLSTMError: the error that the child raised.
            StoppedError: a limit was reached, or the child crashed; the message is empty, or says how.
            ProtocolError: the reply is invalid.
        """
        assert self._popen.stdin and self._popen.stdout
        timer = threading.Timer(seconds + GRACE_SECONDS, self._stop_late)
        timer.daemon = True
        timer.start()
        try:
            send(self._popen.stdin, request, arrays)
            reply, outputs = receive(self._popen.stdout, max_bytes)
        except (EOFError, OSError, ValueError):  # ValueError: another thread has ended it
            raise self._death() from None
        except BaseException:  # such as Ctrl-C: the reply would be taken for that to the next request
            self.kill()
            raise
        finally:
            timer.cancel()
        if "error" not in reply:
            return reply, outputs
        message, cause = _message(reply.get("message")), reply.get("cause")
        if cause in ("time", "memory", "crash"):
            raise StoppedError(message, cause)
        raise ERRORS.get(str(reply["error"]), MDLSTMError)(message)

    def kill(self) -> None:
        """End the process."""
        self._end()

    def _stop_late(self) -> None:
        self._is_late = True
        self._popen.kill()

    def _death(self) -> StoppedError:
        """The reason why the child closed the connection."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(END_SECONDS)
        code = self._popen.poll()
        self.kill()
        if self._is_late or code == EXIT_MEMORY:
            return StoppedError("", "time" if self._is_late else "memory")
        if code is not None and code < 0:
            return StoppedError(signal.Signals(-code).name, "crash")
        return StoppedError("no answer" if code is None else f"exit code {code}", "crash")


def _message(parts: Any) -> Message:
    """The message of an error of the child, whose arguments JSON has made lists."""

    def word(value: Any) -> Any:
        return value if value is None or isinstance(value, bool | int | float) else printable(value)

    def part(value: Any) -> Any:
        if isinstance(value, list) and isinstance(value[0], dict):
            return Export({word(name): word(given) for name, given in value[0].items()}, word(value[1]))
        return Argument(*map(word, value)) if isinstance(value, list) else word(value)

    try:
        message = Message(*map(part, parts))
    except (TypeError, IndexError):
        raise ProtocolError("an error without a message") from None
    return message if len(message) <= MAX_TEXT else Message(message[:MAX_TEXT])


def send(file: IO[bytes], message: Packet, arrays: Iterable[tuple[str, Array]] = ()) -> None:
    """Send a message: the length of a JSON object in four bytes, the object, then the bytes of the arrays.

    Raises:
        OSError: the other side has gone.
    """
    contiguous = [(name, np.asarray(array, order="C")) for name, array in arrays]
    descriptions = [[name, array.dtype.str, array.shape] for name, array in contiguous]
    header = json.dumps({**message, "arrays": descriptions}).encode()
    parts = [array.reshape(-1).view(np.uint8).data for _, array in contiguous]
    for part in (memoryview(len(header).to_bytes(4, "big") + header), *parts):
        while part:
            part = part[file.write(part) :]


def receive(file: IO[bytes], max_bytes: int) -> tuple[Packet, dict[str, Array]]:
    """Wait for a message on an unbuffered file.

    Raises:
        ProtocolError: it is not a message of `send`, or its arrays are larger than `max_bytes`.
        EOFError, OSError: the other side has gone.
    """
    length = int.from_bytes(_read(file, 4), "big")
    if length > MAX_HEADER_BYTES:
        raise ProtocolError(f"a message of {length} bytes")
    data = _read(file, length)
    try:
        message = json.loads(data)
        descriptions = [(name, DTYPES[dtype], tuple(shape)) for name, dtype, shape in message.pop("arrays")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProtocolError("no message") from None
    for name, _, shape in descriptions:
        if not isinstance(name, str) or len(shape) > MAX_RANK:
            raise ProtocolError("an array without a name, or of too many axes")
        if not all(type(extent) is int and 0 <= extent < 2**40 for extent in shape):
            raise ProtocolError("an array of an impossible shape")
    total = sum(prod(shape) * dtype.itemsize for _, dtype, shape in descriptions)
    if total > max_bytes:
        raise ProtocolError(f"arrays of {total} bytes, more than {max_bytes}")
    arrays: dict[str, Array] = {}
    for name, dtype, shape in descriptions:
        arrays[name] = np.frombuffer(_read(file, prod(shape) * dtype.itemsize), dtype).reshape(shape)
    return message, arrays


def _read(file: Any, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        size = file.readinto(view)
        if not size:
            raise EOFError
        view = view[size:]
    return data


def _graph_info(facts: Any) -> GraphInfo:
    """A `GraphInfo` from JSON values, which `isolation_child` sends."""
    props = {str(key): str(value) for key, value in facts["props"].items()}
    types = [
        {str(name): TensorType(str(dtype), tuple(shape)) for name, (dtype, shape) in facts[side].items()}
        for side in ("inputs", "outputs")
    ]
    return GraphInfo(props, *types)


def _end(popen: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # a forked copy of the parent must not end the parent's child
        popen.kill()  # which also wakes a thread that waits for a reply
        popen.wait()
    for file in (popen.stdin, popen.stdout):
        if file is not None:
            file.close()
