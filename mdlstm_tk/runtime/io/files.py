"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdlstm_tk.errors import InputError, MDLSTMError


def ensure_writable(path: Path, force: bool) -> None:
    """Make sure that `path` may be written.

    Raises:
        InputError: it exists and `force` is false, or it is no file: a folder or a device.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file name; give one with -o")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file and is not replaced; give another name with -o")
    if path.exists() and not force:
        raise InputError(f"{path} exists; give another name with -o, or --force to replace it")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place on success and is removed on failure.

    Raises:
        MDLSTMError: the folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name[:50]}.{os.urandom(4).hex()}{path.suffix[:20]}")
    try:
        try:
            _create(temporary)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(temporary)
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


def _create(path: Path) -> None:
    """Make a new file with the mode that any has: the umask, which all threads share, is left alone."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, which is made if need be: what is whole is moved out of it by
    renaming, and what is left goes with it.

    Raises:
        InputError: `folder`, or one above it, is a file.
        MDLSTMError: it cannot be made or written.
    """
    import tempfile  # which brings much along that `infer` does not need

    for path in (folder, *folder.parents):
        if path.is_file():
            raise InputError(f"{path} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as stage:
            yield Path(stage)
    except OSError as error:
        raise MDLSTMError(f"cannot write {folder}: {error.strerror or error}") from None
