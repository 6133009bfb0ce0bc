"""`check_model`: hostile models are refused with a reason, others pass, whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.attacks import GO, REFUSED, if_node, loop, nested
from helpers.crafted_models import NEGATE, call, crafted, edited, node, scanning, tensor
from onnx import helper

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.model_check import check_model

X = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)


def encoded(model: onnx.ModelProto | bytes) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        check_model(encoded(make()), "hostile.onnx")


def with_opset(version: int) -> onnx.ModelProto:
    model = crafted()
    model.ClearField("opset_import")
    model.opset_import.append(helper.make_opsetid("", version))
    return model


def tensor_with_properties() -> onnx.TensorProto:
    one = tensor("one", [1.0], np.float32)
    one.metadata_props.add(key="source", value="a tool")
    return one


ACCEPTED: dict[str, Callable[[], onnx.ModelProto | bytes]] = {
    "an export": crafted,
    "functions": lambda: crafted([call("f", "x", "t"), call("f", "t", "y")], functions=[NEGATE]),
    "a Scan that calls a function": lambda: edited(
        scanning(call("f", "v", "v_out"), rows=2),
        functions=[NEGATE],
        opset_import=[helper.make_opsetid("mdlstm.functions", 1)],
    ),
    "shape inference": lambda: onnx.shape_inference.infer_shapes(
        crafted([node("Neg", "x", "t"), node("Neg", "t", "y")])
    ),
    "a producer": lambda: edited(crafted(), producer_name="tool", producer_version="2", domain="org"),
    "texts": lambda: edited(crafted(), doc_string="text", graph=onnx.GraphProto(doc_string="more")),
    "an older opset": lambda: with_opset(13),
    "a newer opset": lambda: with_opset(21),
    "a constant node": lambda: crafted(
        [node("Constant", "", "c", value=tensor("", [1.0], np.float32)), node("Mul", "x c", "y")]
    ),
    "the other name of the standard domain": lambda: crafted(
        [node("Identity", "x", "y", domain="ai.onnx")]
    ),
    "a Split into as many parts as it has outputs": lambda: crafted(
        [node("Split", "x", "a b", num_outputs=2, axis=1), node("Concat", "a b", "y", axis=1)]
    ),
    "a tensor with properties": lambda: crafted(
        [node("Mul", "x one", "y")],
        initializers=[tensor_with_properties()],
    ),
    "four bytes of another format": lambda: b"\x12\x0aaaORTM1234" + crafted().SerializeToString(),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_and_run(case: str) -> None:
    np.testing.assert_array_equal(Session(encoded(ACCEPTED[case]()), "cpu")(X), X)


def test_operators_outside_the_list_run_if_they_are_trusted() -> None:
    nodes = [node("NonZero", "x", "n"), node("Shape", "n", "s"), node("Cast", "s", "f", to=1)]
    nodes += [node("ReduceMin", "f", "m", keepdims=0), node("Add", "x m", "y")]
    data = crafted(nodes).SerializeToString()
    with pytest.raises(InputError, match="NonZero"):
        Session(data, "cpu")
    np.testing.assert_array_equal(Session(data, "cpu", trusted=True)(X), X + 4)
    for hostile in ("external data", "operator that runs Python", "function named like an operator"):
        make, message = REFUSED[hostile]
        with pytest.raises(InputError, match=message):
            check_model(encoded(make()), "hostile.onnx", trusted=True)
    for model in (crafted([loop()], [GO]), crafted([if_node(node("Neg", "x", "b"))], [GO])):
        check_model(model.SerializeToString(), "own.onnx", trusted=True)


def test_graphs_may_be_eight_deep() -> None:
    check_model(nested(7).SerializeToString(), "deep.onnx")


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
