"""Call a verb of `mdlstm` in this process, and check what it prints and how it ends."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fuzz.outcome import EXIT_CODES, ViolationError, unclean
from mdlstm_tk.cli import main

MAX_OUTPUT = 2**20  # characters that a verb may print in all


@dataclass(frozen=True)
class Called:
    """What a verb printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str | None:
        """The error's line, without the label."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[0].removeprefix("error: ") if lines else None


def run_command(arguments: Sequence[object]) -> Called:
    """Call a verb.

    Raises:
        ViolationError: the exit code is not documented; not exactly one line of error is printed if it is
            not 0; or what is printed holds control characters.
    """
    texts = list(map(str, arguments))
    with captured() as (out, err):
        try:
            main(texts)
            raise ViolationError("code", f"{texts[0]} returned")
        except SystemExit as ended:
            code = ended.code
    called = Called(code if isinstance(code, int) else -1, out.text(), err.text())
    errors = [line for line in called.err.splitlines() if line.startswith("error: ")]
    if called.code not in EXIT_CODES:
        raise ViolationError("code", f"{texts[0]}: the exit code {code!r}; {called.err!a:.1000}")
    if len(errors) != (called.code != 0):
        raise ViolationError(
            "code", f"{texts[0]}: {len(errors)} errors, exit code {code}; {called.err!a:.1000}"
        )
    if "Traceback (most recent call last)" in called.err:
        raise ViolationError("exception", f"{texts[0]}: a traceback; {called.err!a:.3000}")
    for name, text in (("stdout", called.out), ("stderr", called.err)):
        if problem := unclean(text.replace("\t", " "), MAX_OUTPUT):
            raise ViolationError("message", f"{texts[0]}: {name} holds {problem}: {_around(text)}")
    return called


def _around(text: str) -> str:
    """The line in a text that is not clean."""
    return next((ascii(line)[:400] for line in text.split("\n") if unclean(line.replace("\t", " "))), "")


class _Stream:
    """A file to which a file descriptor writes."""

    def __init__(self, descriptor: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._descriptor, self._before = descriptor, os.dup(descriptor)
        os.dup2(self._file.fileno(), descriptor)

    def restore(self) -> None:
        os.dup2(self._before, self._descriptor)
        os.close(self._before)
        self._file.seek(0)
        self._text = self._file.read().decode(errors="surrogateescape")
        self._file.close()

    def text(self) -> str:
        return self._text


@contextmanager
def captured() -> Iterator[tuple[_Stream, _Stream]]:
    """Send what this process writes to stdout and stderr, C libraries included, to files."""
    before = sys.stdout, sys.stderr
    sys.stdout.flush()
    sys.stderr.flush()
    streams = _Stream(1), _Stream(2)
    # pytest puts objects in their places that do not write to the descriptors.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    try:
        yield streams
    finally:
        with suppress(ValueError):  # a verb has closed it
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.restore()
