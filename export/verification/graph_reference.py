"""The float64 reference of a file whose network is not at hand: its own graph, evaluated in float64.

It tells whether a runtime computes the graph. Whether the graph is that of the network, only the network
can tell.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mdlstm_tk.export.lowering.lower import subgraphs

NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16)


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model in which all float32 and float16 tensors and casts are float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        _widen_tensor(tensor)
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type in NARROW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del wide.graph.value_info[:]
    _widen_nodes(wide.graph.node)
    for function in wide.functions:
        _widen_nodes(function.node)
    return wide


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
                attribute.i = TensorProto.DOUBLE
        if node.op_type == "ConstantOfShape" and not node.attribute:  # its default value is a float32 zero
            zero = numpy_helper.from_array(np.zeros(1))
            node.attribute.append(helper.make_attribute("value", zero))
        for graph in subgraphs(node):
            for tensor in graph.initializer:
                _widen_tensor(tensor)
            for value in (*graph.input, *graph.output, *graph.value_info):
                if value.type.tensor_type.elem_type in NARROW:
                    value.type.tensor_type.elem_type = TensorProto.DOUBLE
            _widen_nodes(graph.node)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in NARROW:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), name))
