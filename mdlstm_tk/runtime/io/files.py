"""Write files and folders atomically: they appear whole or not at all.

What is not finished lies beside its destination under a hidden name that ends in `.mdlstm-tmp`. This module
alone makes such names, and no search of the package for models, runs, data or results matches them. The
writing process holds a lock on it (flock), which the operating system releases when the process ends, even
by SIGKILL. What another process can lock is therefore abandoned; the first write into a folder removes it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdlstm_tk.errors import InputError, MDLSTMError

if sys.platform != "win32":
    import fcntl

TEMPORARY_SUFFIX = ".mdlstm-tmp"
UNLOCKED_AGE = 24 * 3600  # seconds after which a temporary file is abandoned where files cannot be locked

_swept: set[str] = set()  # folders in which this process has looked for abandoned files


def ensure_writable(path: Path, force: bool) -> None:
    """Check that `path` may be written.

    Args:
        path: the file to write.
        force: allow an existing file to be replaced.

    Raises:
        InputError: the file exists and `force` is false, or `path` is a folder or a device.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file name; give one with -o")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file and is never replaced; give another name with -o")
    if path.exists() and not force:
        raise InputError(f"{path} exists; give another name with -o, or --force to replace it")


def is_empty(folder: Path) -> bool:
    """Whether a folder does not exist, or holds nothing but temporary files."""
    return not folder.is_dir() or all(path.name.endswith(TEMPORARY_SUFFIX) for path in folder.iterdir())


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`: it replaces `path` on success and is removed on failure.

    Missing folders are created.

    Raises:
        MDLSTMError: the folder cannot be created or the file cannot be written.
    """
    try:
        _sweep_once(path.parent)
        try:
            temporary, lock = _create(path.parent, path.name, is_folder=False)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary, lock = _create(path.parent, path.name, is_folder=False)
    except OSError as error:
        reason = error.strerror or error
        raise MDLSTMError(f"cannot write {path}: {reason}; choose another place with -o") from None
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise MDLSTMError(f"cannot write {path}: {error.strerror or error}") from None
        raise
    finally:
        _unlock(lock)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`, which is created if it is missing.

    The caller moves finished files out of it by renaming; all others are removed with it.

    Raises:
        InputError: `folder` or one of its parents is a file.
        MDLSTMError: the folder cannot be created or written.
    """
    import shutil  # imported late: it imports modules that `mdlstm infer` does not need

    for path in (folder, *folder.parents):
        if path.is_file():
            raise InputError(f"{path} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep_once(folder)
        stage, lock = _create(folder, "staging", is_folder=True)
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            _unlock(lock)
    except OSError as error:
        reason = error.strerror or error
        raise MDLSTMError(f"cannot write {folder}: {reason}; choose another place with -o") from None


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` whose processes have ended.

    `atomic_write` and `staging` call it once for each folder and process. What cannot be removed stays.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.endswith(TEMPORARY_SUFFIX)]
    except OSError:
        return
    for entry in found:
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or entry.is_file(follow_symlinks=False):
                _remove_if_abandoned(entry.path, is_folder)
        except OSError:  # another process was faster, or the file is not ours
            continue


def _sweep_once(folder: Path) -> None:
    path = os.path.abspath(folder)
    if path not in _swept:
        _swept.add(path)
        remove_abandoned(folder)


def _remove_if_abandoned(path: str, is_folder: bool) -> None:
    try:
        lock = _lock(path, wait=False)
    except BlockingIOError:  # its process lives
        return
    try:
        if lock is None and time.time() - os.stat(path).st_mtime < UNLOCKED_AGE:
            return
        if is_folder:
            import shutil

            shutil.rmtree(path)
        else:
            os.unlink(path)
    finally:
        _unlock(lock)


def _create(folder: Path, name: str, is_folder: bool) -> tuple[Path, int | None]:
    """Create a temporary file or folder; return its path and the descriptor of its lock."""
    while True:
        path = folder / f".{name[:50]}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
        if is_folder:
            path.mkdir(mode=0o700)
        else:
            path.touch(exist_ok=False)
        try:
            lock = _lock(str(path), wait=True)
        except FileNotFoundError:
            continue  # another process removed it before it was locked
        if path.exists():
            return path, lock
        _unlock(lock)


def _lock(path: str, wait: bool) -> int | None:
    """Lock a file or folder, and return the descriptor that holds the lock; None if it cannot be locked.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
        FileNotFoundError: there is no such file.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except PermissionError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a file system without locks
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
