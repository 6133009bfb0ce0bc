"""Compare an exported model with the run in whose folder it lies, which may have gone on since."""

from __future__ import annotations

from pathlib import Path

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import shell_quoted
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


def note_if_stale(model: Path, metadata: Metadata) -> str | None:
    """One line if the run in whose folder a model lies has gone on since the export, with the command that
    exports it again; else None, also where there is no run."""
    has_run = any((model.parent / name).is_file() for name in CHECKPOINTS)
    if metadata.checkpoint_sha256 is None or not has_run or checkpoint_of(model, metadata):
        return None
    options = ["--drawing"] if metadata.drawing else [f"--form {metadata.form}"]
    if not metadata.drawing:
        options += [f"--size {format_size(metadata.grid)}"] if metadata.grid else []
        options += ["--padded"] if "sizes" in metadata.inputs else []
        options += [f"--multiple-of {format_size(metadata.multiple_of)}"] if metadata.multiple_of else []
        options += [f"--dtype {metadata.dtype}"] if metadata.dtype != "float32" else []
    return (
        f"the run has gone on since {model} was exported; export it again with: mdlstm export "
        f"{shell_quoted(model.parent)} {' '.join(options)} -o {shell_quoted(model)} --force"
    )
