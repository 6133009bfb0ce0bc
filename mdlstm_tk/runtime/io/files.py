"""Write files and folders atomically: they appear whole or not at all.

A file that is not finished lies beside its destination under a hidden name that ends in `.mdlstm-tmp`. This
module alone makes such names, and no search of the package for models, runs, data or results matches them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdlstm_tk.errors import InputError, MDLSTMError

TEMPORARY_SUFFIX = ".mdlstm-tmp"


def ensure_writable(path: Path, force: bool) -> None:
    """Check that a file may be written, with `force` also one that exists.

    Raises:
        InputError: the file exists and `force` is false, or `path` is a folder or a device.
    """
    is_array = os.path.isfile(path / "zarr.json")  # zarr writes a folder
    exists = os.path.exists(path)  # also false where nothing can be written, which the attempt will tell
    if os.path.isdir(path) and not is_array:
        raise InputError(f"{path} is a folder, expected a file name; give one with output=...")
    if exists and not (os.path.isfile(path) or is_array):
        raise InputError(
            f"{path} is not a regular file and is never replaced; give another name with output=..."
        )
    if exists and not force:
        raise InputError(f"{path} exists; give another name with output=..., or replace it with force=True")


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
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, where the caller writes a file.

    It replaces `path` on success and is removed on failure. Missing folders are created.

    Raises:
        MDLSTMError: the folder cannot be created or the file cannot be written.
    """
    temporary = _temporary(path.parent, path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):  # it has become `path`, or was never made
            temporary.unlink()


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
    return MDLSTMError(f"cannot write {path}: {reason}; choose another place with output=...")
