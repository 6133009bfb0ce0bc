"""Watch which files this process opens while a verb runs, and whether it runs code from the case."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.outcome import ViolationError

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
)
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")
NETWORK = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
)


class Guard:
    """An audit hook that notes what is forbidden while `watching`.

    Args:
        case: folder of the present case; nothing in it is executed, and nothing is written outside it.
        may_write: further folders that may be written.
    """

    def __init__(self, case: Path, may_write: list[Path]) -> None:
        self.case = f"{case.resolve()}{os.sep}"
        self.private = f"{self.case}private{os.sep}"
        self.may_write = (self.case, "/dev/", "/proc/self/", *(str(path.resolve()) for path in may_write))
        self.found: list[str] = []
        self.is_active = False
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is done inside this `with` statement.

        Raises:
            ViolationError: something forbidden was done.
        """
        self.found.clear()
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False
        if self.found:
            raise ViolationError("access", self.found[0])

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_active:
            return
        self.is_active = False  # what this hook does is not watched
        try:
            if problem := self._problem(event, arguments):
                self.found.append(problem)
        finally:
            self.is_active = True

    def _may_write(self, path: str) -> bool:
        """Python and Numba keep compiled code in folders called __pycache__."""
        return path.startswith(self.may_write) or "__pycache__" in path.split(os.sep)

    def _problem(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes):
                return ""
            full = os.path.realpath(os.fsdecode(path))
            if full.startswith(self.private):
                return f"opens the private file {full}"
            if flags & WRITES and not self._may_write(full):
                return f"opens {full} to write"
        elif event in CHANGES:
            full = (
                os.path.realpath(os.fsdecode(arguments[0])) if isinstance(arguments[0], str | bytes) else ""
            )
            if full and not self._may_write(full):
                return f"changes {full} by {event}"
        elif event.startswith(PROGRAMS):
            if os.fsdecode(arguments[0] or arguments[1][0]) != sys.executable:
                return f"starts {arguments[:2]!a:.200}"
        elif event in NETWORK:
            return f"uses the network: {event} {arguments[1:]!a:.200}"
        elif event == "pickle.find_class" and not _loads_kernels():
            return f"unpickles {arguments!a:.200}"
        elif event in ("compile", "exec", "ctypes.dlopen", "import"):
            file = getattr(arguments[-1 if event == "compile" else 0], "co_filename", None)
            name = file or next((a for a in arguments if isinstance(a, str) and os.sep in a), "")
            if name and os.path.exists(name) and os.path.realpath(name).startswith(self.case):
                return f"executes {name} ({event})"
        return ""


def _loads_kernels() -> bool:
    """Whether Numba is loading kernels from its cache, which it pickles; nobody else may write to that."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("numba/core/caching.py"):
            return True
        frame = frame.f_back
    return False
