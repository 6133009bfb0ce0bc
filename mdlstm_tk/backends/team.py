"""A few threads that run one kernel together, as many as `torch.set_num_threads` allows.

They are those of torch's own OpenMP pool where that is GNU's, as on Linux. Its threads stay awake
for milliseconds after each operation that used them, and threads of any other pool (Numba's too)
would have to share the cores with them. Elsewhere, and in a forked child, where OpenMP hangs, they are
threads of this module.

Either way they are woken once a sweep; the barrier between wavefronts is a counter in memory
(`intrinsics.wait_for`). There is one team at a time: a sweep that finds it busy runs on its own thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import torch

Part = Callable[[int, int], object]  # of (which, of how many)

_free = threading.Lock()
_forked = False


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and perhaps its lock, held by one of them."""
    global _free, _forked
    _free, _forked = threading.Lock(), True
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def team(size: int) -> Iterator[int]:
    """Reserve up to `size` threads for `run`: the block gets how many there are, 1 if others have them."""
    lock = _free
    if size == 1 or not lock.acquire(blocking=False):
        yield 1
        return
    try:
        yield size
    finally:
        lock.release()


def run(part: Part, size: int) -> None:
    """Call `part(k, m)` for all k < m at once: each may wait for the others. m is `size`, or 1 where there
    are fewer threads than that."""
    if size == 1:
        part(0, 1)
        return
    cpu = _cpu()

    def moved_part(index: int, count: int) -> None:
        if index > 0:
            _leave(cpu)
        part(index, count)

    openmp = None if _forked else _openmp()
    if openmp is None:
        _run_on_workers(moved_part, size)
    else:
        _run_on_openmp(openmp, moved_part, size)


@cache
def _openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch has loaded, if it has. Other packages may have one as well."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    loaded = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    folder = Path(torch.__file__).parent
    homes = (folder / "lib", folder.with_name("torch.libs"))
    own = [path for path in loaded if Path(path).parent in homes]
    return ctypes.CDLL(own[0]) if len(own) == 1 else None


_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _run_on_openmp(openmp: ctypes.CDLL, part: Part, size: int) -> None:
    """What `#pragma omp parallel num_threads(size)` compiles to."""
    errors: list[BaseException] = []

    def body(_: object) -> None:
        try:
            index, count = openmp.omp_get_thread_num(), openmp.omp_get_num_threads()
            if count == size:
                part(index, size)
            elif index == 0:
                part(0, 1)
        except BaseException as error:  # ctypes would only print it
            errors.append(error)

    openmp.GOMP_parallel(_Body(body), None, ctypes.c_uint(size), ctypes.c_uint(0))
    if errors:
        raise errors[0]


class _Worker:
    """A thread that runs what it is handed, one after the other."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Part, int, int]] = SimpleQueue()
        self._done = threading.Semaphore(0)
        threading.Thread(target=self._loop, name="mdlstm", daemon=True).start()

    def _loop(self) -> None:
        while True:
            part, index, size = self._tasks.get()
            try:
                part(index, size)
            finally:
                del part  # it holds the sweep's tensors
                self._done.release()

    def start(self, part: Part, index: int, size: int) -> None:
        self._tasks.put((part, index, size))

    def finish(self) -> None:
        self._done.acquire()


_workers: list[_Worker] = []


def _run_on_workers(part: Part, size: int) -> None:
    while len(_workers) < size - 1:
        _workers.append(_Worker())
    for index, worker in enumerate(_workers[: size - 1]):
        worker.start(part, index + 1, size)
    part(0, size)
    for worker in _workers[: size - 1]:
        worker.finish()


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
