"""`IsolatedRunner`: a model that is loaded and run in a child process with limits."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mdlstm_tk._util.text import printable
from mdlstm_tk.errors import MDLSTMError, StoppedError
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.isolation.limits import Limits
from mdlstm_tk.runtime.isolation.messages import Message, ProtocolError, field
from mdlstm_tk.runtime.isolation.process import ChildProcess
from mdlstm_tk.runtime.isolation.rule import require_isolation
from mdlstm_tk.runtime.local_runner import timed_out_error

MAX_REASON = 1000  # characters


class IsolatedRunner:
    """A model in a child process; see `mdlstm_tk.runtime.local_runner.Runner`. Calls take turns.

    A child that ends takes its call with it; the next call starts another one.

    Args:
        data: content of the `.onnx` file.
        label: what error messages call the model.
        device, tf32: as for `Session`.
        limits: what the child may take.

    Raises:
        StoppedError: the model exceeds a limit while it is loaded.
        MDLSTMError: this system cannot isolate, or the errors of `LocalRunner`.
    """

    def __init__(self, data: bytes, label: str, device: str, tf32: bool, limits: Limits) -> None:
        require_isolation()
        self._data, self._label, self._limits = data, label, limits
        self._options = {"device": device, "tf32": tf32}
        self._lock = threading.Lock()
        self._is_closed = False
        self._process, loaded = self._load()
        try:
            self.props: Mapping[str, str] = _props(loaded)
            self.output_names: list[str] = _names(loaded)
            self.device: str = _matching(loaded, "device", r"cpu|cuda:\d{1,3}")
            self.provider: str = _matching(loaded, "provider", r"\w{1,100}")
            reason = None if loaded.get("reason") is None else field(loaded, "reason", str)
            self.reason: str | None = reason and printable(reason[:MAX_REASON])
            self.captures_graphs: bool = field(loaded, "captures_graphs", bool)
        except ProtocolError as error:
            raise self._process.refuse(error) from None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            if self._is_closed:
                raise MDLSTMError("this session is closed; open the model again with Session(...)")
            if not self._process.is_usable:
                self._process, _ = self._load()
            process, seconds = self._process, self._limits.run_seconds
            try:
                with _passing_on("the inputs"):
                    inputs = process.shared.write(feeds.items())
                reply = process.ask({"inputs": inputs}, self._label, seconds)
                outputs = process.shared.read(reply.get("outputs"), self._limits.shared_bytes)
            except StoppedError as error:
                raise self._explained(error, timed_out_error(seconds)) from None
            except ProtocolError as error:
                raise process.refuse(error) from None
            if [name for name, _ in outputs] != self.output_names:
                raise process.refuse(ProtocolError("outputs of other names"))
            return {name: y for name, y in outputs if name is not None}

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._process.kill()

    def _load(self) -> tuple[ChildProcess, Message]:
        """Start a child that loads the model; returns it and its reply."""
        process = ChildProcess("model", self._limits)
        request = {"bytes": len(self._data), "label": self._label, **self._options}
        seconds = self._limits.load_seconds
        try:
            with _passing_on("the model"):
                process.shared.write_bytes(self._data)
            return process, process.ask(request, self._label, seconds)
        except StoppedError as error:
            too_slow = f"{self._label} took more than {seconds:g} s to load; allow more with --timeout"
            process.kill()
            raise self._explained(error, StoppedError(too_slow, "time")) from None
        except BaseException:
            process.kill()
            raise

    def _explained(self, error: StoppedError, too_slow: StoppedError) -> StoppedError:
        """The error with a message that says which limit was reached."""
        if error.cause == "time":
            return too_slow
        if error.cause == "memory":
            message = f"the model was stopped: it needed {self._limits.memory_advice()}"
            return StoppedError(message, "memory")
        return StoppedError(f"the model crashed ({error})", "crash")


@contextmanager
def _passing_on(what: str) -> Iterator[None]:
    """Raise an `MDLSTMError` where the system does not let the shared file grow."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise MDLSTMError(f"{what} cannot be passed on to the isolated process: {reason}") from None


def _props(loaded: Message) -> dict[str, str]:
    props = field(loaded, "props", dict)
    if not all(isinstance(value, str) for value in props.values()):
        raise ProtocolError("metadata that are no texts")
    return props


def _names(loaded: Message) -> list[str]:
    names = field(loaded, "output_names", list, lambda names: all(isinstance(name, str) for name in names))
    if len(set(names)) != len(names):
        raise ProtocolError("two outputs of one name")
    return names


def _matching(loaded: Message, name: str, pattern: str) -> str:
    return field(loaded, name, str, lambda text: re.fullmatch(pattern, text) is not None)
