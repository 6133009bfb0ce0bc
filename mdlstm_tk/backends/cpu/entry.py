"""Where each thread of a team enters a kernel: compiled, so that none of them waits for Python's lock.

The team's data are int64 in one piece: the words named here, then the kernel's arguments, a row for a
thread that is alone, then one for each that shares.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu.intrinsics import as_integers, call, count_up, moved, wait_for
from mdlstm_tk.backends.cpu.jit import jit

ENTERED = 0  # how many threads have entered
WANTED = 1  # how many are to share
COUNT = 2  # the address of `int f(void)`, which says how many there are, or 0: as many as are wanted
STARTER = 3  # the identity of the thread that starts the others
CPU = 4  # which that one is on, −1 where there is no telling
LEFT = 5  # how many threads have left
ROWS = 16  # where the arguments start

MASK = 16  # words of a set of CPUs, 1024 of them


def _kernel(zero: Any, *arguments: int) -> None:
    """The kernel; each entry has its own in place of this."""
    raise NotImplementedError


def _arguments(pointer: Any) -> Any:
    """Those of the kernel, from memory; likewise."""
    raise NotImplementedError


ARGUMENTS = 0  # how many there are; likewise
ZERO = 0.0  # by which the kernel knows its dtype; likewise


def enter(data):  # type: ignore[no-untyped-def]
    """What each thread runs: a template, see `mdlstm_tk.backends.cpu.compile`.

    The kernel's threads wait for each other, so where fewer have come than are wanted, the first does it
    all alone. A thread that is given the data's address + 1 leaves last.
    """
    last = data & 1
    head = as_integers(data - last)
    wanted = head[WANTED]
    thread = count_up(moved(head, ENTERED))
    row = 0
    if wanted > 1:
        if head[COUNT] and call(head[COUNT]) != wanted:
            if thread > 0:
                return
        else:
            row = 1 + thread
            leave(head[STARTER], head[CPU])
    _kernel(ZERO, *_arguments(moved(head, ROWS + row * ARGUMENTS)))
    if last:
        wait_for(moved(head, LEFT), wanted)
    else:
        count_up(moved(head, LEFT))


@intrinsic  # type: ignore[untyped-decorator]
def _mask(_: Any) -> Any:
    """Room for a set of CPUs."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return cgutils.alloca_once(builder, ir.IntType(64), size=MASK)

    return types.CPointer(types.int64)(), build


if sys.platform == "linux":
    _identity = types.ExternalFunction("pthread_self", types.int64())
    _current_cpu = types.ExternalFunction("sched_getcpu", types.int32())
    _of_mask = types.int32(types.int32, types.int64, types.CPointer(types.int64))
    _get_cpus = types.ExternalFunction("sched_getaffinity", _of_mask)
    _set_cpus = types.ExternalFunction("sched_setaffinity", _of_mask)

    @jit
    def leave(starter, cpu):  # type: ignore[no-untyped-def]
        """Move this thread to another CPU if it is on that one and is not the starter, whose CPU it is.

        Linux wakes a thread where it last ran if all CPUs have been busy of late, and then keeps
        threads that wait for each other together, since each has run a moment ago: two could share one
        CPU for good and leave another idle.
        """
        if cpu < 0 or _current_cpu() != cpu or _identity() == starter:
            return
        allowed = _mask()
        if _get_cpus(0, 8 * MASK, allowed) < 0:
            return
        bit = 1 << cpu % 64
        allowed[cpu // 64] ^= bit
        others = 0
        for word in range(MASK):
            others |= allowed[word]
        if others != 0:
            _set_cpus(0, 8 * MASK, allowed)
            allowed[cpu // 64] ^= bit
            _set_cpus(0, 8 * MASK, allowed)

else:

    @jit
    def leave(starter, cpu):  # type: ignore[no-untyped-def]
        """Stay: nothing here tells which CPU a thread is on."""
