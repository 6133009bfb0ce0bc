"""The inputs and outputs of an exported model, read from the file."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Metadata


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: its name.
        dtype: NumPy's name for the type of its elements, such as "float32".
        shape: its extents, None where an extent is free; the first axis is the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def read_model(data: bytes) -> onnx.ModelProto:
    """Parse the content of an ONNX file.

    Raises:
        InputError: `data` is not an ONNX model.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError:
        raise InputError("not an ONNX model; make one with: mdlstm export") from None


def read_metadata(data: bytes, label: str) -> Metadata:
    """The metadata in the content of an exported file.

    Args:
        data: content of the file.
        label: what error messages call the file.

    Raises:
        InputError: `data` is not an ONNX model, or was not exported by mdlstm-tk.
    """
    return Metadata.from_props({prop.key: prop.value for prop in read_model(data).metadata_props}, label)


def tensor_specs(model: onnx.ModelProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and the outputs of a model."""
    return [_tensor_spec(v) for v in model.graph.input], [_tensor_spec(v) for v in model.graph.output]


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
