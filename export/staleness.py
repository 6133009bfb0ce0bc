"""Exports of a run that has gone on since."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime.session import read_metadata

CHECKPOINTS = ("best.safetensors", "last.safetensors")  # of a run


def checksum(path: Path) -> str:
    """The SHA-256 of a file; it takes some 0.5 ms for each MiB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_of(model: Path, metadata: Metadata) -> Path | None:
    """The checkpoint of the run in a model's folder that it was exported from; None if there is none."""
    for path in (model.parent / name for name in CHECKPOINTS):
        if path.is_file() and checksum(path) == metadata.checkpoint_sha256:
            return path
    return None


def note_if_stale(model: Path) -> str:
    """One line if the run in whose folder a model lies has gone on since the export, with the command that
    exports it again; else "", also where there is no run, or no model that can be read."""
    try:
        m = read_metadata(model)
        has_run = any((model.parent / name).is_file() for name in CHECKPOINTS)
        if m.checkpoint_sha256 is None or not has_run or checkpoint_of(model, m):
            return ""
    except (InputError, OSError):
        return ""
    options = [str(model.parent), "--form", m.form, *(["--size", format_size(m.grid)] if m.grid else [])]
    options += ["--padded"] if m.takes_sizes else []
    options += ["--multiple-of", format_size(m.multiple_of)] if m.multiple_of else []
    options += ["--dtype", m.dtype] if m.dtype == "float16" else []
    command = shlex.join(["mdlstm", "export", *options, "-o", str(model), "--force"])
    return f"the run has gone on since {model} was exported; export it again with: {command}"
