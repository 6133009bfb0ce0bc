"""`IsolatedReader`: input files are read, unpacked and decoded in a child process with limits."""

from __future__ import annotations

import os
import stat

import numpy as np

from mdlstm_tk.errors import InputError, StoppedError
from mdlstm_tk.runtime.io.arrays import label_of, open_input
from mdlstm_tk.runtime.io.readers import Arrays, InputFile, check_type
from mdlstm_tk.runtime.isolation.limits import Limits
from mdlstm_tk.runtime.isolation.messages import Message, ProtocolError, field
from mdlstm_tk.runtime.isolation.process import ChildProcess
from mdlstm_tk.runtime.isolation.rule import require_isolation

PIXELS = (np.uint8, np.uint16, np.float32)  # what `decode_image` returns
MAX_FAILURES = 3


class IsolatedReader:
    """Does what `read_input` does, in a child process, which only gets the open file.

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
        self._failures = 0

    def read(self, source: str) -> InputFile:
        """Read a file; arguments and errors are those of `read_input`.

        Raises:
            StoppedError: several files in a row could not be read within the limits.
        """
        label = label_of(source)
        check_type(source)
        with open_input(source) as file:
            # Whoever writes into a pipe may take any time.
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            seconds = self._limits.load_seconds if is_file else None
            try:
                result = self._ask(source, file.fileno(), seconds)
            except StoppedError as error:
                reason = self._reason(error)
                self._failures += not self._process.is_usable
                if self._failures == MAX_FAILURES:
                    raise StoppedError(
                        f"{MAX_FAILURES} files in a row could not be read; the last was {label}, {reason}",
                        error.cause,
                    ) from None
                raise InputError(f"{label} could not be read: {reason}") from None
        self._failures = 0
        return result

    def close(self) -> None:
        """End the child."""
        self._process.kill()

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, source: str, descriptor: int, seconds: float | None) -> InputFile:
        if not self._process.is_usable:
            self._process = ChildProcess("reader", self._limits)
        label = label_of(source)
        reply = self._process.ask({"source": source}, label, seconds, [descriptor])
        try:
            return self._checked(reply, label)
        except ProtocolError as error:
            raise self._process.refuse(error) from None

    def _checked(self, reply: Message, label: str) -> InputFile:
        is_image = field(reply, "is_image", bool)
        described = self._process.shared.read(reply.get("arrays"), self._limits.shared_bytes)
        arrays: Arrays = dict(described)
        if not arrays or len(arrays) < len(described):
            raise ProtocolError("no arrays, or two of one name")
        for array in arrays.values():
            is_valid = (
                array.dtype in PIXELS and array.ndim in (2, 3) if is_image else array.dtype == np.float32
            )
            if not is_valid or not array.size:
                raise ProtocolError(f"an array of {array.dtype} and shape {array.shape}")
        return InputFile(label, arrays, is_image)

    def _reason(self, error: StoppedError) -> str:
        if error.cause == "time":
            return f"it took more than {self._limits.load_seconds:g} s; allow more with --timeout"
        if error.cause == "memory":
            return f"it needed {self._limits.memory_advice()}"
        return f"the process that read it crashed ({error})"
