"""Kernels are compiled by Numba and kept on disk, in a folder of the user's alone.

Numba pickles compiled code, and unpickling runs what a file says. So nobody but the user may be able to
write to the folder. Numba's own choices, `__pycache__`, `~/.cache/numba` and, without a home folder,
`./~/.cache/numba`, may be writable by others.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import cfunc
from numba.core import config

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.intrinsics import OPTIONS
from mdlstm_tk.cells import graph

VARIABLE = "NUMBA_CACHE_DIR"
SUBFOLDER = "kernels"
_config_lock = threading.Lock()


def compiled(function: Callable[..., None], name: str, key: str = "") -> Any:
    """Compile a C function of int64, and cache the code on disk if there is a place to write to.

    Args:
        function: the function.
        name: its name in Numba, for profilers and tracebacks.
        key: whatever the code depends on beside the sources in this folder and the name.
    """
    vectors = simd.VECTOR_BYTES, simd.TILE_ROWS, simd.TILE_VECTORS  # Numba's own key does not have them
    source = f"{_source_digest()} {vectors} {name} {key}"
    function.__name__ = name
    function.__qualname__ = f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    signature = f"void({', '.join(['int64'] * function.__code__.co_argcount)})"
    folder = cache_folder()
    if folder is not None:
        with suppress(Exception), _caching_in(folder):  # a full disk, or a damaged cache
            return cfunc(signature, cache=True, **OPTIONS)(function)
    return cfunc(signature, **OPTIONS)(function)


@cache
def _source_digest() -> str:
    """A digest of the sources that compiled code depends on. Numba itself looks only at the file and name
    of one function."""
    sources = (*sorted(Path(__file__).parent.glob("*.py")), Path(graph.__file__))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


@contextmanager
def _caching_in(folder: Path) -> Iterator[None]:
    """Let functions that are created inside this `with` statement be cached in `folder` and nowhere else.

    Numba has settings of the whole process only. They are restored, because functions of the user have a
    place of their own. The locators are set because a `.numba_config.yaml` in the current folder could name
    others, even modules to import.
    """
    settings = {"CACHE_DIR": str(folder), "CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    with _config_lock:
        user_settings = {name: getattr(config, name) for name in settings}
        vars(config).update(settings)
        try:
            yield
        finally:
            vars(config).update(user_settings)


def cache_folder() -> Path | None:
    """The folder for compiled kernels, which is created if it is missing.

    It is a subfolder of `$NUMBA_CACHE_DIR` if that is set. Otherwise it lies, below `mdlstm-tk`, in
    `$XDG_CACHE_HOME` or `~/.cache`.

    Returns:
        An absolute path. None if nothing may be kept on disk: the path that the environment names is not
        absolute, there is no home folder, the folder cannot be created, or others may write to it.
    """
    with suppress(OSError, RuntimeError):  # there is no home folder
        caches = os.environ.get("XDG_CACHE_HOME")
        base = Path(os.environ.get(VARIABLE) or Path(caches or Path.home() / ".cache", "mdlstm-tk"))
        if not base.is_absolute():
            return None
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = base / SUBFOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if _is_private(folder) and os.access(folder, os.W_OK | os.X_OK) else None
    return None


def _is_private(folder: Path) -> bool:
    """Tell whether a folder, and no link to one, belongs to the user and others cannot write to it. Windows
    has no such modes; there, a folder below the user's profile is private."""
    if sys.platform == "win32":
        return folder.resolve().is_relative_to(Path.home().resolve())
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
