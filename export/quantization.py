"""Dynamic quantisation: matrix products with constant weights in 8-bit integers.

Weights become uint8 with one scale per column. The other operand of a product is quantised while the model
runs, with one scale for the whole tensor, taken from its own values. Everything else stays float32.

`onnxruntime.quantization.quantize_dynamic` does much the same, but mixes the nodes of different wavefronts,
so that no functions can be made of them afterwards, and its int8 weights saturate on processors without
VNNI. Weights in uint8 give equal numbers everywhere.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.lower import subgraphs, walk

ZERO_POINT = 128  # of the weights, whose range is symmetric


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace each product with a constant right-hand matrix by an integer product.

    Products inside Scan, Loop and If are replaced, too. Convolutions and ONNX's own recurrent operators,
    such as the `LSTM` that `torch.nn.LSTM` becomes, stay float32.

    Args:
        model: a model in float32 without functions; `lower(…, separate_products=True)` makes the one that
            loses the least accuracy.

    Returns:
        A new model.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = Graph("quantization")
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}

    @cache
    def quantized_weight(name: str, transposed: bool) -> tuple[Value, Value]:
        """A weight (C, n) in uint8, and the scales (n,) of its columns."""
        weight = numpy_helper.to_array(tensors[name])
        weight = weight.T if transposed else weight
        scale = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / (ZERO_POINT - 1)
        values = np.rint(weight / scale) + ZERO_POINT
        return constants.constant(values.astype(np.uint8)), constants.constant(scale.astype(np.float32))

    bodies = [graph for node in walk(result.graph.node) for graph in subgraphs(node)]
    for graph in (*reversed(bodies), result.graph):  # inner ones first, since the nodes are copied
        nodes: list[onnx.NodeProto] = []
        quantized: dict[str, list[Value]] = {}  # by name of x: its uint8 values, scale, zero point
        for node in graph.node:
            if not _is_float_product(node, tensors):
                nodes.append(node)
                continue
            part = Graph(node.output[0], constants)
            x, weight, *bias = node.input
            if x not in quantized:
                quantized[x] = part.add_node("DynamicQuantizeLinear", 3, Value(part, x))
            x_values, x_scale, x_zero_point = quantized[x]
            w, w_scale = quantized_weight(weight, bool(_attributes(node).get("transB")))
            w_zero_point = constants.constant(np.asarray(ZERO_POINT, np.uint8))
            product = part("MatMulInteger", x_values, w, x_zero_point, w_zero_point)
            y = part.cast(product, np.dtype(np.float32)) * part("Mul", x_scale, w_scale)
            for value in bias:
                y += Value(part, value)
            part.nodes[-1].output[0] = node.output[0]  # the last node computes y
            nodes += part.nodes
        del graph.node[:]
        graph.node.extend(nodes)
    used = {name for node in walk(result.graph.node) for name in node.input}
    used |= {value.name for value in result.graph.output}
    initializers = [t for t in (*result.graph.initializer, *constants.initializers) if t.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(initializers)
    return result


def _is_float_product(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    """True for a plain product with a constant matrix."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in tensors:
        return False
    weight, attributes = tensors[node.input[1]], _attributes(node)
    plain = all(attributes.get(name, 1) == 1 for name in ("alpha", "beta")) and not attributes.get("transA")
    return plain and weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2


def _attributes(node: onnx.NodeProto) -> dict[str, float]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
