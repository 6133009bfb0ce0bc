"""`check_model`: hostile models are refused, others pass and run, whoever wrote them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.crafted_models import DOMAIN, FLOAT, crafted, info, node, scanning, tensor
from onnx import TensorProto, helper

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.model_check import check_model

Model = onnx.ModelProto | bytes
X = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)


def encoded(model: Model) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


def loop() -> onnx.NodeProto:
    """A loop over x without an end."""
    inputs = [info("i", TensorProto.INT64, ()), info("on", TensorProto.BOOL, ()), info("v")]
    nodes = [node("Identity", "on", "on_out"), node("Identity", "v", "v_out")]
    outputs = [info("on_out", TensorProto.BOOL, ()), info("v_out")]
    return node("Loop", " go x", "y", body=helper.make_graph(nodes, "body", inputs, outputs))


def body(inner: onnx.NodeProto) -> onnx.GraphProto:
    """A graph of one node from v to v_out."""
    shape = [None] * 4
    return helper.make_graph([inner], "body", [info("v", FLOAT, shape)], [info("v_out", FLOAT, shape)])


def nested(depth: int) -> onnx.ModelProto:
    """Graphs in a graph."""
    inner = node("Neg", "v", "v_out")
    for _ in range(depth):
        inner = node("Scan", "v rows", "v_out", body=body(inner), num_scan_inputs=1)
    return scanning(inner)


def function(name: str, inner: onnx.NodeProto, domain: str = DOMAIN) -> onnx.FunctionProto:
    return helper.make_function(domain, name, ["a"], ["b"], [inner], [helper.make_opsetid("", 18)])


def call(*edges: str, **attributes: onnx.GraphProto) -> onnx.NodeProto:
    """A node that calls the function f of the model."""
    return node("f", *edges, domain=DOMAIN, **attributes)


def edited(**fields: Any) -> onnx.ModelProto:
    """A model with further fields; lists extend repeated ones, and messages are merged."""
    model = crafted()
    model.MergeFrom(onnx.ModelProto(**fields))
    return model


def external_tensor(*without: str) -> onnx.TensorProto:
    external = tensor("w", [0.0], np.float32)
    external.data_location = TensorProto.EXTERNAL
    external.external_data.add(key="location", value="/etc/passwd")
    for name in ("raw_data", *without):
        external.ClearField(name)
    return external


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, wire_type: int, value: bytes) -> bytes:
    """A field as protobuf writes it; values of wire type 2 get their size in front."""
    return varint(number << 3 | wire_type) + (varint(len(value)) if wire_type == 2 else b"") + value


def with_bytes(*in_graph: bytes) -> bytes:
    """A model whose graph ends with fields that are given as bytes."""
    model = crafted()
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + field(7, 2, graph + b"".join(in_graph))


def with_node_bytes(last: onnx.NodeProto, fields: bytes) -> bytes:
    """A model whose last node ends with fields that are given as bytes."""
    return with_bytes(field(1, 2, last.SerializeToString() + fields))


NEGATE = function("f", node("Neg", "a", "b"))
EXTERNAL = external_tensor()
SPARSE = onnx.SparseTensorProto(values=EXTERNAL, indices=tensor("i", [0]))
SPARSE_PLACES = onnx.SparseTensorProto(values=tensor("v", [0]), indices=EXTERNAL)
NUM_OUTPUTS = helper.make_attribute("num_outputs", 2).SerializeToString()

REFUSED: dict[str, dict[str, Model]] = {  # by a word of the reason
    "holds no graph": {"nothing": b""},
    "malformed": {
        "no protobuf": b"no model",
        "cut off": encoded(crafted())[:-3],
        "a group": with_bytes(varint(9 << 3 | 3)),
        "a number of eleven bytes": with_bytes(varint(9 << 3), b"\xff" * 11),
        "a field number of 33 bits": with_bytes(varint(2**32), b"\0"),  # ONNX Runtime drops higher bits
    },
    "outside the file": {
        "a function": crafted(functions=[function("f", node("Constant", "", "b", value=EXTERNAL))]),
        "a tensor": crafted(initializers=[EXTERNAL]),
        "its place alone": crafted(initializers=[external_tensor("external_data")]),
        "its entries alone": crafted(initializers=[external_tensor("data_location")]),
        "an attribute": crafted([node("Constant", "", "y", value=EXTERNAL)]),
        "an attribute of tensors": crafted([node("Identity", "x", "y", a=[EXTERNAL])]),
        "a sparse attribute": crafted([node("Identity", "x", "y", a=SPARSE)]),
        "an attribute of sparse tensors": crafted([node("Identity", "x", "y", a=[SPARSE])]),
        "a sparse tensor": edited(graph=onnx.GraphProto(sparse_initializer=[SPARSE])),
        "the places of a sparse tensor": crafted([node("Identity", "x", "y", a=SPARSE_PLACES)]),
        "a body": scanning(node("Neg", "v", "v_out"), initializers=[EXTERNAL]),
        "the second of two graphs": encoded(crafted())
        + field(7, 2, field(5, 2, EXTERNAL.SerializeToString())),
    },
    "functions": {
        "named like an operator": crafted(functions=[function("Identity", NEGATE.node[0], domain="")]),
    },
    "attributes to a function": {
        "a graph": crafted([call("x", "y", body=body(call("v", "v_out")))], functions=[NEGATE]),
    },
    "domain": {
        "a function that calls itself": crafted(
            [call("x", "y")], functions=[function("f", call("a", "b"))]
        ),
        "Python": crafted([node("PyOp", "x", "y", domain="ai.onnx.contrib")]),
        "behind a number": with_node_bytes(
            node("Neg", "x", "z", domain="com.microsoft"), field(7, 0, b"\0")
        ),
    },
    "operator": {
        "a loop": crafted([loop()], [tensor("go", True, np.bool_)]),
        "in a list of graphs": crafted([node("Identity", "x", "y", list=[body(loop())])]),
        "behind a number": with_node_bytes(node("NonZero", "x", "z"), field(4, 5, b"Cast")),
        "behind a long number": with_node_bytes(node("NonZero", "x", "z"), field(4, 1, b"Identity")),
        "a name with escapes": crafted([node("\x1b[2J", "x", "y")]),
        **{
            name: crafted([node(name, "x", "y")])
            for name in ("GridSample", "If", "RandomNormalLike", "SequenceConstruct")
        },
    },
    "deep": {"graphs in graphs": nested(8)},
    "Split": {  # it writes beyond its memory
        "more than its attribute": crafted([node("Split", "x", "y z", num_outputs=1)]),
        "an output that is a number": with_node_bytes(
            node("Split", "x", "z", num_outputs=2), field(2, 0, b"\0")
        ),
        "the name of its attribute behind a number": with_node_bytes(
            node("Split", "x", "z"), field(5, 2, NUM_OUTPUTS + field(1, 0, b"\0"))
        ),
    },
    "UTF-8": {"metadata": field(14, 2, field(1, 2, b"\xff")) + encoded(crafted())},
}


@pytest.mark.parametrize(("word", "name"), [(key, name) for key in REFUSED for name in REFUSED[key]])
@pytest.mark.parametrize("trusted", [False, True])
def test_refused(word: str, name: str, trusted: bool) -> None:
    if trusted and word == "operator":
        check_model(encoded(REFUSED[word][name]), "own.onnx", trusted=True)
        return
    with pytest.raises(InputError, match=word) as refused:
        check_model(encoded(REFUSED[word][name]), "hostile.onnx", trusted=trusted)
    assert str(refused.value).isprintable()


ACCEPTED: dict[str, Model] = {
    "functions, as version 1.0 exported them": crafted(
        [call("x", "t"), call("t", "y")], functions=[NEGATE]
    ),
    "an export": crafted(),
    "shape inference": onnx.shape_inference.infer_shapes(
        crafted([node("Neg", "x", "t"), node("Neg", "t", "y")])
    ),
    "other fields": edited(doc_string="text", graph=onnx.GraphProto(doc_string="more")),
    "a constant node": crafted(
        [node("Constant", "", "c", value=tensor("", [1.0], np.float32)), node("Mul", "x c", "y")]
    ),
    "the other name of the standard domain": crafted([node("Identity", "x", "y", domain="ai.onnx")]),
    "a Split into as many parts as it has outputs": crafted(
        [node("Split", "x", "a b", num_outputs=2, axis=1), node("Concat", "a b", "y", axis=1)]
    ),
    "eight bytes of another format": b"\x11aaaaaaaa" + encoded(crafted()),
    "four bytes of another format": b"\x12\x0aaaORTM1234" + encoded(crafted()),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_and_run(case: str) -> None:
    np.testing.assert_array_equal(Session(encoded(ACCEPTED[case]), "cpu")(X), X)


def test_operators_outside_the_list_run_if_they_are_trusted() -> None:
    nodes = [node("NonZero", "x", "n"), node("Shape", "n", "s"), node("Cast", "s", "f", to=FLOAT)]
    nodes += [node("ReduceMin", "f", "m", keepdims=0), node("Add", "x m", "y")]
    data = encoded(crafted(nodes))
    check_model(encoded(nested(7)), "deep.onnx")
    with pytest.raises(InputError, match="NonZero"):
        Session(data, "cpu")
    np.testing.assert_array_equal(Session(data, "cpu", trusted=True)(X), X + 4)


def test_damaged_models_are_refused_or_pass() -> None:
    """Each cut, each byte changed, and a byte inserted at each place."""
    data = crafted([node("Neg", "x", "y")]).SerializeToString()
    for n, byte in enumerate(data):
        for damaged in (
            data[:n],
            data[:n] + bytes([byte ^ 255]) + data[n + 1 :],
            data[:n] + b"\xff" + data[n:],
        ):
            with suppress(InputError):
                check_model(damaged, "damaged.onnx")
