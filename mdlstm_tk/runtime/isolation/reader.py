"""`IsolatedReader`: input files are read, unpacked and decoded in a child process with limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError, StoppedError
from mdlstm_tk.runtime.io.arrays import label_of, open_input
from mdlstm_tk.runtime.io.readers import Arrays, InputFile, check_type
from mdlstm_tk.runtime.isolation.limits import Limits
from mdlstm_tk.runtime.isolation.messages import ProtocolError, raise_error
from mdlstm_tk.runtime.isolation.process import ChildProcess
from mdlstm_tk.runtime.isolation.rule import require_isolation
from mdlstm_tk.runtime.isolation.shared_file import NamedArrays

PIXELS = (np.uint8, np.uint16, np.float32)  # what `decode_image` returns
GROUP = 32  # small files that are read by one request, as a request takes longer than reading one of them
SMALL_BYTES = 2**20  # size of a small file
MAX_FAILURES = 3  # in a row, as each may take as long as the limit on time


class IsolatedReader:
    """Does what `read_input` does, in a child process, which only gets the open files.

    A file that the child does not survive fails alone; the next one is read by another child. The first
    child starts here, so that its start overlaps with other work.

    Args:
        limits: what the child may take.

    Raises:
        MDLSTMError: this system cannot isolate.
    """

    def __init__(self, limits: Limits) -> None:
        require_isolation()
        self._limits = limits
        self._process = ChildProcess("reader", limits)
        self._is_closed = False
        self._failures = 0

    def read(self, source: str) -> InputFile:
        """Read a file; arguments and errors are those of `read_input`.

        Raises:
            StoppedError: several files in a row killed the child.
        """
        check_type(source)
        with open_input(source) as file:
            # Whoever writes into a pipe may take any time.
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            seconds = self._limits.load_seconds if is_file else None
            try:
                (result,) = self._ask([source], [file.fileno()], seconds)
            except StoppedError as error:
                raise self._failure(label_of(source), error) from None
        self._failures = 0
        if isinstance(result, MDLSTMError):
            raise result
        return result

    def read_all(self, sources: Sequence[str]) -> Iterator[InputFile | InputError]:
        """Read files one after the other, small ones in groups.

        Yields:
            For each file what `read` returns or raises.

        Raises:
            MDLSTMError: as `read`, but for an `InputError`.
        """
        for start in range(0, len(sources), GROUP):
            group = sources[start : start + GROUP]
            known = self._read_small(group)
            for source in group:
                try:
                    result = known.get(source) or self.read(source)
                except InputError as error:
                    yield error
                    continue
                if isinstance(result, MDLSTMError) and not isinstance(result, InputError):
                    raise result
                yield result

    def close(self) -> None:
        """End the child. If another thread reads just now, that raises an `MDLSTMError`."""
        self._is_closed = True
        self._process.kill()

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_small(self, sources: Sequence[str]) -> dict[str, InputFile | MDLSTMError]:
        """What the small ones among some files hold; nothing if the child does not survive that."""
        with ExitStack() as stack:
            opened: dict[str, int] = {}
            for source in sources:
                with suppress(InputError, OSError):
                    status = os.stat(source)
                    if stat.S_ISREG(status.st_mode) and status.st_size <= SMALL_BYTES:
                        check_type(source)
                        opened[source] = stack.enter_context(open_input(source)).fileno()
            if len(opened) < 2:
                return {}
            try:
                results = self._ask(list(opened), list(opened.values()), self._limits.load_seconds)
            except StoppedError:
                return {}
            self._failures = 0
            return dict(zip(opened, results, strict=True))

    def _ask(
        self, sources: list[str], descriptors: list[int], seconds: float | None
    ) -> list[InputFile | MDLSTMError]:
        """What some files hold, or what is wrong with each."""
        if self._is_closed:
            raise MDLSTMError("the reader of input files is closed")
        if not self._process.is_usable:
            self._process = ChildProcess("reader", self._limits)
        labels = [label_of(source) for source in sources]
        reply = self._process.ask({"sources": sources}, labels[0], seconds, descriptors)
        try:
            found = reply.get("files")
            if not isinstance(found, list) or len(found) != len(sources):
                raise ProtocolError("another number of files")
            arrays = self._process.shared.read(reply.get("arrays"), self._limits.shared_bytes)
            return [_result(file, label, arrays) for file, label in zip(found, labels, strict=True)]
        except ProtocolError as error:
            raise self._process.refuse(error) from None

    def _failure(self, label: str, error: StoppedError) -> MDLSTMError:
        """The error for a file that could not be read within the limits."""
        reason = f"the process that read it crashed ({error})"
        if error.cause == "time":
            reason = f"it took more than {self._limits.load_seconds:g} s; allow more with --timeout"
        elif error.cause == "memory":
            reason = f"it needed {self._limits.memory_advice()}"
        self._failures += not self._process.is_usable
        if self._failures == MAX_FAILURES:
            return StoppedError(
                f"{MAX_FAILURES} files in a row could not be read; the last was {label}: {reason}",
                error.cause,
            )
        return InputError(f"{label} could not be read: {reason}")


def _result(file: Any, label: str, arrays: NamedArrays) -> InputFile | MDLSTMError:
    """One file of a reply, whose arrays are the first of those that are left.

    Raises:
        ProtocolError: it is not what the child should have sent.
    """
    match file:
        case [int() as count, bool() as is_image] if type(count) is int and 0 < count <= len(arrays):
            own, arrays[:count] = arrays[:count], []
        case dict():
            try:
                raise_error(file, label)
            except StoppedError:
                raise ProtocolError("a limit that does not concern one file") from None
            except MDLSTMError as error:
                return error
            raise ProtocolError("neither arrays nor an error")
        case _:
            raise ProtocolError("no file")
    for _, array in own:
        is_valid = array.dtype == np.float32
        if is_image:
            is_valid = array.dtype in PIXELS and array.ndim in (2, 3)
        if not is_valid or not array.size:
            raise ProtocolError(f"an array of {array.dtype} and shape {array.shape}")
    named: Arrays = dict(own)
    if len(named) < count:
        raise ProtocolError("two arrays of one name")
    return InputFile(label, named, is_image)
