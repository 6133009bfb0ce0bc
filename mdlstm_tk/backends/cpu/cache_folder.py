"""The folder that keeps compiled kernels between processes. Imports nothing but the standard library.

Numba pickles compiled code, and unpickling runs what a file says. So nobody but the user may be able to
write to the folder. Numba's own choices, `__pycache__`, `~/.cache/numba` and, without a home folder,
`./~/.cache/numba`, may be writable by others.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
SUBFOLDER = "kernels"


def cache_folder() -> Path | None:
    """The folder for compiled kernels, which is created if it is missing.

    It is a subfolder of `$NUMBA_CACHE_DIR` if that is set. Otherwise it lies, below `mdlstm-tk`, in
    `$XDG_CACHE_HOME` or `~/.cache`, on macOS in `~/Library/Caches`, on Windows in `%LOCALAPPDATA%`.

    Returns:
        An absolute path. None if nothing may be kept on disk: the path that the environment names is not
        absolute, there is no home folder, the folder cannot be created, or `is_private` is false for it.
    """
    base = _base()
    if base is None or not base.is_absolute():
        return None
    with suppress(OSError):
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = base / SUBFOLDER
        folder.mkdir(mode=0o700, exist_ok=True)  # the umask may let others read or write Numba's own files
        return folder if is_private(folder) and os.access(folder, os.W_OK | os.X_OK) else None
    return None


def _base() -> Path | None:
    if path := os.environ.get(VARIABLE):
        return Path(path)
    caches = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    if not caches and sys.platform != "win32":
        with suppress(RuntimeError):  # no home folder
            caches = str(Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache"))
    return Path(caches, "mdlstm-tk") if caches else None


def is_private(folder: Path) -> bool:
    """Tell whether a folder exists, belongs to the user and cannot be written to by others.

    The folders above it are checked, too, as whoever may rename one of them can put another in its place.
    Those may belong to the system's administrator, and may be writable by all if they are sticky, as /tmp
    is. A group may write if it is the user's own, as some distributions set it up: it has the user's name
    and no other member. On Windows, where permissions are not readable as modes, a folder below the user's
    profile is private.
    """
    try:
        real = folder.resolve(strict=True)
        if sys.platform == "win32":
            return real.is_dir() and real.is_relative_to(Path.home().resolve())
        status = real.stat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        return not _others_may_write(status) and all(map(_is_safe_parent, real.parents))
    except (OSError, RuntimeError):  # RuntimeError: no home folder, or a loop of links
        return False


def _is_safe_parent(folder: Path) -> bool:
    status = folder.stat()
    is_sticky = bool(status.st_mode & stat.S_ISVTX)
    return status.st_uid in (0, os.geteuid()) and (is_sticky or not _others_may_write(status))


def _others_may_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status.st_gid)


def _is_own_group(number: int) -> bool:
    """Tell whether a group is the one that the system made for this user alone."""
    import grp  # not on Windows
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    is_named_alike = user.pw_name == group.gr_name and user.pw_gid == number
    return is_named_alike and set(group.gr_mem) <= {user.pw_name}
