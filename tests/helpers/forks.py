"""Processes that start quickly, as forks of one that has imported torch, which takes seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Windows has none
    from multiprocessing.context import ForkServerContext

PRELOADED = ["mdlstm_tk.training.loop", "mdlstm_tk.export", "mdlstm_tk.report", "numba", "onnxruntime"]
PRELOADED += ["sklearn.datasets", "scipy.ndimage", "helpers.forks"]


@cache
def processes() -> ForkServerContext:
    """Their context. The tests' own process has threads; forking it could leave locks that are never
    released."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def kill_at(name: str, function: Callable[..., object], *arguments: Any, cwd: Path) -> None:
    """Call a function in a process that is killed when it is about to move a finished file to `name`.

    That is the worst moment: everything is written under a temporary name, and nothing under its own.
    """
    process = processes().Process(target=_killed, args=(name, cwd, function, arguments))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _killed(name: str, cwd: Path, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    def killed_by(move: Callable[..., None]) -> Callable[..., None]:
        def kill(source: Any, target: Any, **options: Any) -> None:
            if str(target).endswith(name):
                os.kill(os.getpid(), signal.SIGKILL)
            move(source, target, **options)

        return kill

    os.replace, os.rename, os.link = map(killed_by, (os.replace, os.rename, os.link))
    os.chdir(cwd)
    function(*arguments)
