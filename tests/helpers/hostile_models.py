"""Models by which a stranger could run code, take all memory or time, or forge output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from helpers.crafted_models import FLOAT, INT64, info, node
from helpers.foreign_models import GO, body, crafted, function, own_node, stored
from helpers.strangers import (
    BIDI,
    ESCAPES,
    FORGED,
    with_fixed_dims,
    with_metadata,
    with_packed_dims,
    with_string_output,
)


def same_named(domain: str, name: str) -> onnx.ModelProto:
    own = function(name, node("Neg", "a", "b"), domain=domain)
    return crafted([node(name, "x", "y", domain=domain)], functions=[own], domains=("", domain))


def own_if() -> onnx.ModelProto:
    reference = onnx.AttributeProto(name="body", ref_attr_name="branch", type=onnx.AttributeProto.GRAPH)
    looping = node("Loop", " go a", "b")
    looping.attribute.append(reference)
    constant = node("Constant", "", "go", value=GO)
    own = function("If", constant, looping, attributes=["branch"])
    return crafted(
        [node("If", "x", "y", domain="own", branch=body())], functions=[own], domains=("", "own")
    )


def many_axes(count: int = 100_000) -> onnx.ModelProto:
    shape = stored("shape", INT64, [count], np.ones(count, np.int64).tobytes(), raw=True)
    return crafted([node("Reshape", "x shape", "t"), node("Neg", "x", "y")], [shape])


def nested_ifs(levels: int = 7, calls: int = 6) -> onnx.ModelProto:
    """Functions with an If in each branch of which the next one is called."""
    functions = [function(f"f{levels}", node("Neg", "a", "b"))]
    for level in range(levels):
        inner = [own_node(f"f{level + 1}", "a", f"t{k}") for k in range(calls)]
        branch = helper.make_graph(inner, "branch", [], [info("t0")])
        constant = node("Constant", "", "go", value=GO)
        condition = node("If", "go", "b", then_branch=branch, else_branch=branch)
        functions.append(function(f"f{level}", constant, condition))
    return crafted([own_node("f0", "x", "y")], functions=functions, domains=("", "own"))


def referenced_graph(count: int = 300) -> onnx.ModelProto:
    """A function that refers to an attribute, a graph with a large constant, many times."""
    large = stored("c", FLOAT, [4000], bytes(16_000), raw=True)
    branch = helper.make_graph([node("Constant", "", "t", value=large)], "branch", [], [info("t")])
    nodes = [node("Constant", "", "go", value=GO)]
    for k in range(count):
        condition = node("If", "go", f"t{k}")
        for name in ("then_branch", "else_branch"):
            condition.attribute.append(
                onnx.AttributeProto(name=name, ref_attr_name="g", type=onnx.AttributeProto.GRAPH)
            )
        nodes.append(condition)
    own = function("f", *nodes, node("Neg", "a", "b"), attributes=["g"])
    return crafted([own_node("f", "x", "y", g=branch)], functions=[own], domains=("", "own"))


def called_constant(count: int = 4000, size: int = 65_536) -> onnx.ModelProto:
    """A function with a constant of 256 KiB, called many times: together the constants take 1 GiB."""
    large = stored("c", FLOAT, [size], bytes(4 * size), raw=True)
    own = function("f", node("Constant", "", "c", value=large), node("Neg", "a", "b"))
    calls = [own_node("f", "x" if k == 0 else f"t{k}", f"t{k + 1}") for k in range(count)]
    calls[-1].output[0] = "y"
    return crafted(calls, functions=[own], domains=("", "own"))


REFUSED: dict[str, Callable[[], onnx.ModelProto | bytes]] = {
    "2 a function named like an operator of scikit-learn": lambda: same_named("ai.onnx.ml", "Binarizer"),
    "2 a function named like an operator of Microsoft's": lambda: same_named("com.microsoft", "QuickGelu"),
    "3 a function called If that loops over an attribute": own_if,
    "4 a shape of 100,000 ones": many_axes,
    "4 nested Ifs through functions": nested_ifs,
    "4 a graph that is referred to many times": referenced_graph,
    "4 a constant in a function that is called many times": called_constant,
    "8 an output of strings": with_string_output,
    "10 packed dims": lambda: with_packed_dims(20_000_000),
    "10 dims as fixed32": with_fixed_dims,
    "10 kind is a list": lambda: with_metadata(kind=["classify"]),
    "10 kind is a dict": lambda: with_metadata(kind={"a": 1}),
    "10 too few classes": lambda: with_metadata(kind="classify", classes=[]),
    "10 surrogates in a class": lambda: with_metadata(kind="classify", classes=["\ud800"], window=None),
    "7 escapes in a class": lambda: with_metadata(kind="classify", classes=[ESCAPES], window=None),
    "7 a forged line in a class": lambda: with_metadata(kind="classify", classes=[FORGED], window=None),
    "7 escapes in the schema": lambda: with_metadata(schema=ESCAPES),
    "7 escapes in the inputs": lambda: with_metadata(inputs=[ESCAPES]),
    "7 text that is written backwards": lambda: with_metadata(version=BIDI),
}


def pooled(operator: str, extent: int = 3000, **attributes: Any) -> onnx.ModelProto:
    """x is padded to a large image, which a slow operator pools, and the result is ignored."""
    pads = stored("pads", INT64, [8], [0, 0, 0, 0, 0, extent, extent, 0])
    nodes = [
        node("Pad", "x pads", "t"),
        node("Transpose", "t", "u", perm=[0, 3, 1, 2]),
        node(operator, "u", "v", **attributes),
        node("ReduceMax", "v", "w", keepdims=0),
        node("Add", "x w", "y"),
    ]
    return crafted(nodes, [pads])


def regions() -> onnx.ModelProto:
    boxes = stored("boxes", FLOAT, [1, 4], [0.0, 0.0, 1.0, 1.0])
    batch = stored("batch", INT64, [1], [0])
    align = node("RoiAlign", "u boxes batch", "v", output_height=30_000, output_width=30_000)
    nodes = [node("Transpose", "x", "u", perm=[0, 3, 1, 2]), align]
    return crafted(
        [*nodes, node("ReduceMax", "v", "w", keepdims=0), node("Add", "x w", "y")], [boxes, batch]
    )


def counted() -> onnx.ModelProto:
    shape = stored("shape", INT64, [1], [10**9])
    ones = node("ConstantOfShape", "shape", "t", value=stored("v", TensorProto.BOOL, [1], [True]))
    nodes = [ones, node("NonZero", "t", "u"), node("Cast", "u", "v", to=FLOAT)]
    return crafted([*nodes, node("ReduceMax", "v", "w", keepdims=0), node("Add", "x w", "y")], [shape])


def transformed() -> onnx.ModelProto:
    pads = stored("pads", INT64, [8], [0, 0, 0, 0, 0, 200_003, 0, 0])
    nodes = [node("Pad", "x pads", "t"), node("DFT", "t", "u", axis=1)]
    return crafted([*nodes, node("ReduceMax", "u", "w", keepdims=0), node("Add", "x w", "y")], [pads])


SLOW: dict[str, Callable[[], onnx.ModelProto]] = {
    "RoiAlign": regions,
    "NonZero": counted,
    "LpPool": lambda: pooled("LpPool", kernel_shape=[999, 999], p=3),
    "AveragePool": lambda: pooled("AveragePool", kernel_shape=[500, 500], dilations=[3, 3]),
    "DFT": transformed,
}
