"""The processes that a test starts."""

from __future__ import annotations

import os
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Windows has none
    from multiprocessing.context import ForkServerContext

PRELOADED = ["mdlstm_tk.training.loop", "numba", "sklearn.datasets", "scipy.ndimage", "helpers.processes"]


@cache
def fork_server() -> ForkServerContext:
    """Processes that start quickly, as forks of one that has imported torch. The tests' own process has
    threads; forking it could leave locks that are never released."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def descendants(pid: int | None = None) -> list[int]:
    """PIDs of all live descendants, without zombies (default: of this process). Linux only, else []."""
    pid = os.getpid() if pid is None else pid
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            child = int(path.parent.name)
            pids += [child, *descendants(child)]
    return pids
