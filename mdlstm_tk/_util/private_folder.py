"""Folders for files that this package trusts, because nobody but the user can have written them.

Compiled kernels are unpickled when they are loaded, and models that were exported on this machine run
without isolation. Both rest on a folder that only the user may write to.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

Purpose = Literal["cache", "state"]

NAME = "mdlstm-tk"
XDG: dict[Purpose, tuple[str, str]] = {  # https://specifications.freedesktop.org/basedir-spec
    "cache": ("XDG_CACHE_HOME", ".cache"),
    "state": ("XDG_STATE_HOME", ".local/state"),
}
MACOS: dict[Purpose, str] = {"cache": "Library/Caches", "state": "Library/Application Support"}


def private_folder(purpose: Purpose) -> Path | None:
    """The folder of this package for one purpose, created if it is missing.

    On Linux it lies below `$XDG_CACHE_HOME` or `$XDG_STATE_HOME`, by default `~/.cache` and
    `~/.local/state`; on macOS below `~/Library`; on Windows below `%LOCALAPPDATA%`.

    Args:
        purpose: "cache" for files that can be made again, "state" for those that cannot.

    Returns:
        An absolute path. None if there is no home folder, the folder cannot be created, or `is_private` is
        false for it.
    """
    base = _base(purpose)
    if base is None or not base.is_absolute():
        return None
    folder = base / NAME
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if is_private(folder) else None
    return None


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


def _base(purpose: Purpose) -> Path | None:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else None
    variable, default = XDG[purpose]
    named = os.environ.get(variable)
    if named:
        return Path(named)
    try:
        return Path.home() / (MACOS[purpose] if sys.platform == "darwin" else default)
    except RuntimeError:  # no home folder
        return None
