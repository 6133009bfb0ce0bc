"""Models by which a file could run code, read or write other files, or take all time and memory.

`REFUSED` are kept out by the model check; `STOPPED` pass it, and an isolated session ends them in one line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from helpers.crafted_models import (
    BOOL,
    FLOAT,
    INT64,
    NEGATE,
    body,
    call,
    crafted,
    edited,
    external_tensor,
    field,
    function,
    info,
    node,
    scan,
    scanning,
    tensor,
    varint,
    with_bytes,
    with_large_intermediate,
)

Make = Callable[[], onnx.ModelProto | bytes]

GO = tensor("go", True, np.bool_)


def loop(*nodes: onnx.NodeProto) -> onnx.NodeProto:
    """A loop over x without an end."""
    inputs = [info("i", INT64, ()), info("on", BOOL, ()), info("v")]
    outputs = [info("on_out", BOOL, ()), info("v_out")]
    nodes = (node("Identity", "on", "on_out"), *(nodes or [node("Identity", "v", "v_out")]))
    return node("Loop", " go x", "y", body=helper.make_graph(nodes, "body", inputs, outputs))


def if_node(inner: onnx.NodeProto) -> onnx.NodeProto:
    branch = helper.make_graph([inner], "branch", [], [info("b")])
    return node("If", "go", "y", then_branch=branch, else_branch=branch)


def with_node_bytes(last: onnx.NodeProto, fields: bytes) -> bytes:
    """A model whose last node ends with fields that are given as bytes."""
    return with_bytes(field(1, 2, last.SerializeToString() + fields))


def without(message: onnx.TensorProto, name: str) -> onnx.TensorProto:
    message.ClearField(name)
    return message


def sparse_external_tensor() -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=external_tensor(), indices=tensor("i", [0]))


def nested(depth: int) -> onnx.ModelProto:
    inner = node("Neg", "v", "v_out")
    for _ in range(depth):
        inner = scan(body(inner), "v rows", "v_out")
    return scanning(inner)


def opset(domain: str) -> onnx.ModelProto:
    return edited(
        crafted([node("Neg", "x", "y", domain=domain)]), opset_import=[helper.make_opsetid(domain, 1)]
    )


REFUSED: dict[str, tuple[Make, str]] = {
    "no protobuf": (lambda: b"no model", "malformed"),
    "nothing": (lambda: b"", "holds no graph"),
    "cut off": (lambda: crafted().SerializeToString()[:-3], "malformed"),
    "a group": (lambda: with_bytes(varint(9 << 3 | 3)), "malformed"),
    "a number of eleven bytes": (lambda: with_bytes(varint(9 << 3), b"\xff" * 11), "malformed"),
    "external data": (lambda: crafted(initializers=[external_tensor()]), "outside the file"),
    **{
        f"external data with its {kind} alone": (
            lambda name=name: crafted(initializers=[without(external_tensor(), name)]),
            "outside the file",
        )
        for kind, name in (("place", "external_data"), ("entries", "data_location"))
    },
    **{
        f"external data in {kind}": (
            lambda make=make: crafted([node("Identity", "x", "y", a=make(sparse_external_tensor()))]),
            "outside the file",
        )
        for kind, make in (("a sparse attribute", lambda t: t), ("sparse attributes", lambda t: [t]))
    },
    "loop in a list of graphs": (
        lambda: crafted([node("Identity", "x", "y", list=[body(loop())])]),
        "the operator 'Loop'",
    ),
    "external data in an attribute": (
        lambda: crafted([node("Constant", "", "y", value=external_tensor())]),
        "outside the file",
    ),
    "external data in a body": (
        lambda: scanning(node("Neg", "v", "v_out"), initializers=[external_tensor()]),
        "outside the file",
    ),
    "external data in a function": (
        lambda: crafted(
            [call("f", "x", "y")],
            functions=[function("f", node("Constant", "", "b", value=external_tensor()))],
        ),
        "outside the file",
    ),
    "external data in a sparse tensor": (
        lambda: edited(
            crafted(),
            graph=onnx.GraphProto(sparse_initializer=[sparse_external_tensor()]),
        ),
        "outside the file",
    ),
    "external data in the second of two graphs": (
        lambda: (
            crafted().SerializeToString() + field(7, 2, field(5, 2, external_tensor().SerializeToString()))
        ),
        "outside the file",
    ),
    "operator that loads a library": (
        lambda: opset("com.microsoft"),
        "'Neg' of the domain 'com.microsoft'",
    ),
    "operator that runs Python": (
        lambda: crafted([node("PyOp", "x", "y", domain="ai.onnx.contrib")]),
        "'PyOp' of the domain",
    ),
    "function named like an operator": (
        lambda: crafted([node("Neg", "x", "y")], functions=[function("Neg", *NEGATE.node, domain="")]),
        "the function 'Neg' in the domain ''",
    ),
    "function named like an operator, by another name of the domain": (
        lambda: crafted(functions=[function("Identity", *NEGATE.node, domain="ai.onnx")]),
        "in the domain 'ai.onnx'",
    ),
    "function named like an operator of another domain": (
        lambda: crafted(
            [call("Binarizer", "x", "y", domain="ai.onnx.ml")],
            functions=[function("Binarizer", *NEGATE.node, domain="ai.onnx.ml")],
        ),
        "in the domain 'ai.onnx.ml'",
    ),
    "two functions of one name": (
        lambda: crafted([call("f", "x", "y")], functions=[NEGATE, NEGATE]),
        "two functions named 'f'",
    ),
    "undefined function": (lambda: crafted([call("f", "x", "y")]), "'f' of the domain 'mdlstm.functions'"),
    "function that calls itself": (
        lambda: crafted([call("f", "x", "y")], functions=[function("f", call("f", "a", "b"))]),
        "calls of functions of the file from its graphs",
    ),
    "function that calls another": (
        lambda: crafted(
            [call("f", "x", "y")],
            functions=[function("f", call("g", "a", "b")), function("g", *NEGATE.node)],
        ),
        "calls of functions",
    ),
    "function that calls another in a body": (
        lambda: crafted(
            [call("f", "x", "y")],
            functions=[
                function("f", scan(body(call("g", "v", "v_out")), "a a", "b")),
                function("g", *NEGATE.node),
            ],
        ),
        "calls of functions",
    ),
    "function that is given a graph with a loop": (
        lambda: crafted([call("f", "x", "y", body=body(loop()))], functions=[NEGATE]),
        "the operator 'Loop'",
    ),
    "function that is given a graph that calls a function": (
        lambda: crafted([call("f", "x", "y", body=body(call("f", "v", "v_out")))], functions=[NEGATE]),
        "calls of functions",
    ),
    "loop": (lambda: crafted([loop()], [GO]), r"the operator 'Loop'.*trusted=True"),
    "loop in a function": (
        lambda: crafted(
            [call("If", "x go", "y")], [GO], [function("If", loop(), inputs="x go", outputs="y")]
        ),
        "the operator 'Loop'",
    ),
    "loop in conditions": (lambda: crafted([if_node(if_node(loop()))], [GO]), "the operator 'If'"),
    "graphs in graphs": (lambda: nested(8), "more than 8 deep"),
    "Split that writes beyond its memory": (
        lambda: crafted([node("Split", "x", "y z", num_outputs=1)]),
        "a Split into another number of parts",
    ),
    # ONNX Runtime skips a field of another wire type, and the higher bits of its number.
    "operator behind a number": (
        lambda: with_node_bytes(node("NonZero", "x", "z"), field(4, 5, b"Cast")),
        "the operator 'NonZero'",
    ),
    "domain behind a number": (
        lambda: with_node_bytes(node("Neg", "x", "z", domain="com.microsoft"), field(7, 0, b"\0")),
        "of the domain 'com.microsoft'",
    ),
    "Split with an output that is a number": (
        lambda: with_node_bytes(node("Split", "x", "z", num_outputs=2), field(2, 0, b"\0")),
        "a Split into another number of parts",
    ),
    "Split with the name of an attribute behind a number": (
        lambda: with_node_bytes(
            node("Split", "x", "z"),
            field(
                5,
                2,
                helper.make_attribute("num_outputs", 2).SerializeToString() + field(1, 0, b"\0"),
            ),
        ),
        "a Split into another number of parts",
    ),
    "node in a field whose number has 33 bits": (
        lambda: with_bytes(varint(2**32 + 10) + varint(6) + field(4, 2, b"Loop")),
        "malformed",
    ),
    "the first field number of 33 bits": (lambda: with_bytes(varint(2**32), b"\0"), "malformed"),
    "name with escapes": (lambda: crafted([node("\x1b[2J", "x", "y")]), r"'\\x1b\[2J'"),
    "metadata that are no text": (
        lambda: field(14, 2, field(1, 2, b"\xff")) + crafted().SerializeToString(),
        "not UTF-8",
    ),
    **{
        name: (lambda name=name: crafted([node(name, "x", "y")]), f"the operator '{name}'")
        for name in (
            "GridSample",
            "ImageDecoder",
            "NonZero",
            "RandomNormalLike",
            "RoiAlign",
            "SequenceConstruct",
        )
    },
}


def pooling() -> onnx.ModelProto:
    """A small file that pads x to a large image, which a slow operator pools."""
    pads = tensor("pads", [0, 0, 0, 0, 0, 3000, 3000, 0])
    nodes = [
        node("Pad", "x pads", "t"),
        node("Transpose", "t", "u", perm=[0, 3, 1, 2]),
        node("AveragePool", "u", "v", kernel_shape=[500, 500]),
        node("ReduceMax", "v", "w", keepdims=0),
        node("Add", "x w", "y"),
    ]
    return crafted(nodes, [pads])


def dividing() -> onnx.ModelProto:
    """A model that divides the smallest integer by −1, which ends the process of ONNX Runtime."""
    constants = [tensor("smallest", [-(2**63)]), tensor("minus_one", [-1])]
    nodes = [node("Div", "smallest minus_one", "q"), node("Cast", "q", "r", to=FLOAT)]
    return crafted([*nodes, node("Add", "x r", "y")], constants)


STOPPED: dict[str, Make] = {
    "a Scan of a billion rows": lambda: scanning(node("Add", "v two", "v_out"), rows=10**9, width=0),
    "a kernel that pools for minutes": pooling,
    "an array of a terabyte": lambda: with_large_intermediate(2**38),
    "a shape of 100,000 ones": lambda: crafted(
        [node("Reshape", "x ones", "t"), node("Neg", "t", "u"), node("Identity", "x", "y")],
        [tensor("ones", [1] * 100_000)],
    ),
    "functions that expand to gigabytes": lambda: crafted(
        [call("f", "x" if k == 0 else f"t{k}", f"t{k + 1}" if k < 599 else "y") for k in range(600)],
        functions=[function("f", *(node("Neg", "a", f"{k:0900}") for k in range(1000)), *NEGATE.node)],
    ),
    "a division that ends the process": dividing,
}
