"""Build small ONNX models by hand, honest ones and hostile ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import onnx
from onnx import TensorProto, helper

from mdlstm_tk.runtime import Metadata

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name: str, kind: int = FLOAT, shape: tuple[int, ...] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(" "), outputs.split(" "), **attributes)


def crafted(
    nodes: Sequence[onnx.NodeProto] = (),
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = ("",),
    **metadata: Any,
) -> onnx.ModelProto:
    """A model from x to y, both (N, 2, 2, 1), with the metadata of an exported one."""
    nodes = nodes or [node("Identity", "x", "y")]
    shape = (None, 2, 2, 1)
    graph = helper.make_graph(
        nodes, "g", [info("x", FLOAT, shape)], [info("y", FLOAT, shape)], initializers
    )
    opsets = [helper.make_opsetid(domain, 18 if domain == "" else 1) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    base = Metadata("0", (2, 2), "unrolled", "N H W C", 1, 1)
    overrides = {f"mdlstm.{name}": value for name, value in metadata.items()}
    helper.set_model_props(model, base.to_props() | overrides)
    return model


def external_tensor(name: str = "w") -> onnx.TensorProto:
    tensor = helper.make_tensor(name, FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def huge_tensor(name: str = "w") -> onnx.TensorProto:
    return TensorProto(name=name, data_type=FLOAT, dims=[10**6, 10**6], raw_data=b"\0\0\0\0")


def body(*nodes: onnx.NodeProto, initializers: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    """The body of a Loop, from (i, go, v) to (go_on, v_out); without nodes, it passes go and v on."""
    outputs = [info("go_on", BOOL, ()), info("v_out")]
    inputs = [info("i", INT64, ()), info("go", BOOL, ()), info("v")]
    if not nodes:
        outputs = inputs[1:]
    return helper.make_graph(nodes, "body", inputs, outputs, initializers)


def loop(graph: onnx.GraphProto) -> onnx.NodeProto:
    """An endless loop over x: it ends when its body sets go to false."""
    return node("Loop", " go x", "y", body=graph)


GO = helper.make_tensor("go", BOOL, [], [True])
PASS_ON = (node("Identity", "go", "go_on"), node("Identity", "v", "v_out"))


def function(name: str, *nodes: onnx.NodeProto, domain: str = "own", **keywords: Any) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, opsets, **keywords)


def own_node(name: str, inputs: str, outputs: str, **keywords: Any) -> onnx.NodeProto:
    """A node that calls a function of the model."""
    return node(name, inputs, outputs, domain="own", **keywords)


def sparse_tensor() -> onnx.SparseTensorProto:
    values, indices = helper.make_tensor("w", FLOAT, [1], [1.0]), helper.make_tensor("i", INT64, [1], [0])
    return helper.make_sparse_tensor(values, indices, [10**9])


def model_with_sparse_initializer() -> onnx.ModelProto:
    model = crafted()
    model.graph.sparse_initializer.append(sparse_tensor())
    return model


def model_with_training_info() -> onnx.ModelProto:
    model = crafted()
    model.training_info.add().algorithm.CopyFrom(model.graph)
    return model


def nested_loops(levels: int) -> onnx.ModelProto:
    """A loop in a loop in a loop …"""
    graph = body(*PASS_ON)
    for _ in range(levels):
        graph = body(node("Loop", " go v", "v_out", body=graph), PASS_ON[0], initializers=[GO])
    return crafted([loop(graph)], [GO])


def nested_functions(levels: int = 7, calls: int = 10) -> onnx.ModelProto:
    """Functions, each of which calls the next one `calls` times: an exponential expansion."""
    functions = [function(f"f{levels}", node("Neg", "a", "b"))]
    names = ["a", *(f"t{k}" for k in range(1, calls)), "b"]
    for level in range(levels):
        chain = [own_node(f"f{level + 1}", *pair) for pair in pairwise(names)]
        functions.append(function(f"f{level}", *chain))
    return crafted([own_node("f0", "x", "y")], functions=functions, domains=("", "own"))


def calling_f(*functions: onnx.FunctionProto, **attributes: Any) -> onnx.ModelProto:
    """A model of one node that calls the function f."""
    return crafted([own_node("f", "x", "y", **attributes)], functions=functions, domains=("", "own"))
