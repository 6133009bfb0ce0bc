"""Models that isolation has to stop, and processes that end in the middle of their work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import onnx

from helpers.crafted_models import crafted, node, tensor


def _for_any_grid(nodes: list[onnx.NodeProto], result: str) -> bytes:
    """A model for grids of any size: y is x plus the largest element of a result."""
    nodes = [*nodes, node("ReduceMax", result, "largest", keepdims=0), node("Add", "x largest", "y")]
    model = crafted(nodes, [tensor("axes", [3])], grid="null", form='"scan"')
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in ((1, "H"), (2, "W")):
            value.type.tensor_type.shape.dim[axis].ClearField("dim_value")
            value.type.tensor_type.shape.dim[axis].dim_param = name
    return model.SerializeToString()


def outer_product() -> bytes:
    """A model that needs the memory of an array (H, H) for x (H, W)."""
    nodes = [
        node("Squeeze", "x axes", "rows"),
        node("Transpose", "rows", "columns", perm=[0, 2, 1]),
        node("MatMul", "rows columns", "product"),
    ]
    return _for_any_grid(nodes, "product")


def power(products: int) -> bytes:
    """A model that multiplies a square x with itself so many times. A product cannot be interrupted."""
    nodes = [node("Squeeze", "x axes", "rows"), node("Identity", "rows", "p0")]
    nodes += [node("MatMul", f"p{k} rows", f"p{k + 1}") for k in range(products)]
    return _for_any_grid(nodes, f"p{products}")


def kill_during(action: Callable[[], Any], pid: Callable[[], int], number: int) -> None:
    """Kill a process soon after an action has begun."""
    timer = threading.Timer(0.2, lambda: os.kill(pid(), number))
    timer.start()
    try:
        action()
    finally:
        timer.join()
