"""The parent's side of a child process: start it, ask it, kill it, and find out why it ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import asdict
from typing import Literal

import mdlstm_tk
from mdlstm_tk.errors import MDLSTMError, StoppedError
from mdlstm_tk.runtime.isolation import messages
from mdlstm_tk.runtime.isolation.limits import EXIT_MEMORY, GRACE_SECONDS, Limits
from mdlstm_tk.runtime.isolation.messages import Message, ProtocolError
from mdlstm_tk.runtime.isolation.shared_file import SharedFile

Role = Literal["model", "reader"]

START_SECONDS = 120.0  # importing NumPy and ONNX Runtime takes long on a busy machine
END_SECONDS = 5.0

# The child loads this very package, whatever else is installed, and searches no folder for it.
BOOT = """
import json, os, sys
from importlib.util import module_from_spec, spec_from_file_location
folder, config = sys.argv[1:]
try:
    path = folder + "/__init__.py"
    spec = spec_from_file_location("mdlstm_tk", path, submodule_search_locations=[folder])
    sys.modules["mdlstm_tk"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)
    from mdlstm_tk.runtime.isolation.child import main
except Exception as error:
    reply = json.dumps({"error": "MDLSTMError", "message": f"the child process did not start: {error}"})
    os.write(json.loads(config)["connection"], len(reply).to_bytes(4, "big") + reply.encode())
    sys.exit(1)
main(config)
"""


class ChildProcess:
    """A child that loads and runs a model, or reads files. It starts here; the first request waits for it.

    Nothing is imported from the current folder. The child inherits neither standard input nor open files,
    and has no terminal, so that an interrupt from the keyboard reaches the parent alone.

    Args:
        role: what the child is for.
        limits: what it may take.

    Attributes:
        shared: the file through which arrays travel.
    """

    def __init__(self, role: Role, limits: Limits) -> None:
        self._connection, other_end = socket.socketpair()
        self.shared = SharedFile.create()
        config = {
            "role": role,
            "connection": other_end.fileno(),
            "shared_file": self.shared.descriptor,
            "parent": os.getpid(),
            "limits": asdict(limits),
        }
        flags = ["-P"]
        flags += ["-E"] if sys.flags.ignore_environment else []
        flags += ["-s"] if sys.flags.no_user_site else []
        package = os.path.dirname(os.path.abspath(mdlstm_tk.__file__))
        try:
            self._popen = subprocess.Popen(
                [sys.executable, *flags, "-c", BOOT, package, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(other_end.fileno(), self.shared.descriptor),
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        except OSError as error:
            self._connection.close()
            os.close(self.shared.descriptor)
            raise MDLSTMError(f"cannot start a process for isolation: {error.strerror or error}") from None
        finally:
            other_end.close()
        self._owner = os.getpid()
        self._is_ready = False
        self._end = weakref.finalize(
            self, _end, self._popen, self._connection, self.shared.descriptor, self._owner
        )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._popen.pid

    @property
    def is_usable(self) -> bool:
        """Whether it lives, as far as is known, and was started by this very process rather than before a
        fork."""
        return self._end.alive and self._owner == os.getpid()

    def ask(
        self, request: Message, label: str, seconds: float | None, descriptors: list[int] | None = None
    ) -> Message:
        """Send a request and wait for the reply.

        Args:
            request: what to do.
            label: what error messages call the file.
            seconds: how long the child may take; it is killed `GRACE_SECONDS` after that. None: any time.
            descriptors: of open files that the child needs.

        Raises:
            MDLSTMError: what the child raised.
            StoppedError: a limit was reached, or the child crashed. The message is empty, or says how.
        """
        try:
            if not self._is_ready:
                self._await_start(label)
            deadline = None if seconds is None else time.monotonic() + seconds + GRACE_SECONDS
            messages.send(self._connection, request, descriptors, deadline)
            reply = messages.receive(self._connection, deadline)
            messages.raise_error(reply, label)
            return reply
        except MDLSTMError:
            raise
        except TimeoutError:
            self.kill()
            raise StoppedError("", "time") from None
        except (EOFError, OSError):
            raise self._death() from None
        except ProtocolError as error:
            raise self.refuse(error) from None
        except BaseException:  # an interrupt: the reply would be taken for that to the next request
            self.kill()
            raise

    def _await_start(self, label: str) -> None:
        try:
            reply = messages.receive(self._connection, time.monotonic() + START_SECONDS)
        except TimeoutError:
            self.kill()
            raise MDLSTMError(f"the isolated process did not start within {START_SECONDS:g} s") from None
        messages.raise_error(reply, label)
        self._is_ready = True

    def refuse(self, error: ProtocolError) -> MDLSTMError:
        """End a child that sent what it should not have sent, and return the exception to raise."""
        self.kill()
        return MDLSTMError(f"the isolated process sent an invalid reply ({error}) and was ended")

    def _death(self) -> StoppedError:
        """Why the child closed the connection."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(END_SECONDS)
        code = self._popen.poll()
        self.kill()
        if code == EXIT_MEMORY:
            return StoppedError("", "memory")
        if code == -signal.SIGXCPU:
            return StoppedError("", "time")
        if code == -signal.SIGKILL:
            return StoppedError("SIGKILL, probably because the machine ran out of memory", "crash")
        if code is not None and code < 0:
            with suppress(ValueError):
                return StoppedError(signal.Signals(-code).name, "crash")
        return StoppedError("no answer" if code is None else f"exit code {code}", "crash")

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._end()


def _environment() -> dict[str, str]:
    """The environment without entries of PYTHONPATH that mean the current folder."""
    environment = dict(os.environ)
    if "PYTHONPATH" in environment:
        entries = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(filter(os.path.isabs, entries))
    return environment


def _end(popen: subprocess.Popen[bytes], connection: socket.socket, descriptor: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked copy of the parent must not end the parent's child
        popen.kill()  # which also wakes a thread that waits for a reply
        popen.wait()
    connection.close()
    os.close(descriptor)
