"""The folder that keeps compiled kernels between processes. Imports nothing but the standard library.

Numba pickles compiled code, and unpickling runs what a file says. Its own choices, `__pycache__`,
`~/.cache/numba` and, without a home folder, `./~/.cache/numba`, may be writable by others.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mdlstm_tk._util.private_folder import is_private, private_folder

VARIABLE = "NUMBA_CACHE_DIR"
SUBFOLDER = "kernels"


def cache_folder() -> Path | None:
    """The folder for compiled kernels, which is created if it is missing.

    It is a subfolder of `$NUMBA_CACHE_DIR` if that is set, else of `private_folder("cache")`.

    Returns:
        An absolute path. None if nothing may be kept on disk: the variable is no absolute path, there is no
        home folder, the folder cannot be created, or others may write to it.
    """
    named = os.environ.get(VARIABLE)
    base = Path(named) if named else private_folder("cache")
    if base is None or not base.is_absolute():
        return None
    with suppress(OSError):
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = base / SUBFOLDER
        folder.mkdir(mode=0o700, exist_ok=True)  # whatever the umask lets Numba create, it lies in here
        return folder if is_private(folder) and os.access(folder, os.W_OK | os.X_OK) else None
    return None
