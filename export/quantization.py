"""Dynamic quantisation: matrix products with constant weights in 8-bit integers.

Weights become uint8 with one scale a column. The other operand of a product is quantised while the model
runs, with one scale for the whole tensor, taken from its own values. Everything else stays float32.

`onnxruntime.quantization.quantize_dynamic` does the same, but mixes the nodes of different wavefronts, so
that no functions can be made of them afterwards, and its int8 weights saturate on processors without VNNI.
Weights in uint8 give equal numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mdlstm_tk.export.lowering.lower import subgraphs, walk

ZERO_POINT = 128  # of the weights, whose range is symmetric
PRODUCTS = ("MatMul", "Gemm")


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace each product with a constant weight by one of integers, in the bodies of operators, too.

    Convolutions and ONNX's own recurrent operators, such as the `LSTM` that `torch.nn.LSTM` becomes, stay
    float32.

    Args:
        model: a model in float32 without functions; `lower(…, separate_products=True)` makes the one that
            loses least.

    Returns:
        A new model.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Quantizer(result.graph).run()
    return result


def float_products(model: onnx.ModelProto) -> list[str]:
    """The names of all products with constant weights that are not quantised, functions included."""
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = [*walk(model.graph.node), *walk(node for f in model.functions for node in f.node)]
    inputs_of_functions = {name for function in model.functions for name in function.input}
    return [
        node.name
        for node in nodes
        if node.op_type in PRODUCTS and node.input[1] in constants | inputs_of_functions
    ]


class _Quantizer:
    """Rewrites the products of one graph and of the graphs inside it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.new_tensors: dict[str, onnx.TensorProto] = {}

    def run(self) -> None:
        self._rewrite(self.graph)
        used = {name for node in walk(self.graph.node) for name in node.input}
        used |= {value.name for value in self.graph.output}
        tensors = [t for t in (*self.graph.initializer, *self.new_tensors.values()) if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(tensors)

    def _rewrite(self, graph: onnx.GraphProto) -> None:
        nodes: list[onnx.NodeProto] = []
        quantized: set[str] = set()  # values of this graph that have been quantised
        for node in graph.node:
            for inner in subgraphs(node):
                self._rewrite(inner)
            if self._has_constant_weight(node):
                nodes += self._integer_product(node, quantized)
            else:
                nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)

    def _has_constant_weight(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in PRODUCTS or node.input[1] not in self.tensors:
            return False
        weight = self.tensors[node.input[1]]
        attributes = _attributes(node)
        plain = all(attributes.get(name, 1) == 1 for name in ("alpha", "beta"))
        return (
            weight.data_type == TensorProto.FLOAT
            and len(weight.dims) == 2
            and plain
            and not attributes.get("transA")
        )

    def _integer_product(self, node: onnx.NodeProto, quantized: set[str]) -> Iterable[onnx.NodeProto]:
        """The nodes that replace a product; their names start with its name."""
        x, weight, *bias = node.input
        result, prefix = node.output[0], node.name or node.output[0]
        w, w_scale = self._quantized_weight(weight, bool(_attributes(node).get("transB")))
        w_zero_point = self._constant("quantization/zero_point", np.asarray(ZERO_POINT, np.uint8))
        x_values, x_scale, x_zero_point = parts = [
            f"{x}/{part}" for part in ("uint8", "scale", "zero_point")
        ]
        if x not in quantized:
            quantized.add(x)
            yield helper.make_node("DynamicQuantizeLinear", [x], parts, name=f"{prefix}/quantize")
        product, floats, scale = (f"{result}/{part}" for part in ("int32", "float32", "scale"))
        scaled = f"{result}/scaled" if bias else result
        yield helper.make_node(
            "MatMulInteger",
            [x_values, w, x_zero_point, w_zero_point],
            [product],
            name=f"{prefix}/product",
        )
        yield helper.make_node("Cast", [product], [floats], name=f"{prefix}/cast", to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [x_scale, w_scale], [scale], name=f"{prefix}/scale")
        yield helper.make_node("Mul", [floats, scale], [scaled], name=f"{prefix}/dequantize")
        if bias:
            yield helper.make_node("Add", [scaled, bias[0]], [result], name=f"{prefix}/bias")

    def _quantized_weight(self, name: str, transposed: bool) -> tuple[str, str]:
        """The names of a weight (C, n) in uint8 and of the scales (n,) of its columns."""
        suffix = "/transposed" if transposed else ""
        if f"{name}{suffix}/uint8" not in self.new_tensors:
            weight = numpy_helper.to_array(self.tensors[name])
            weight = weight.T if transposed else weight
            scale = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / (ZERO_POINT - 1)
            values = np.rint(weight / scale) + ZERO_POINT
            self._constant(f"{name}{suffix}/uint8", values.astype(np.uint8))
            self._constant(f"{name}{suffix}/scale", scale.astype(np.float32))
        return f"{name}{suffix}/uint8", f"{name}{suffix}/scale"

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.new_tensors[name] = numpy_helper.from_array(array, name)
        return name


def _attributes(node: onnx.NodeProto) -> dict[str, float]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
