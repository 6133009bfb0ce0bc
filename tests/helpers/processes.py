"""The processes that a test has started."""

from __future__ import annotations

import os
from pathlib import Path


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
