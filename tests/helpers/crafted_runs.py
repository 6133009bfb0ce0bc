"""Run folders as a stranger could make them: a good one with one thing changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from helpers.command import Result
from mdlstm_tk.training.checkpoint import METADATA_KEY

Metadata = dict[str, Any]
Tensors = dict[str, torch.Tensor]
CHECKPOINTS = ("best.safetensors", "last.safetensors")
EVIL = """
from pathlib import Path
Path(__file__).with_name("marker").touch()
from mdlstm_tk.models import register
from mdlstm_tk.models.grids import MDNet
register("net")(MDNet)
"""


def copied(run: Path, folder: Path) -> Path:
    """A copy of a run folder."""
    return Path(shutil.copytree(run, folder))


def edit_checkpoint(
    path: Path,
    change: Callable[[Metadata], object] = lambda metadata: None,
    change_tensors: Callable[[Tensors], object] = lambda tensors: None,
) -> None:
    """Change the metadata and the tensors of a checkpoint; a text in place of metadata replaces them."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    replaced = change(metadata)
    change_tensors(tensors)
    text = replaced if isinstance(replaced, str) else json.dumps(metadata)
    path.write_bytes(safetensors.torch.save(tensors, metadata={METADATA_KEY: text}))


def edit_run(
    folder: Path,
    change: Callable[[Metadata], object] = lambda metadata: None,
    change_tensors: Callable[[Tensors], object] = lambda tensors: None,
) -> None:
    """Change both checkpoints of a run."""
    for name in CHECKPOINTS:
        edit_checkpoint(folder / name, change, change_tensors)


def sets(*keys: str, value: Any) -> Callable[[Metadata], None]:
    """A change that sets one value: sets("config", "layers", value=3)."""

    def change(metadata: Metadata) -> None:
        for key in keys[:-1]:
            metadata = metadata[key]
        metadata[keys[-1]] = value

    return change


def put(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Put something in the place of a file: bytes, a text, or what a function makes of the path."""
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def sparse(size: int, start: bytes = b"") -> Callable[[Path], None]:
    """A file of that many bytes, all zero after its start, which takes no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def assert_refused(result: Result, *named: str) -> None:
    """The call ended with exit code 2 and one line, which names what it should."""
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == 2, result.err
    assert len(errors) == 1 and result.err.endswith(errors[0] + "\n")
    assert "Traceback" not in result.err
    for text in named:
        assert text in errors[0]
