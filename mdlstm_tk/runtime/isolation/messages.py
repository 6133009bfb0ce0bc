"""What a parent and its child say to each other: JSON of bounded length over a pair of sockets.

A message is its length in four bytes and a JSON object. The parent believes nothing that it has not
checked: a model may have taken over its child.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from mdlstm_tk._util.text import printable
from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError, MissingExtraError, StoppedError

MAX_MESSAGE_BYTES = 2**22
MAX_TEXT = 2000  # characters of an error message
LENGTH_BYTES = 4
MAX_DESCRIPTORS = 64  # in one message
ERRORS = {kind.__name__: kind for kind in (MDLSTMError, InputError, DeviceError, MissingExtraError)}
STOPPED: dict[str, Any] = {"StoppedError": StoppedError}

Message = dict[str, Any]
Value = TypeVar("Value")


class ProtocolError(Exception):
    """The other side sent what it should not have sent."""


def send(
    connection: socket.socket,
    message: Message,
    descriptors: list[int] | None = None,
    deadline: float | None = None,
) -> None:
    """Send a message and perhaps open files.

    Raises:
        InputError: the message is longer than the other side accepts.
        TimeoutError: the deadline, a value of `time.monotonic`, has passed.
        OSError: the other side has gone.
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise InputError(f"names and metadata take {len(data)} bytes, expected at most {MAX_MESSAGE_BYTES}")
    data = len(data).to_bytes(LENGTH_BYTES, "big") + data
    _set_timeout(connection, deadline)
    if descriptors:
        sent = socket.send_fds(connection, [data], descriptors)
        data = data[sent:]
    connection.sendall(data)


def receive(connection: socket.socket, deadline: float | None = None) -> Message:
    """Wait for a message.

    Raises:
        ProtocolError: it is not a message.
        TimeoutError: the deadline, a value of `time.monotonic`, has passed.
        EOFError, OSError: the other side has gone.
    """
    return _parse(connection, _read(connection, LENGTH_BYTES, deadline), deadline)


def receive_with_descriptors(connection: socket.socket) -> tuple[Message, list[int]]:
    """Wait for a message and the descriptors of files that come with it; errors are those of `receive`."""
    start, descriptors, _, _ = socket.recv_fds(connection, LENGTH_BYTES, MAX_DESCRIPTORS)
    if not start:
        raise EOFError
    rest = _read(connection, LENGTH_BYTES - len(start), None)
    return _parse(connection, start + rest, None), list(descriptors)


def error_reply(error: Exception) -> Message:
    """The reply that stands for an exception."""
    if isinstance(error, MemoryError):
        error = StoppedError("out of memory", "memory")
    if isinstance(error, StoppedError):
        return {"error": "StoppedError", "message": str(error)[:MAX_TEXT], "cause": error.cause}
    if not isinstance(error, MDLSTMError):
        error = MDLSTMError(f"the child process failed: {type(error).__name__}: {error}")
    return {"error": type(error).__name__, "message": str(error)[:MAX_TEXT]}


def raise_error(reply: Message, label: str) -> None:
    """Raise the exception that a reply stands for, if it stands for one.

    Args:
        reply: what `receive` returned.
        label: the name of the file that the message may hold. Other unsafe characters are escaped.

    Raises:
        MDLSTMError: of the same kind as in the child.
        ProtocolError: the reply is neither.
    """
    if "error" not in reply:
        return
    kind, cause = reply["error"], reply.get("cause")
    text = field(reply, "message", str)[:MAX_TEXT]
    message = label.join(printable(part) for part in text.split(label))
    if kind == "StoppedError" and cause in ("time", "memory", "crash"):
        raise StoppedError(message, cause)
    if not isinstance(kind, str) or kind not in ERRORS:
        raise ProtocolError("an unknown error")
    raise ERRORS[kind](message)


def field(
    message: Message, name: str, kind: type[Value], check: Callable[[Value], bool] | None = None
) -> Value:
    """A field of a message.

    Raises:
        ProtocolError: it is missing, of another type, or not as `check` wants it.
    """
    value = message.get(name)
    if type(value) is not kind or (check is not None and not check(value)):
        raise ProtocolError(f"the field '{name}' is missing or invalid")
    return value


def _parse(connection: socket.socket, start: bytes, deadline: float | None) -> Message:
    length = int.from_bytes(start, "big")
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {length} bytes")
    try:
        message = json.loads(_read(connection, length, deadline))
    except (ValueError, RecursionError):
        raise ProtocolError("no JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("no JSON object")
    return message


def _read(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    parts = []
    while count:
        _set_timeout(connection, deadline)
        part = connection.recv(count)
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _set_timeout(connection: socket.socket, deadline: float | None) -> None:
    # What has already arrived is read even after the deadline: a stopped parent may have slept past it.
    connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
