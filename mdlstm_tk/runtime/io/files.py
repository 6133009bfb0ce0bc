"""Write files and folders atomically: they appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdlstm_tk.errors import InputError, MDLSTMError


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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`: it replaces `path` on success and is removed on failure.

    Missing folders are created.

    Raises:
        MDLSTMError: the folder cannot be created or the file cannot be written.
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
    """Create a new file with the default mode, without reading the umask, which all threads share."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`, which is created if it is missing.

    The caller moves finished files out of it by renaming; all others are removed with it.

    Raises:
        InputError: `folder` or one of its parents is a file.
        MDLSTMError: the folder cannot be created or written.
    """
    import tempfile  # imported late: it imports modules that `mdlstm infer` does not need

    for path in (folder, *folder.parents):
        if path.is_file():
            raise InputError(f"{path} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as stage:
            yield Path(stage)
    except OSError as error:
        raise MDLSTMError(f"cannot write {folder}: {error.strerror or error}") from None
