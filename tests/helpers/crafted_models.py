"""Models of ONNX, built by hand from nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mdlstm_tk.io.metadata import Metadata

DOMAIN = "mdlstm.functions"  # of functions, which no model may have
FLOAT = TensorProto.FLOAT


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
    **metadata: Any,
) -> onnx.ModelProto:
    """A model from x to y, with the metadata of an exported one. A field is given as its text."""
    nodes = nodes or [node("Identity", "x", "y")]
    x, y = (info(name, FLOAT, shape) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    opsets = [helper.make_opsetid("", 18)] + [helper.make_opsetid(DOMAIN, 1)] * bool(functions)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    base = Metadata(version="0", grid=(2, 2), form="unrolled", layout="N H W C", channels=1, outputs=1)
    overrides = {f"mdlstm.{name}": value for name, value in metadata.items()}
    helper.set_model_props(model, base.to_props() | overrides)
    return model


def scanning(
    *nodes: onnx.NodeProto, rows: int = 3, width: int = 1, initializers: Sequence[onnx.TensorProto] = ()
) -> onnx.ModelProto:
    """A model that runs nodes, from the state v and one row i to v_out, on x for each of so many rows. They
    take no memory if their width is 0."""
    inputs = [info("v", FLOAT, [None] * 4), info("i", FLOAT, [None])]
    body = helper.make_graph(nodes, "body", inputs, [info("v_out", FLOAT, [None] * 4)], initializers)
    zeros = node("ConstantOfShape", "shape", "rows", value=tensor("", [0], np.float32))
    constants = [tensor("shape", [rows, width]), tensor("two", 2, np.float32)]
    return crafted([zeros, node("Scan", "x rows", "y", body=body, num_scan_inputs=1)], constants)
