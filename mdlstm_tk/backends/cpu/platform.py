"""What the CPU backend asks of the operating system beyond what Python and torch offer.

Each of these can be switched off by an environment variable (docs/performance.md has the figures):

    MDLSTM_HUGE_PAGES=0     do not ask for large tensors in pages of 2 MiB
    MDLSTM_TORCH_OPENMP=0   do not run on the threads of torch's OpenMP, but on threads of our own
    MDLSTM_MIGRATE=0        do not move a thread away from the CPU of the thread that waits for it
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20


@cache
def enabled(name: str) -> bool:
    """Whether a switch is on, which it is unless its environment variable is 0."""
    return os.environ.get(name, "1") != "0"


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def current_cpu() -> int:
    """The CPU that this thread runs on; −1 where that cannot be told, or threads must not be moved."""
    if sys.platform != "linux" or not enabled("MDLSTM_MIGRATE"):
        return -1
    return int(_libc().sched_getcpu())


def use_huge_pages(tensor: Tensor) -> Tensor:
    """Ask for the memory of a large new tensor in pages of 2 MiB.

    Touching fresh memory in pages of 4 KiB can take as long as the sweep. Nothing changes where there are
    no such pages, or the tensor has its memory already.
    """
    if tensor.nbytes < HUGE_PAGE or sys.platform != "linux" or not enabled("MDLSTM_HUGE_PAGES"):
        return tensor
    start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    length = tensor.data_ptr() + tensor.nbytes - start
    if length >= HUGE_PAGE:
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return tensor


@cache
def torch_openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch has loaded, if it has.

    Other packages may have loaded one of their own, so the one in torch's folder is looked for among the
    files that are mapped into this process.
    """
    if not enabled("MDLSTM_TORCH_OPENMP"):
        return None
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    folder = Path(torch.__file__).resolve().parent
    homes = (folder / "lib", folder.with_name("torch.libs"))
    lines = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line)
    # A library that was replaced on disk after it was loaded is listed as "(deleted)" and cannot be opened.
    loaded = {Path(line).resolve() for line in lines if not line.endswith("(deleted)")}
    own = [path for path in loaded if path.parent in homes]
    try:
        return ctypes.CDLL(str(own[0])) if len(own) == 1 else None
    except OSError:
        return None
