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
_locks = set[int]()  # the folders that `locked` holds open


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
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.name == "posix":
            lock = os.open(folder, os.O_RDONLY)
            _locks.add(lock)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    try:
        if os.name == "posix" and lock is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MDLSTMError(f"another process works in {folder}; wait for it, or {advice}") from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        if lock in _locks:  # it is closed in a process that was forked
            _locks.remove(lock)
            os.close(lock)


def _leave_locks() -> None:
    """Close the folders in a process that was forked, such as one that prepares batches: it may live longer
    than this one, and a lock lasts until the last of them has closed its folder."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


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
