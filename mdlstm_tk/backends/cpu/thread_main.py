"""Where each thread enters a kernel: compiled, so that no thread waits for Python's lock.

A run is described by int64 in one piece: the words named here, then rows of the kernel's arguments. Row 0
    is
used when a thread runs alone; rows 1, 2, … are those of the members of a team.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu.intrinsics import (
    as_int_ptr,
    atomic_fetch_add,
    barrier_wait,
    call_address,
    ptr_add,
)
from mdlstm_tk.backends.cpu.jit import jit

ENTERED = 0  # how many threads have entered
TEAM_SIZE = 1  # how many threads are to share the work
COUNT_FUNCTION = 2  # address of `int f(void)`, the number of threads there are; 0: as many as TEAM_SIZE
STARTER = 3  # identity of the thread that starts the others
STARTER_CPU = 4  # the CPU it runs on, or −1
EXITED = 5  # how many threads have finished
HEADER = 16  # words before the arguments

MASK_WORDS = 16  # of a set of 1024 CPUs


def _kernel(dtype_tag: Any, *arguments: int) -> None:
    """The kernel; each specialised function has its own in place of this one."""
    raise NotImplementedError


def _load_arguments(pointer: Any) -> Any:
    """Load the kernel's arguments from memory; each specialised function has its own."""
    raise NotImplementedError


ARGUMENTS = 0  # how many arguments the kernel takes; each specialised function has its own value
DTYPE_TAG = 0.0  # tells the kernel its dtype; each specialised function has its own value


def thread_main(data):  # type: ignore[no-untyped-def]
    """What every thread runs: a template, see `mdlstm_tk.backends.cpu.compile`.

    The threads of a kernel wait for each other. So if fewer threads came than TEAM_SIZE, the first one does
    all the work alone. A thread that is given the data's address + 1 returns only after all others have.
    """
    waits_for_all = data & 1
    header = as_int_ptr(data - waits_for_all)
    team_size = header[TEAM_SIZE]
    thread = atomic_fetch_add(ptr_add(header, ENTERED))
    row = 0
    if team_size > 1:
        if header[COUNT_FUNCTION] and call_address(header[COUNT_FUNCTION]) != team_size:
            if thread > 0:
                return
        else:
            row = 1 + thread
            migrate_off_cpu(header[STARTER], header[STARTER_CPU])
    _kernel(DTYPE_TAG, *_load_arguments(ptr_add(header, HEADER + row * ARGUMENTS)))
    if waits_for_all:
        barrier_wait(ptr_add(header, EXITED), team_size)
    else:
        atomic_fetch_add(ptr_add(header, EXITED))


@intrinsic  # type: ignore[untyped-decorator]
def _new_cpu_mask(_: Any) -> Any:
    """Uninitialised memory for a set of CPUs."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return cgutils.alloca_once(builder, ir.IntType(64), size=MASK_WORDS)

    return types.CPointer(types.int64)(), build


if sys.platform == "linux":
    _thread_identity = types.ExternalFunction("pthread_self", types.int64())
    _current_cpu = types.ExternalFunction("sched_getcpu", types.int32())
    _mask_signature = types.int32(types.int32, types.int64, types.CPointer(types.int64))
    _get_affinity = types.ExternalFunction("sched_getaffinity", _mask_signature)
    _set_affinity = types.ExternalFunction("sched_setaffinity", _mask_signature)

    @jit
    def migrate_off_cpu(starter, cpu):  # type: ignore[no-untyped-def]
        """Move this thread to another CPU if it runs on that of the starter.

        If all CPUs were busy of late, Linux wakes a thread where it last ran. It then keeps threads that
        wait
        for each other there, since each of them has just run: two could share one CPU for good while
            another
        one idles. A sweep then takes 4 to 20 times as long (docs/performance.md).
        """
        if cpu < 0 or _current_cpu() != cpu or _thread_identity() == starter:
            return
        allowed = _new_cpu_mask()
        if _get_affinity(0, 8 * MASK_WORDS, allowed) < 0:
            return
        bit = 1 << cpu % 64
        allowed[cpu // 64] ^= bit
        others = 0
        for word in range(MASK_WORDS):
            others |= allowed[word]
        if others != 0:
            _set_affinity(0, 8 * MASK_WORDS, allowed)
            allowed[cpu // 64] ^= bit
            _set_affinity(0, 8 * MASK_WORDS, allowed)

else:

    @jit
    def migrate_off_cpu(starter, cpu):  # type: ignore[no-untyped-def]
        """Do nothing: here a thread cannot tell its CPU."""
