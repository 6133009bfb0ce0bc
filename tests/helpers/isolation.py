"""Models that isolation has to stop, and processes that end in the middle of their work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import onnx

from helpers.crafted_models import (
    FLOAT,
    NEGATE,
    call,
    crafted,
    function,
    node,
    scanning,
    tensor,
    with_large_intermediate,
)


def _for_any_grid(nodes: list[onnx.NodeProto], result: str) -> bytes:
    """A model for grids of any size: y is x plus the largest element of a result."""
    nodes = [*nodes, node("ReduceMax", result, "largest", keepdims=0), node("Add", "x largest", "y")]
    model = crafted(nodes, [tensor("axes", [3])], shape=(None, None, None, 1), grid="null", form='"scan"')
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


STOPPED: dict[str, Callable[[], onnx.ModelProto]] = {
    # They pass the model check, and take all time or memory or end their process.
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


def kill_during(action: Callable[[], Any], pid: Callable[[], int], number: int) -> None:
    """Kill a process soon after an action has begun."""
    timer = threading.Timer(0.2, lambda: os.kill(pid(), number))
    timer.start()
    try:
        action()
    finally:
        timer.join()
