"""What Linux is asked directly; elsewhere nothing is."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache

from torch import Tensor

HUGE_PAGE = 2 << 20


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def current_cpu() -> int:
    """The CPU that this thread is on; −1 where there is no telling."""
    return int(_libc().sched_getcpu()) if sys.platform == "linux" else -1


def huge_pages(tensor: Tensor) -> Tensor:
    """Ask for a big tensor's memory in pages of 2 MiB: first touching 4 KiB at a time can take as long as
    the sweep. Where there are none, or the tensor has its memory already, nothing changes."""
    start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    length = tensor.data_ptr() + tensor.nbytes - start
    if length >= HUGE_PAGE and sys.platform == "linux":
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return tensor
