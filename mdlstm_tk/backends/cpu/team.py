"""A few threads that run one kernel together, as many as `torch.set_num_threads` allows.

They are those of torch's own OpenMP pool where that is GNU's, as on Linux. Its threads stay awake
for milliseconds after each operation that used them, and threads of any other pool (Numba's too)
would have to share the cores with them. Elsewhere, and in a forked child, where OpenMP hangs, they are
threads of this module.

Either way they are woken once a sweep, and run compiled code alone (`mdlstm_tk.backends.cpu.entry`); the
barrier between wavefronts is a counter in memory (`intrinsics.wait_for`). There is one team at a time: a
sweep that finds it busy runs on its own thread. Each thread adds up gradients for itself, so they differ in
the last bits with the number of threads.
"""

from __future__ import annotations

import ctypes
import operator
import os
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from mdlstm_tk.backends.cpu.entry import COUNT, CPU, ROWS, STARTER, WANTED
from mdlstm_tk.backends.cpu.linux import current_cpu

Enter = Callable[[int], None]  # a C function, which is handed an address

_free = threading.Lock()
_forked = False


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and perhaps its lock, held by one of them."""
    global _free, _forked
    _free, _forked = threading.Lock(), True
    _queues.clear()


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


def run(entry: Any, rows: Sequence[Sequence[int]]) -> None:
    """Run a kernel with the arguments in `rows`: the first for a thread that is alone, one for each that
    shares behind it, if any do.

    Args:
        entry: a C function as `mdlstm_tk.backends.cpu.entry` has it.
    """
    size = max(1, len(rows) - 1)
    openmp = _openmp() if size > 1 and not _forked else None
    if openmp is None and not _have_workers(size - 1):
        size = 1
    head = [0] * ROWS
    head[WANTED] = size
    head[COUNT] = 0 if openmp is None else _address(openmp.omp_get_num_threads)
    head[STARTER], head[CPU] = threading.get_ident(), current_cpu() if size > 1 else -1
    data = array("q", chain(head, *rows))
    place, _ = data.buffer_info()
    if size == 1:
        entry.ctypes(place)
    elif openmp is None:
        _run_on_workers(entry.ctypes, place, size)
    else:  # what `#pragma omp parallel num_threads(size)` compiles to
        start = (ctypes.c_void_p(entry.address), ctypes.c_void_p(place))
        openmp.GOMP_parallel(*start, ctypes.c_uint(size), ctypes.c_uint(0))


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


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_queues: list[SimpleQueue[tuple[Enter, int]]] = []  # of the threads of this module


def _serve(queue: SimpleQueue[tuple[Enter, int]]) -> None:
    while True:
        enter, place = queue.get()
        enter(place)


def _have_workers(count: int) -> bool:
    """Are there so many threads of this module, now if not before?"""
    while len(_queues) < count:
        queue: SimpleQueue[tuple[Enter, int]] = SimpleQueue()
        try:
            threading.Thread(target=_serve, args=(queue,), name="mdlstm", daemon=True).start()
        except RuntimeError:  # no more threads are to be had
            return False
        _queues.append(queue)
    return True


def _run_on_workers(enter: Enter, place: int, size: int) -> None:
    tasks = [partial(queue.put, (enter, place)) for queue in _queues[: size - 1]]
    # Ctrl-C may raise between any two lines of Python, but the others need this thread, and the data for
    # as long as they run. So all is one call, from which it returns last.
    deque(map(operator.call, [*tasks, partial(enter, place + 1)]), maxlen=0)
