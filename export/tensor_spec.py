"""What goes into an exported model and what comes out, read from the file itself."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from mdlstm_tk.errors import InputError


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: of the tensor.
        dtype: of its elements, as NumPy names it.
        shape: with None where an extent is free; the first axis is the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def read_model(data: bytes) -> onnx.ModelProto:
    """The model in `data`.

    Raises:
        InputError: it is no ONNX model.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError:
        raise InputError("this is not an ONNX model; make one with: mdlstm export") from None


def ports(model: onnx.ModelProto) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs."""
    return [_port(value) for value in model.graph.input], [_port(value) for value in model.graph.output]


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return Port(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
