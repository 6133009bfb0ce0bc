"""The file of an export, and the report about it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import EncodeError
from onnx import helper

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, duration, reason_of
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io import TILED_SUFFIX
from mdlstm_tk.io.files import check_free
from mdlstm_tk.io.metadata import Form, Metadata


@dataclass(frozen=True)
class ExportReport:
    """The result of an export; `print` shows it in one line.

    Attributes:
        path: the file.
        metadata: the file's metadata.
        nodes: number of nodes in the graph.
        bytes: size of the file.
        max_abs: largest absolute error against the network in float64, in units of the outputs.
        seconds: duration of the export.
        needs_trust: the operators that a `Session` runs with trusted=True only.
    """

    path: Path
    metadata: Metadata
    nodes: int
    bytes: int
    max_abs: float
    seconds: float
    needs_trust: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for people: the grid, the form, the outputs, the file's size and the error."""
        m = self.metadata
        size = "any grid" if m.grid is None else f"grid {format_size(m.grid)}"
        return (
            f"{self.path}: {size}, {counted(m.channels, 'channel')} → {', '.join(m.output_names)} with "
            f"{counted(m.outputs, 'feature')}, {m.form}, {counted(self.nodes, 'node')}, "
            f"{self.bytes / 1024:.0f} KiB, max error {self.max_abs:.1e} against float64, "
            f"{duration(self.seconds)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "metadata"}
        m = self.metadata
        return {**own, "path": str(self.path), "grid": m.grid, "form": m.form, "outputs": m.output_names}


def with_metadata(serialized: bytes, metadata: Metadata) -> bytes:
    """The bytes of a model without properties, with metadata as its properties: fields of two messages of
    protobuf, one after the other, are those of one message."""
    properties = onnx.ModelProto()
    helper.set_model_props(properties, metadata.to_props())
    data: bytes = serialized + properties.SerializeToString()
    return data


def check_onnx(model: onnx.ModelProto, label: str) -> bytes:
    """The bytes of a model, checked with `onnx.checker`.

    Raises:
        MDLSTMError: it is not valid ONNX, or larger than a file can be.
    """
    try:
        data: bytes = model.SerializeToString()
        onnx.checker.check_model(data, full_check=True)
    except (ValueError, EncodeError) as error:
        raise MDLSTMError(f"{label} is larger than 2 GiB, the limit of an ONNX file") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MDLSTMError(f"{label} is not valid ONNX: {reason_of(error)}") from error
    return data


def check_destination(path: Path, force: bool, form: Form = "unrolled") -> None:
    """Check that a file may be written, before an export takes its time.

    Raises:
        InputError: its name is that of another form, its folder does not exist, `path` is a folder or a
            device, or the file exists and `force` is false.
    """
    if (path.suffix == TILED_SUFFIX) != (form == "tiles"):
        raise InputError(
            f"the path of tiles, and no other, ends in {TILED_SUFFIX}; got {path} for form '{form}'"
        )
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it, or give another path")
    check_free(path, force)
