"""What an isolated process may take, and how it is made to keep to it.

Memory        On Linux the address space is limited (RLIMIT_AS), so an allocation beyond it fails. macOS
              does not enforce that limit, and CUDA reserves address space that it does not use. There a
              thread of the child ends it once its resident memory exceeds the limit.
Shared file   RLIMIT_FSIZE limits the file through which arrays come back.
Time          ONNX Runtime stops a run between two operators. The parent kills a child that does not answer
              within `GRACE_SECONDS` after that, as one operator may take any time.
Processor     RLIMIT_CPU is renewed before each request. It ends a child that nobody kills.
Orphans       A thread of the child ends it when its parent has gone.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mdlstm_tk.runtime.providers import available_memory

if sys.platform != "win32":
    import resource

BASE_BYTES = 2**30  # 64 samples of 64×64 in four directions of 32 units take some 600 MB
BYTES_PER_MAX_BYTES = 4  # the file, the parsed model, its tensors, and what a run computes
THREAD_BYTES = 80 * 2**20  # the stack of a thread, and the address space that malloc reserves for it
THREADS_PER_CORE = 8  # that are counted
MEMORY_SHARE = 0.5  # of the machine's memory, at most
SHARED_FRACTION = 4  # the shared file, and its copy in the parent, may each take this part of the memory

LOAD_SECONDS = 60.0  # for loading a model or reading a file, or the timeout if that is longer
RUN_SECONDS = 120.0  # for a run without a timeout
GRACE_SECONDS = 1.0
CPU_GRACE_SECONDS = 5.0
WATCH_SECONDS = 0.05

EXIT_MEMORY, EXIT_ORPHAN = 81, 82  # exit codes of a child that ended itself


@dataclass(frozen=True)
class Limits:
    """The limits of one child.

    Attributes:
        max_bytes: maximum size in bytes of a file and of what it holds.
        timeout: maximum duration of one run in seconds; None: `RUN_SECONDS`.
        threads: number of threads that may run at the same time; 0: one per core.
    """

    max_bytes: int
    timeout: float | None = None
    threads: int = 1

    @property
    def memory(self) -> int:
        """Bytes that the child may allocate beside what it takes once its modules are imported."""
        return min(self._wanted_memory, self._most_memory)

    @property
    def shared_bytes(self) -> int:
        """Maximum size of the shared file."""
        return self.memory // SHARED_FRACTION

    @property
    def run_seconds(self) -> float:
        """Maximum duration of a run."""
        return RUN_SECONDS if self.timeout is None else self.timeout

    @property
    def load_seconds(self) -> float:
        """Maximum duration of loading a model, or of reading a file."""
        return max(LOAD_SECONDS, self.timeout or 0)

    def cpu_seconds(self, seconds: float) -> float:
        """Maximum processor time of a request that may take `seconds`."""
        return seconds * self._thread_count + GRACE_SECONDS + CPU_GRACE_SECONDS

    @property
    def stack_bytes(self) -> int:
        """Address space of the threads, which is reserved and not used up."""
        return THREAD_BYTES * (1 + self._thread_count)

    def memory_advice(self) -> str:
        """The limit on memory, and how to allow more."""
        advice = (
            "allow more with --max-bytes"
            if self._wanted_memory < self._most_memory
            else "this machine has no more, so use a smaller batch or grid"
        )
        return f"more than {self.memory / 2**30:.1f} GiB of memory; {advice}"

    @property
    def _thread_count(self) -> int:
        cores = os.cpu_count() or 1
        return min(self.threads or cores, THREADS_PER_CORE * cores)

    @property
    def _wanted_memory(self) -> int:
        return BASE_BYTES + BYTES_PER_MAX_BYTES * self.max_bytes

    @property
    def _most_memory(self) -> int:
        memory = available_memory()
        return sys.maxsize if memory is None else int(MEMORY_SHARE * memory)


def limit_this_process(limits: Limits, parent: int, *, by_address_space: bool) -> None:
    """Apply all limits but those on time to this process, which has imported what it needs.

    Args:
        limits: what it may take.
        parent: id of the parent process.
        by_address_space: whether a limit on the address space makes sense; else resident memory is watched.
    """
    resident_limit = None
    if by_address_space and sys.platform != "darwin":
        _limit(resource.RLIMIT_AS, _statm()[0] + limits.memory + limits.shared_bytes + limits.stack_bytes)
    else:
        resident_limit = _resident_bytes() + limits.memory
    _limit(resource.RLIMIT_FSIZE, limits.shared_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    watchdog = threading.Thread(target=_watch, args=(parent, resident_limit), daemon=True)
    watchdog.start()


def limit_cpu_time(seconds: float) -> None:
    """Allow this process so many more seconds of processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    allowed = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))


def _limit(kind: int, value: int) -> None:
    """Limit this process for good, unless a stricter limit is set."""
    for limit in resource.getrlimit(kind):
        if limit != resource.RLIM_INFINITY:
            value = min(value, limit)
    with suppress(ValueError, OSError):  # the system has no such limit
        resource.setrlimit(kind, (value, value))


def _watch(parent: int, resident_limit: int | None) -> None:
    while True:
        if os.getppid() != parent:
            os._exit(EXIT_ORPHAN)
        if resident_limit is not None and _resident_bytes() > resident_limit:
            os._exit(EXIT_MEMORY)
        time.sleep(WATCH_SECONDS)


def _resident_bytes() -> int:
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss would be that of the parent if it was larger, as exec does not reset it
    return _statm()[1]


def _statm() -> tuple[int, int]:
    """Bytes of address space and of resident memory, on Linux."""
    pages = Path("/proc/self/statm").read_text().split()
    size = resource.getpagesize()
    return int(pages[0]) * size, int(pages[1]) * size
