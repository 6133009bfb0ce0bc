"""A few threads that run one kernel together, as many as `torch.set_num_threads` allows.

The threads are this module's own rather than Numba's: a sweep has hundreds of barriers, and Numba
would wake its pool for each (beside torch's, if both do not happen to share one), forbids forking
with one of its pools and concurrent calls with the other. Here the pool is woken once a sweep, the
barriers are a counter in memory (`intrinsics.wait_for`), a forked child starts its own, and a second
sweep at the same time simply runs on its own thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

Part = Callable[[int], object]


class _Worker:
    """A thread that runs what it is handed, one after the other."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Part, int, int]] = SimpleQueue()
        self._done = threading.Semaphore(0)
        threading.Thread(target=self._loop, name="mdlstm", daemon=True).start()

    def _loop(self) -> None:
        while True:
            part, index, cpu = self._tasks.get()
            try:
                _leave(cpu)
                part(index)
            finally:
                del part  # it holds the sweep's tensors
                self._done.release()

    def start(self, part: Part, index: int, cpu: int) -> None:
        """Hand it `part(index)`, to be run on another CPU than that."""
        self._tasks.put((part, index, cpu))

    def finish(self) -> None:
        self._done.acquire()


def _cpu() -> int:
    """The CPU that this thread is on; −1 where there is no telling."""
    if not hasattr(os, "sched_setaffinity"):
        return -1
    return int(ctypes.CDLL(None).sched_getcpu())


def _leave(cpu: int) -> None:
    """Move this thread to another CPU if it is on that one.

    Linux wakes a thread where it last ran if all CPUs have been busy of late, and then keeps threads
    that wait for each other together, since each has run a moment ago: two could share one CPU for
    good and leave another idle.
    """
    if cpu < 0:
        return
    allowed = os.sched_getaffinity(0)
    if allowed - {cpu}:
        os.sched_setaffinity(0, allowed - {cpu})
        os.sched_setaffinity(0, allowed)


class Team:
    """`size` threads: the caller's and those of some workers.

    Attributes:
        size: how many there are.
    """

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers
        self.size = 1 + len(workers)

    def run(self, part: Part) -> None:
        """Call `part(0)`, …, `part(size - 1)`, all at once: each may wait for the others."""
        cpu = _cpu() if self._workers else -1
        for index, worker in enumerate(self._workers):
            worker.start(part, index + 1, cpu)
        part(0)
        for worker in self._workers:
            worker.finish()


_workers: list[_Worker] = []
_free = threading.Lock()


def _forget() -> None:
    """A forked child has none of its parent's threads, and perhaps its lock, held by one of them."""
    global _workers, _free
    _workers, _free = [], threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def team(size: int) -> Iterator[Team]:
    """A team of `size` threads, or of one while there is another team."""
    lock = _free
    if size == 1 or not lock.acquire(blocking=False):
        yield Team([])
        return
    try:
        while len(_workers) < size - 1:
            _workers.append(_Worker())
        yield Team(_workers[: size - 1])
    finally:
        lock.release()
