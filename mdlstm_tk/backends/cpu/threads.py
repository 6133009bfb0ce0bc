"""Threads that share a sweep.

Work comes as *lanes*: lists of jobs that run one after another, each a call of compiled code without
Python's lock. A job may have to wait for jobs of other lanes. The calling thread works, too: it runs every
job that no other thread has begun, so it only ever waits for jobs that are running. A thread without a job
waits for a lock; none waits inside compiled code.

There is one pool per process. A sweep that finds it in use runs alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple


class Task(NamedTuple):
    """A job in a lane.

    Attributes:
        job: the address of its record.
        awaited_lane, awaited_count: the task may begin when so many tasks of that lane are done.
    """

    job: int
    awaited_lane: int
    awaited_count: int


Run = Callable[[int], object]  # runs a job, given the address of its record
Lanes = Sequence[Sequence[Task]]


class _Shared:
    """A sweep whose tasks several threads take. Its references keep alive whatever jobs read and write, for
    as long as a thread may still be at work."""

    def __init__(self, run: Run, lanes: Lanes, keep: object) -> None:
        self.run, self.lanes, self.keep = run, lanes, keep
        self.changed = threading.Condition(threading.Lock())
        self.done = [0] * len(lanes)
        self.busy = [False] * len(lanes)  # whether a thread runs a task of the lane
        self.stopped = False

    def work(self, is_caller: bool) -> None:
        """Run tasks. The caller returns when all are done, other threads when all have begun."""
        lane = None
        while True:
            with self.changed:
                if lane is not None:
                    self.done[lane] += 1
                    self.busy[lane] = False
                    self.changed.notify_all()
                while (lane := self._choose(lane, is_caller)) is None:
                    if self.stopped or self._is_over(is_caller):
                        return
                    self.changed.wait()
                self.busy[lane] = True
                task = self.lanes[lane][self.done[lane]]
            self.run(task.job)

    def _choose(self, last: int | None, is_caller: bool) -> int | None:
        """A lane whose next task may begin: if possible that of this thread's last one, whose memory is in
        its cache."""
        ready = [] if self.stopped else [*filter(self._is_ready, range(len(self.lanes)))]
        if last in ready or not ready:
            return last if ready else None
        return ready[0 if is_caller else -1]

    def _is_ready(self, lane: int) -> bool:
        done = self.done[lane]
        if self.busy[lane] or done == len(self.lanes[lane]):
            return False
        task = self.lanes[lane][done]
        return self.done[task.awaited_lane] >= task.awaited_count

    def _is_over(self, is_caller: bool) -> bool:
        """True if all tasks are done; for threads other than the caller, if all have begun."""
        return all(
            done + (busy and not is_caller) >= len(lane)
            for done, busy, lane in zip(self.done, self.busy, self.lanes, strict=True)
        )


_pool: ThreadPoolExecutor
_lock: threading.Lock  # held by the sweep that uses the pool


def _make_pool() -> None:
    """`concurrent.futures` sees to it that threads have ended before the interpreter does: one that came
    back from compiled code later would end the process with an error."""
    global _pool, _lock
    _pool, _lock = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="mdlstm"), threading.Lock()


_make_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_pool)  # a forked child has none of its parent's threads


def run_lanes(run: Run, lanes: Lanes, order: Sequence[int], keep: object) -> None:
    """Run all tasks, with a thread for each lane.

    Args:
        run: runs a job, without Python's lock.
        lanes: the tasks.
        order: the jobs in an order in which one thread may run them all.
        keep: whatever jobs read and write.
    """
    pool, lock = _pool, _lock
    if len(lanes) < 2 or not lock.acquire(blocking=False):
        for job in order:
            run(job)
        return
    shared = _Shared(run, lanes, keep)
    try:
        with suppress(RuntimeError):  # the interpreter ends, or the system has no more threads
            for _ in lanes[1:]:
                pool.submit(shared.work, is_caller=False)
        shared.work(is_caller=True)
    finally:
        with shared.changed:
            shared.stopped = True
            shared.changed.notify_all()
        lock.release()
