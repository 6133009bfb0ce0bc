"""`check_model`: hostile models are refused with a reason, others pass, whoever wrote them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.crafted_models import (
    BOOL,
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
)
from onnx import helper

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.model_check import check_model

Model = onnx.ModelProto | bytes

X = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
GO = tensor("go", True, np.bool_)


def loop() -> onnx.NodeProto:
    """A loop over x without an end."""
    inputs = [info("i", INT64, ()), info("on", BOOL, ()), info("v")]
    nodes = [node("Identity", "on", "on_out"), node("Identity", "v", "v_out")]
    graph = helper.make_graph(nodes, "body", inputs, [info("on_out", BOOL, ()), info("v_out")])
    return node("Loop", " go x", "y", body=graph)


def nested(depth: int) -> onnx.ModelProto:
    """Graphs in a graph."""
    inner = node("Neg", "v", "v_out")
    for _ in range(depth):
        inner = scan(body(inner), "v rows", "v_out")
    return scanning(inner)


def calling(*functions: onnx.FunctionProto, **attributes: onnx.GraphProto) -> onnx.ModelProto:
    """A model that calls the function f."""
    return crafted([call("f", "x", "y", **attributes)], [GO], functions)


def with_node_bytes(last: onnx.NodeProto, fields: bytes) -> bytes:
    """A model whose last node ends with fields that are given as bytes."""
    return with_bytes(field(1, 2, last.SerializeToString() + fields))


def without(message: onnx.TensorProto, name: str) -> onnx.TensorProto:
    message.ClearField(name)
    return message


EXTERNAL = external_tensor()
SPARSE = onnx.SparseTensorProto(values=EXTERNAL, indices=tensor("i", [0]))
SPARSE_PLACES = onnx.SparseTensorProto(values=tensor("v", [0]), indices=EXTERNAL)
PYTHON = node("PyOp", "x", "y", domain="ai.onnx.contrib")
NUM_OUTPUTS = helper.make_attribute("num_outputs", 2).SerializeToString()

REFUSED: dict[str, dict[str, Model]] = {  # by message
    "holds no graph": {"nothing": b""},
    "is malformed": {
        "no protobuf": b"no model",
        "cut off": crafted().SerializeToString()[:-3],
        "a group": with_bytes(varint(9 << 3 | 3)),
        "a number of eleven bytes": with_bytes(varint(9 << 3), b"\xff" * 11),
        "a field number of 33 bits": with_bytes(varint(2**32), b"\0"),  # ONNX Runtime drops higher bits
    },
    "outside the file": {
        "a tensor": crafted(initializers=[EXTERNAL]),
        "its place alone": crafted(initializers=[without(external_tensor(), "external_data")]),
        "its entries alone": crafted(initializers=[without(external_tensor(), "data_location")]),
        "an attribute": crafted([node("Constant", "", "y", value=EXTERNAL)]),
        "an attribute of tensors": crafted([node("Identity", "x", "y", a=[EXTERNAL])]),
        "a sparse attribute": crafted([node("Identity", "x", "y", a=SPARSE)]),
        "an attribute of sparse tensors": crafted([node("Identity", "x", "y", a=[SPARSE])]),
        "a sparse tensor": edited(crafted(), graph=onnx.GraphProto(sparse_initializer=[SPARSE])),
        "the places of a sparse tensor": crafted([node("Identity", "x", "y", a=SPARSE_PLACES)]),
        "a body": scanning(node("Neg", "v", "v_out"), initializers=[EXTERNAL]),
        "a function": calling(function("f", node("Constant", "", "b", value=EXTERNAL))),
        "the second of two graphs": (
            crafted().SerializeToString() + field(7, 2, field(5, 2, EXTERNAL.SerializeToString()))
        ),
    },
    "the function '.*' in the domain '(|org)'": {
        "named like an operator": crafted(functions=[function("Identity", *NEGATE.node, domain="")]),
        "of another domain": crafted(functions=[function("f", *NEGATE.node, domain="org")]),
    },
    "two functions named 'f'": {"a name": calling(NEGATE, NEGATE)},
    "'f' of the domain '(mdlstm.functions|org)'": {
        "an undefined function": calling(),
        "a function by another domain": crafted([call("f", "x", "y", "org")], functions=[NEGATE]),
    },
    "'PyOp' of the domain 'ai.onnx.contrib'": {"Python": crafted([PYTHON])},
    "'Neg' of the domain 'com.microsoft'": {
        "behind a number": with_node_bytes(
            node("Neg", "x", "z", domain="com.microsoft"), field(7, 0, b"\0")
        ),
    },
    "calls of functions of the file from its graphs": {
        "a function that calls itself": calling(function("f", call("f", "a", "b"))),
        "a function that calls another in a body": calling(
            function("f", scan(body(call("g", "v", "v_out")), "a a", "b")), function("g", *NEGATE.node)
        ),
        "a graph that a function is given": calling(NEGATE, body=body(call("f", "v", "v_out"))),
    },
    "the operator 'Loop'.*trusted=True": {
        "a loop": crafted([loop()], [GO]),
        "in a function": crafted(
            [call("If", "x go", "y")], [GO], [function("If", loop(), inputs="x go", outputs="y")]
        ),
        "in a list of graphs": crafted([node("Identity", "x", "y", list=[body(loop())])]),
        "in a graph that a function is given": calling(NEGATE, body=body(loop())),
    },
    "the operator 'NonZero'": {
        "behind a number": with_node_bytes(node("NonZero", "x", "z"), field(4, 5, b"Cast"))
    },
    "more than 8 deep": {"graphs in graphs": nested(8)},
    "a Split into another number of parts": {  # it writes beyond its memory
        "more than its attribute": crafted([node("Split", "x", "y z", num_outputs=1)]),
        "an output that is a number": with_node_bytes(
            node("Split", "x", "z", num_outputs=2), field(2, 0, b"\0")
        ),
        "the name of its attribute behind a number": with_node_bytes(
            node("Split", "x", "z"), field(5, 2, NUM_OUTPUTS + field(1, 0, b"\0"))
        ),
    },
    r"'\\x1b\[2J'": {"a name with escapes": crafted([node("\x1b[2J", "x", "y")])},
    "not UTF-8": {"metadata": field(14, 2, field(1, 2, b"\xff")) + crafted().SerializeToString()},
}
UNLISTED = ("GridSample", "If", "NonZero", "RandomNormalLike", "RoiAlign", "SequenceConstruct")


def encoded(model: Model) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


@pytest.mark.parametrize(("message", "name"), [(key, name) for key in REFUSED for name in REFUSED[key]])
def test_refused(message: str, name: str) -> None:
    with pytest.raises(InputError, match=message):
        check_model(encoded(REFUSED[message][name]), "hostile.onnx")


@pytest.mark.parametrize("name", UNLISTED)
def test_operators_outside_the_list_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"the operator '{name}'"):
        check_model(encoded(crafted([node(name, "x", "y")])), "hostile.onnx")


ACCEPTED: dict[str, Model] = {
    "an export": crafted(),
    "functions": crafted([call("f", "x", "t"), call("f", "t", "y")], functions=[NEGATE]),
    "a Scan that calls a function": edited(
        scanning(call("f", "v", "v_out"), rows=2),
        functions=[NEGATE],
        opset_import=[helper.make_opsetid("mdlstm.functions", 1)],
    ),
    "shape inference": onnx.shape_inference.infer_shapes(
        crafted([node("Neg", "x", "t"), node("Neg", "t", "y")])
    ),
    "other fields": edited(
        crafted(), producer_name="tool", doc_string="text", graph=onnx.GraphProto(doc_string="more")
    ),
    "a constant node": crafted(
        [node("Constant", "", "c", value=tensor("", [1.0], np.float32)), node("Mul", "x c", "y")]
    ),
    "the other name of the standard domain": crafted([node("Identity", "x", "y", domain="ai.onnx")]),
    "a Split into as many parts as it has outputs": crafted(
        [node("Split", "x", "a b", num_outputs=2, axis=1), node("Concat", "a b", "y", axis=1)]
    ),
    "eight bytes of another format": b"\x11aaaaaaaa" + crafted().SerializeToString(),
    "four bytes of another format": b"\x12\x0aaaORTM1234" + crafted().SerializeToString(),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_and_run(case: str) -> None:
    np.testing.assert_array_equal(Session(encoded(ACCEPTED[case]), "cpu")(X), X)


def test_operators_outside_the_list_run_if_they_are_trusted() -> None:
    nodes = [node("NonZero", "x", "n"), node("Shape", "n", "s"), node("Cast", "s", "f", to=1)]
    nodes += [node("ReduceMin", "f", "m", keepdims=0), node("Add", "x m", "y")]
    data = crafted(nodes).SerializeToString()
    with pytest.raises(InputError, match="NonZero"):
        Session(data, "cpu")
    np.testing.assert_array_equal(Session(data, "cpu", trusted=True)(X), X + 4)
    for message in ("outside the file", "the function '.*' in the domain '(|org)'"):
        for model in REFUSED[message].values():
            with pytest.raises(InputError, match=message):
                check_model(encoded(model), "hostile.onnx", trusted=True)
    with pytest.raises(InputError, match="'PyOp' of the domain"):
        check_model(encoded(crafted([PYTHON])), "hostile.onnx", trusted=True)
    check_model(encoded(crafted([loop()], [GO])), "own.onnx", trusted=True)


def test_graphs_may_be_eight_deep() -> None:
    check_model(encoded(nested(7)), "deep.onnx")


def test_large_files_are_refused_before_they_are_read(model: Path) -> None:
    with pytest.raises(InputError, match="1000 bytes; allow more with max_bytes="):
        Session(model, "cpu", max_bytes=1000)
    with pytest.raises(InputError, match="more than 10; "):
        check_model(b"x" * 11, "m", max_bytes=10)


def test_damaged_models_are_refused_or_pass() -> None:
    """Each cut, each byte changed, and a byte inserted at each place."""
    data = crafted([call("f", "x", "y")], functions=[NEGATE]).SerializeToString()
    for n, byte in enumerate(data):
        for damaged in (
            data[:n],
            data[:n] + bytes([byte ^ 255]) + data[n + 1 :],
            data[:n] + b"\xff" + data[n:],
        ):
            with suppress(InputError):
                check_model(damaged, "damaged.onnx")
