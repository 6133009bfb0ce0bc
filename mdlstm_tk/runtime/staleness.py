"""Compare an exported model with the run in whose folder it lies, which may have gone on since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlstm_tk.errors import Export, Message

if TYPE_CHECKING:  # it imports NumPy
    from mdlstm_tk.runtime.metadata import Metadata

CHECKPOINTS = ("best.safetensors", "last.safetensors")  # of a run


def checksum(path: Path) -> str:
    """The SHA-256 of a file; it takes some 0.5 ms for each MiB."""
    import hashlib  # imported late: most models lie in no run folder

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_of(model: Path, metadata: Metadata) -> Path | None:
    """The checkpoint of the run in a model's folder that it was exported from; None if there is none."""
    for path in (model.parent / name for name in CHECKPOINTS):
        if path.is_file() and checksum(path) == metadata.checkpoint_sha256:
            return path
    return None


def note_if_stale(model: Path, metadata: Metadata) -> Message | None:
    """One line if the run in whose folder a model lies has gone on since the export, with the command that
    exports it again; else None, also where there is no run, or none that can be read."""
    has_run = any((model.parent / name).is_file() for name in CHECKPOINTS)
    try:
        if metadata.checkpoint_sha256 is None or not has_run or checkpoint_of(model, metadata):
            return None
    except OSError:
        return None
    options: dict[str, Any] = {
        "form": metadata.form,
        "grid": metadata.grid,
        "padded": "sizes" in metadata.inputs,
        "multiple_of": metadata.multiple_of,
        "dtype": metadata.dtype if metadata.dtype == "float16" else None,
    }
    options = {name: value for name, value in options.items() if value}
    again = Export({**options, "path": str(model), "force": True}, str(model.parent))
    return Message(f"the run has gone on since {model} was exported; export it again with: ", again)
