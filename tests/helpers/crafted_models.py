"""Build small ONNX models by hand, honest ones and hostile ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mdlstm_tk.io.metadata import Metadata

DOMAIN = "mdlstm.functions"  # of functions, which no model may have
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BOOL = TensorProto.BOOL


def info(name: str, kind: int = FLOAT, shape: Sequence[int | None] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(" "), outputs.split(" "), **attributes)


def tensor(name: str, values: Any, dtype: type = np.int64) -> onnx.TensorProto:
    """A stored tensor as exports have it."""
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def crafted(
    nodes: Sequence[onnx.NodeProto] = (),
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    shape: Sequence[int | None] = (None, 2, 2, 1),
    x_type: int = FLOAT,
    **metadata: Any,
) -> onnx.ModelProto:
    """A model from x to y of a shape, with the metadata of an exported one."""
    nodes = nodes or [node("Identity", "x", "y")]
    graph = helper.make_graph(
        nodes, "g", [info("x", x_type, shape)], [info("y", FLOAT, shape)], initializers
    )
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(DOMAIN, 1)] if functions else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    base = Metadata(version="0", grid=(2, 2), form="unrolled", layout="N H W C", channels=1, outputs=1)
    overrides = {f"mdlstm.{name}": value for name, value in metadata.items()}
    helper.set_model_props(model, base.to_props() | overrides)
    return model


def edited(model: onnx.ModelProto, **fields: Any) -> onnx.ModelProto:
    """A model with further fields; lists extend repeated ones, and messages are merged."""
    model.MergeFrom(onnx.ModelProto(**fields))
    return model


def external_tensor(name: str = "w") -> onnx.TensorProto:
    external = tensor(name, [0.0], np.float32)
    external.ClearField("raw_data")
    external.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "4")):
        external.external_data.add(key=key, value=value)
    return external


def function(
    name: str,
    *nodes: onnx.NodeProto,
    domain: str = DOMAIN,
    inputs: str = "a",
    outputs: str = "b",
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_function(domain, name, inputs.split(" "), outputs.split(" "), nodes, opsets)


def call(name: str, inputs: str, outputs: str, domain: str = DOMAIN, **attributes: Any) -> onnx.NodeProto:
    """A node that calls a function of the model."""
    return node(name, inputs, outputs, domain=domain, **attributes)


NEGATE = function("f", node("Neg", "a", "b"))


def body(*nodes: onnx.NodeProto, initializers: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    """The body of a Scan, from the state v and one row i to v_out."""
    inputs = [info("v", FLOAT, [None] * 4), info("i", FLOAT, [None])]
    return helper.make_graph(nodes, "body", inputs, [info("v_out", FLOAT, [None] * 4)], initializers)


def scan(graph: onnx.GraphProto, inputs: str = "x rows", outputs: str = "y") -> onnx.NodeProto:
    return node("Scan", inputs, outputs, body=graph, num_scan_inputs=1)


def scanning(*nodes: onnx.NodeProto, rows: int = 3, width: int = 1, **options: Any) -> onnx.ModelProto:
    """A model that runs a body on x for each of so many rows, which take no memory if their width is 0."""
    zeros = node("ConstantOfShape", "shape", "rows", value=tensor("", [0], np.float32))
    constants = [tensor("shape", [rows, width]), tensor("two", 2, np.float32)]
    return crafted([zeros, scan(body(*nodes, **options))], constants)


def field(number: int, wire_type: int, value: bytes) -> bytes:
    """A field as protobuf writes it; values of wire type 2 get their size in front."""
    size = varint(len(value)) if wire_type == 2 else b""
    return varint(number << 3 | wire_type) + size + value


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def with_bytes(*in_graph: bytes) -> bytes:
    """A model whose graph ends with fields that are given as bytes."""
    model = crafted()
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + field(7, 2, graph + b"".join(in_graph))
