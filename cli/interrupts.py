"""Ctrl-C ends `mdlstm` with one line and exit code 130, at whatever moment it comes.

Python raises `KeyboardInterrupt` in whatever the main thread runs. Another package may turn it into an
error of its own, and where C calls back into Python it is printed and dropped. So a handler remembers that
it came, and one that was dropped comes again.
"""

from __future__ import annotations

import signal
import sys
import threading
from _thread import interrupt_main
from typing import Any

EXIT_CODE = 130
REPEAT_SECONDS = 0.05  # until an interrupt that was dropped comes again


class Interrupts:
    """The interrupts of a call of `mdlstm`.

    Attributes:
        received: whether one has come.
    """

    def __init__(self) -> None:
        self.received = False
        self._hook: Any = None  # of exceptions that nothing can catch, before ours

    def watch(self) -> None:
        """Remember interrupts from now on. Where they are ignored, as in the background jobs of a shell, or
        handled by somebody else, this stays so."""
        self.received = False
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._on_interrupt)
        if self._hook is None:
            self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable

    def end(self) -> None:
        """Let interrupts print nothing while the process ends. After one has come, the next one kills:
        something may still run that cannot be interrupted."""
        if threading.current_thread() is threading.main_thread():
            ours = signal.getsignal(signal.SIGINT) == self._on_interrupt
            if ours:
                signal.signal(signal.SIGINT, signal.SIG_DFL if self.received else signal.SIG_IGN)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        self.received = True
        raise KeyboardInterrupt

    def _on_unraisable(self, unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            again = threading.Timer(REPEAT_SECONDS, interrupt_main)
            again.daemon = True
            again.start()
        else:
            self._hook(unraisable)


interrupts = Interrupts()
