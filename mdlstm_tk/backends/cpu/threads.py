"""The threads that share a sweep: how many, who does what, and how they are started.

There are as many threads as `torch.set_num_threads` allows. They are those of torch's own OpenMP pool where
that is GNU's, as on Linux: its threads stay awake for milliseconds after an operation, and threads of
another pool (also Numba's) would have to share the cores with them. Elsewhere, and in a forked child, where
OpenMP hangs, they are threads of this module.

Either way they are woken once per sweep and run only compiled code (`mdlstm_tk.backends.cpu.thread_main`);
the barrier between wavefronts is a counter in memory. There is one team per process: a sweep that finds it
busy runs on its own thread. Each thread adds up gradients for itself, so the last bits of gradients depend
on the number of threads.
"""

from __future__ import annotations

import ctypes
import operator
import os
import threading
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

from mdlstm_tk.backends.cpu.platform import current_cpu, torch_openmp
from mdlstm_tk.backends.cpu.thread_main import COUNT_FUNCTION, HEADER, STARTER, STARTER_CPU, TEAM_SIZE

# What a thread must have to do for its products to take some 50 µs and some 3 µs. Waking a thread takes 2
# µs and a barrier 0.03 µs (AMD EPYC) where each thread has a core, and far more where threads share one.
MIN_SWEEP_OPERATIONS = 5_000_000
MIN_WAVEFRONT_OPERATIONS = 300_000

Entry = Callable[[int], None]  # a C function that is given an address


class Member(NamedTuple):
    """A thread's place: its group, its place in the group, and the number of groups and of members of
    each."""

    group: int
    member: int
    groups: int
    members: int

    @property
    def thread(self) -> int:
        return self.group * self.members + self.member


ALONE = Member(0, 0, 1, 1)


class Partition(NamedTuple):
    """A division of threads into groups of equally many members.

    Groups take directions in turn and need nothing of each other. The members of a group share the rows of
    each wavefront and wait for each other after it.
    """

    groups: int
    members: int

    @property
    def threads(self) -> int:
        return self.groups * self.members


def partition(
    operations: int, fronts: int, dirs: int, threads: int, max_groups: int | None = None
) -> Partition:
    """The partition that keeps most threads busy, and of those the one with most groups.

    Each thread must have more to do than waking it costs, and each member of a group more in a wavefront
    than waiting for the others costs.

    Args:
        operations: floating-point operations of the products of one direction.
        fronts: T, the number of wavefronts.
        dirs: the number of directions.
        threads: the largest number of threads.
        max_groups: the largest number of groups.
    """
    threads = min(threads, operations * dirs // MIN_SWEEP_OPERATIONS)
    members = operations // fronts // MIN_WAVEFRONT_OPERATIONS
    candidates = [Partition(1, 1)]
    for groups in range(1, min(dirs, threads, dirs if max_groups is None else max_groups) + 1):
        if dirs % groups == 0:
            candidates.append(Partition(groups, max(1, min(members, threads // groups))))
    return max(candidates, key=lambda candidate: (candidate.threads, candidate.groups))


def run(entry: Any, division: Partition, arguments: Callable[[Member], list[int]]) -> None:
    """Run a kernel, shared by a team or on this thread alone.

    Args:
        entry: a C function as `mdlstm_tk.backends.cpu.thread_main` describes it.
        division: how threads share the work.
        arguments: from a thread's place to its arguments of the kernel.
    """
    token = object()  # marks this call as the owner of the team
    try:
        size = division.threads
        if size == 1 or _team.setdefault("owner", token) is not token:
            _run_alone(entry, arguments(ALONE))
        else:
            members = [Member(*divmod(k, division.members), *division) for k in range(size)]
            rows = [arguments(member) for member in [ALONE, *members]]
            _run_team(entry, [word for row in rows for word in row], size)
    finally:
        # Ctrl-C is raised after a call, so there may be none before the team is free, not even `_team.get`.
        if _team == {"owner": token}:
            del _team["owner"]


def _run_alone(entry: Any, arguments: list[int]) -> None:
    header = [0] * HEADER
    header[TEAM_SIZE] = 1
    data = array("q", header + arguments)
    entry.ctypes(data.buffer_info()[0])


def _run_team(entry: Any, words: list[int], size: int) -> None:
    openmp = None if _forked else torch_openmp()
    if openmp is None and not _start_workers(size - 1):
        size = 1
    header = [0] * HEADER
    header[TEAM_SIZE] = size
    header[COUNT_FUNCTION] = 0 if openmp is None else _function_address(openmp.omp_get_num_threads)
    header[STARTER], header[STARTER_CPU] = threading.get_ident(), current_cpu()
    data = array("q", header + words)
    address = data.buffer_info()[0]
    if size == 1:
        entry.ctypes(address)
    elif openmp is None:
        _run_on_workers(entry.ctypes, address, size)
    else:  # what `#pragma omp parallel num_threads(size)` compiles to
        function = (ctypes.c_void_p(entry.address), ctypes.c_void_p(address))
        openmp.GOMP_parallel(*function, ctypes.c_uint(size), ctypes.c_uint(0))


def _function_address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_team: dict[str, object] = {}  # "owner": the call that uses the team now; setdefault is atomic
_queues: list[SimpleQueue[tuple[Entry, int]]] = []  # one for each thread of this module
_forked = False


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and perhaps a team that one of them owned."""
    global _forked
    _forked = True
    _team.clear()
    _queues.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _serve(queue: SimpleQueue[tuple[Entry, int]]) -> None:
    while True:
        entry, address = queue.get()
        entry(address)


def _start_workers(count: int) -> bool:
    """Start threads of this module until there are `count`; whether there are."""
    while len(_queues) < count:
        queue: SimpleQueue[tuple[Entry, int]] = SimpleQueue()
        try:
            threading.Thread(target=_serve, args=(queue,), name="mdlstm", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            return False
        _queues.append(queue)
    return True


def _run_on_workers(entry: Entry, address: int, size: int) -> None:
    tasks = [partial(queue.put, (entry, address)) for queue in _queues[: size - 1]]
    # Ctrl-C may raise between any two lines of Python, but the other threads need this one, and the data,
    # for as long as they run. So everything is one call, from which this thread returns last.
    deque(map(operator.call, [*tasks, partial(entry, address + 1)]), maxlen=0)
