"""Parts of models that no export has: functions of other domains, and loops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from helpers import crafted_models
from helpers.crafted_models import BOOL, INT64, info, node, tensor

GO = tensor("go", True, np.bool_)
PASS_ON = (node("Identity", "go", "go_on"), node("Identity", "v", "v_out"))

function = partial(crafted_models.function, domain="own")
own_node = partial(crafted_models.call, domain="own")


def crafted(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
    **metadata: Any,
) -> onnx.ModelProto:
    """A model as `crafted_models.crafted` makes it, whose opsets are those of these domains."""
    model = crafted_models.crafted(nodes, initializers, functions, **metadata)
    if domains:
        model.ClearField("opset_import")
        model.opset_import.extend(helper.make_opsetid(name, 1 if name else 18) for name in domains)
    return model


def stored(name: str, kind: int, dims: Sequence[int], values: Any, raw: bool = False) -> onnx.TensorProto:
    """A tensor as `onnx.helper.make_tensor` makes it, but with the numbers where exports have them. So a
    model that is refused is refused for something else."""
    if raw:
        return helper.make_tensor(name, kind, dims, values, raw=True)
    numbers = np.asarray(values, helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(numbers.reshape(dims), name)


def body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """The body of a Loop, from (i, go, v) to (go_on, v_out); without nodes, it passes go and v on."""
    outputs = [info("go_on", BOOL, ()), info("v_out")]
    inputs = [info("i", INT64, ()), info("go", BOOL, ()), info("v")]
    return helper.make_graph(nodes, "body", inputs, outputs if nodes else inputs[1:])


def loop(graph: onnx.GraphProto) -> onnx.NodeProto:
    """An endless loop over x: it ends when its body sets go to false."""
    return node("Loop", " go x", "y", body=graph)
