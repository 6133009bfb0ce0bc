"""Which models run in isolation: all but those that were exported on this machine by this user.

`mdlstm export` notes the SHA-256 of each model that it writes, as the name of an empty file in a folder
that only the user can write to. A model whose digest is there holds exactly what this exporter wrote.
Nothing else tells a model of one's own from that of a stranger: a path can be written to by whatever
downloads or unpacks files, an owner is whoever unpacked it, and a field in the file says what its author
wants it to say. A digest can be neither forged nor moved to another model.

The rule errs on the safe side. A model that was exported on another machine, by another user or before this
version runs in isolation, and so does every model where there is no private folder. It then gives the same
results, and starts some 0.3 s later.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from mdlstm_tk._util.private_folder import is_private, private_folder
from mdlstm_tk.errors import MDLSTMError

MAX_NOTES = 10_000  # the oldest are removed; each takes an entry in a folder and no data
CHUNK_BYTES = 2**20


def isolation_problem() -> str | None:
    """Why this system cannot isolate, and what to do about it; None if it can."""
    if sys.platform not in ("linux", "darwin"):
        return "isolation needs Linux or macOS; run files from others in a container"
    if not sys.executable:
        return "isolation needs a Python interpreter to start (sys.executable is not set)"
    return None


def require_isolation() -> None:
    """Check that this system can isolate.

    Raises:
        MDLSTMError: says what is missing.
    """
    problem = isolation_problem()
    if problem is not None:
        raise MDLSTMError(problem)


def choose_isolation(
    models: Sequence[Path], max_bytes: int, *, limited: bool, isolated: bool | None = None
) -> tuple[bool | None, str | None]:
    """Whether to isolate one of several models, before it is known which one.

    Args:
        models: paths of the models.
        max_bytes: maximum size of a model.
        limited: whether the user has set a limit, which then has to bind.
        isolated: what the user has chosen; None: nothing.

    Returns:
        What `Session` takes for `isolated`, and why this system cannot isolate where it should.
    """
    if isolated is not None:
        return isolated, None
    if not limited and not any(is_from_elsewhere(model, max_bytes) for model in models):
        return None, None
    problem = isolation_problem()
    return (True if problem is None else None), problem


def note_export(data: bytes) -> None:
    """Note that this exporter wrote a model. Without a private folder, nothing is noted.

    Args:
        data: content of the file.
    """
    folder = _folder()
    if folder is None:
        return
    with suppress(OSError):
        (folder / sha256(data).hexdigest()).touch(mode=0o600)
        notes = list(folder.iterdir())
        if len(notes) > MAX_NOTES:
            notes.sort(key=_modified)
            for note in notes[: len(notes) - MAX_NOTES]:
                note.unlink(missing_ok=True)


def was_exported_here(data: bytes) -> bool:
    """Whether the content of a file is that of a model that this user exported on this machine."""
    return _is_noted(sha256(data).hexdigest())


def is_from_elsewhere(path: Path, max_bytes: int) -> bool:
    """Whether a file is there and `was_exported_here` is false for its content.

    It is not read if it is larger than `max_bytes` or can only be read once, as a pipe can.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return True
        digest = sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return False
    return not _is_noted(digest.hexdigest())


def _is_noted(digest: str) -> bool:
    folder = _folder()
    return folder is not None and (folder / digest).is_file()


def _folder() -> Path | None:
    state = private_folder("state")
    if state is None:
        return None
    folder = state / "exported"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder if is_private(folder) else None


def _modified(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:  # another process removed it
        return 0
