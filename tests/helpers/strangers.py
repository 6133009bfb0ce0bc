"""Files and folders as a hostile stranger might send them, and what must not happen with them."""

from __future__ import annotations

import io
import json
import os
import struct
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tomli_w
from fuzz.command import Called, run_command
from fuzz.protobuf import BYTES, encode, encode_varint
from onnx import TensorProto, helper

from helpers.crafted_models import crafted, info

ESCAPES = "\x1b[2J\x1b]0;taken over\x07"
FORGED = "cat\nforged.png\tdog"
BIDI = "\u202egnp.txt"


def call(*arguments: object, code: int | Sequence[int] = 2) -> Called:
    """Call a verb of `mdlstm`; check its exit code, what it prints, and that nothing is executed.

    Args:
        *arguments: the verb and its arguments.
        code: the expected exit code, or several.
    """
    called = run_command(arguments)
    codes = (code,) if isinstance(code, int) else code
    assert called.code in codes, f"{arguments}: exit code {called.code}: {called.err}{called.out[:2000]}"
    executed = [path for path in (Path("EXECUTED"), *Path().glob("*/*/EXECUTED")) if path.exists()]
    assert not executed, f"{arguments} executed {executed}"
    return called


def change_checkpoints(run: Path, **settings: Any) -> None:
    """Change settings in config.toml and in the checkpoints of a run."""
    config = run / "config.toml"
    config.write_text(tomli_w.dumps(tomllib.loads(config.read_text()) | settings))
    for path in run.glob("*.safetensors"):
        change_header(path, config=settings)


def change_header(path: Path, config: Mapping[str, Any] | None = None, **fields: Any) -> None:
    """Change settings and other fields in the header of a checkpoint."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["mdlstm"])
    inner["config"] |= dict(config or {})
    header["__metadata__"]["mdlstm"] = json.dumps(inner | fields)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + size :])


def with_metadata(**fields: Any) -> bytes:
    """A model that passes x on, with other values in its metadata."""
    return crafted(**{name: json.dumps(value) for name, value in fields.items()}).SerializeToString()


def with_string_output() -> bytes:
    """A model whose output is of strings."""
    model = crafted([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)])
    model.graph.output[0].CopyFrom(info("y", TensorProto.STRING, (None, 2, 2, 1)))
    return model.SerializeToString()


def with_packed_dims(count: int) -> bytes:
    """A model with an initializer of `count` dims."""
    tensor = encode(
        [(2, 0, 1), (8, BYTES, b"w"), (1, BYTES, encode_varint(1) * count), (9, BYTES, bytes(4))]
    )
    return _with_initializer(tensor)


def with_fixed_dims() -> bytes:
    """A model with an initializer of 10 billion floats, whose dims are written as fixed32."""
    dims = [(1, 5, struct.pack("<I", 100_000))] * 2
    return _with_initializer(encode([*dims, (2, 0, 1), (8, BYTES, b"w"), (9, BYTES, bytes(4))]))


def _with_initializer(tensor: bytes) -> bytes:
    model = crafted().SerializeToString()
    return model + encode(
        [(7, BYTES, encode([(5, BYTES, tensor)]))]
    )  # protobuf merges a field that is doubled


def npz_with_names(*names: str) -> bytes:
    """An .npz of 2×2 arrays with any names."""
    member, file = io.BytesIO(), io.BytesIO()
    np.save(member, np.eye(2, dtype=np.float32))
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return file.getvalue()


def postscript(marker: Path) -> bytes:
    """A PostScript program that writes a file."""
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({marker}) (w) file closefile\n".encode()


def fake_programs(folder: Path, *names: str) -> Path:
    """Programs that note that they were started, in folder/bin; return the file in which they note it."""
    marker = folder / "started"
    (folder / "bin").mkdir(parents=True)
    for name in names:
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\necho {name} >> {marker}\nexit 1\n")
        program.chmod(0o755)
    return marker


def pipe(path: Path) -> None:
    """Put a named pipe that nobody writes to in the place of a file."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def save(model: onnx.ModelProto | bytes, path: Path) -> Path:
    """Write a model."""
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path
