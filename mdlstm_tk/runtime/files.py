"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdlstm_tk.errors import InputError, MDLSTMError


def check_free(path: Path, force: bool) -> None:
    """Make sure that `path` may be written.

    Raises:
        InputError: it exists and `force` is false, or it is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file name; give one with -o")
    if path.exists() and not force:
        raise InputError(f"{path} exists; give another name with -o, or --force to replace it")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place on success and is removed on failure.

    Raises:
        MDLSTMError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        reason = error.strerror or error
        raise MDLSTMError(f"cannot write {path}: {reason}; choose another place with -o") from None
    temporary = Path(name)
    try:
        yield temporary
        mode = 0o666 & ~_umask()
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        raise MDLSTMError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, which is made if need be: what is whole is moved out of it by
    renaming, and what is left goes with it.

    Raises:
        InputError: `folder`, or one above it, is a file.
        MDLSTMError: it cannot be made or written.
    """
    for path in (folder, *folder.parents):
        if path.is_file():
            raise InputError(f"{path} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as stage:
            yield Path(stage)
    except OSError as error:
        raise MDLSTMError(f"cannot write {folder}: {error.strerror or error}") from None


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
