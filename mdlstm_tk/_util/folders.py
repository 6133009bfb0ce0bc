"""Folders that one process at a time writes, and that appear whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdlstm_tk.errors import MDLSTMError

if os.name == "posix":
    import fcntl

TEMPORARY_SUFFIX = ".mdlstm-tmp"
_locks: set[int] = set()  # descriptors that this process holds


def _leave_locks() -> None:
    """Close the copies of a forked process, such as a loader's worker, which outlives a killed one."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def is_empty(folder: Path) -> bool:
    """True if a folder does not exist, or holds nothing but temporary files."""
    try:
        return all(name.endswith(TEMPORARY_SUFFIX) for name in os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        raise _cannot_write(folder, error) from None


@contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Create a folder if it is missing, and hold a lock on it, which ends with this process at the latest.
    On Windows and on file systems without locks nothing is held.

    Raises:
        MDLSTMError: another process, or another call in this one, holds the lock; the message ends with the
            advice. Or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    except OSError as error:
        raise _cannot_write(folder, error) from None
    if lock is None:
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MDLSTMError(f"another process works in {folder}; wait for it, or {advice}") from None
        _locks.add(lock)
        yield
    finally:
        _locks.discard(lock)
        os.close(lock)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`, which is created if it is missing. The caller moves
    finished files out of it by renaming; all others are removed with it.

    Raises:
        MDLSTMError: the folder cannot be created or written.
    """
    stage = folder / f".staging.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
    try:
        stage.mkdir(parents=True)
        yield stage
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:
        with suppress(OSError):
            shutil.rmtree(stage)


def _cannot_write(path: Path, error: OSError) -> MDLSTMError:
    return MDLSTMError(f"cannot write {path}: {error.strerror or error}; choose another path")
