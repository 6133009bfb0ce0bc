"""Write files and folders atomically: they appear whole or not at all.

A file that is not finished lies beside its destination under a hidden name that ends in `.mdlstm-tmp`. This
module alone makes such names, and no search of the package for models, runs, data or results matches them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE

from mdlstm_tk._util.text import printable
from mdlstm_tk.errors import Argument, InputError, MDLSTMError

if os.name == "posix":
    import fcntl

TEMPORARY_SUFFIX = ".mdlstm-tmp"

_locks = set[int]()  # the folders that `locked` holds open


class ExistsError(InputError):
    """A file exists that may not be replaced."""


def _exists(path: Path) -> ExistsError:
    return ExistsError(f"{path} exists; give another path, or replace it with ", Argument("force", True))


def ensure_writable(path: Path, force: bool, is_zarr: bool = False) -> None:
    """Check that a file may be written, with `force` also one that exists, or the folder of a zarr array if
    `is_zarr`.

    Raises:
        InputError: the file exists and `force` is false, or `path` is a folder or a device.
    """
    is_array = is_zarr and os.path.isfile(path / "zarr.json")
    exists = os.path.exists(path)  # also false where nothing can be written, which the attempt will tell
    if os.path.isdir(path) and not is_array:
        raise InputError(f"{path} is a folder, expected a file name")
    if exists and not (os.path.isfile(path) or is_array):
        raise InputError(f"{path} is not a regular file and is never replaced; give another path")
    if exists and not force:
        raise _exists(path)


def is_empty(folder: Path) -> bool:
    """True if a folder does not exist, or holds nothing but temporary files.

    Raises:
        MDLSTMError: the folder cannot be read.
    """
    try:
        return all(name.endswith(TEMPORARY_SUFFIX) for name in os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        raise cannot_write(folder, error) from None


@contextmanager
def locked(folder: Path, *advice: object) -> Iterator[None]:
    """Create a folder if it is missing, and hold a lock on it, which ends with this process at the latest.
    On Windows and on file systems without locks nothing is held.

    Args:
        folder: the folder.
        *advice: what to do instead of waiting, in the error.

    Raises:
        MDLSTMError: another process, or another call in this one, holds the lock; or the folder cannot be
            created or opened.
    """
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.name == "posix":
            lock = os.open(folder, os.O_RDONLY)
            _locks.add(lock)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        if os.name == "posix" and lock is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = f"another process works in {folder}; wait for it, or "
                raise MDLSTMError(text, *advice) from None
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
def atomic_write(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path, where the caller writes a file that becomes `path` on success.

    It is removed on failure. Missing folders are created. Of a symbolic link, the file that it leads to is
    written, and a file that is replaced keeps its permissions, as with other tools.

    Args:
        path: the file.
        replace: it may exist by now.

    Raises:
        InputError: the file exists, and `replace` is false; or no file can have its name.
        MDLSTMError: the folder cannot be created or the file cannot be written.
    """
    try:
        real = Path(os.path.realpath(path))
    except ValueError as error:  # it holds a null character
        raise InputError(f"cannot write {printable(path)}: {error}; choose another path") from None
    temporary = _temporary(real.parent, real.name)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        if real.is_file():  # until it is written, nobody may read what nobody may read later
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        publish(temporary, real, replace=replace)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):  # it has become `path`, or was never made
            temporary.unlink()


def publish(temporary: Path, path: Path, *, replace: bool) -> None:
    """Give a finished file, or the folder of a zarr array, its name on the same file system. Such a folder
    replaces another one, a file does not.

    Raises:
        ExistsError: `path` exists, and `replace` is false.
        OSError: the folder may not be written, or `path` is a folder and not both are zarr arrays.
    """
    import shutil  # imported late: it imports modules that `mdlstm infer` does not need

    if replace and os.path.isdir(temporary) and os.path.isfile(path / "zarr.json"):
        old = _temporary(path.parent, path.name)
        os.rename(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
        return
    try:
        if replace:
            with suppress(OSError):  # there is no file yet, or the file system has no permissions
                os.chmod(temporary, S_IMODE(os.stat(path).st_mode))
            os.replace(temporary, path)
        elif os.path.isdir(temporary):
            os.rename(temporary, path)  # never replaces a file or what a folder holds
        else:
            _link(temporary, path)
    except OSError:
        if not replace and os.path.lexists(path):
            raise _exists(path) from None
        raise


def _link(temporary: Path, path: Path) -> None:
    """Give a file a second name, which no other file may have."""
    try:
        os.link(temporary, path)
    except OSError:  # perhaps a file system without links: take the name first, and fill it then
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.replace(temporary, path)
        except OSError:
            os.unlink(path)
            raise


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
        if os.path.isfile(path):
            raise InputError(f"{path} is a file, expected a folder")
    stage = _temporary(folder, "staging")
    try:
        stage.mkdir(parents=True)
        yield stage
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _temporary(folder: Path, name: str) -> Path:
    return folder / f".{name[:50]}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"


def cannot_write(path: Path, error: OSError) -> MDLSTMError:
    """The error for a file that cannot be written."""
    reason = error.strerror or error
    return MDLSTMError(f"cannot write {path}: {reason}; choose another path")
