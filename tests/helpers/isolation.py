"""Models that isolation has to stop, and processes that end in the middle of their work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from helpers.crafted_models import crafted, node


def squared(products: int = 1) -> bytes:
    """A model for grids (1, H, W, 1) of any size: y holds the largest element of x·xᵀ, or of its powers.

    One product of a long thin x needs much memory; many products of a large square x take long, and each
    of them cannot be interrupted.
    """
    nodes = [
        node("Transpose", "x", "row", perm=[0, 3, 1, 2]),
        node("Transpose", "x", "column", perm=[0, 3, 2, 1]),
        node("MatMul", "row column", "p0"),
        *(node("MatMul", f"p{k} column", f"p{k + 1}") for k in range(products - 1)),
        node("ReduceMax", f"p{products - 1}", "largest", keepdims=1),
        node("Add", "x largest", "y"),
    ]
    model = crafted(nodes, grid="null", form='"scan"')
    for value in (*model.graph.input, *model.graph.output):
        for axis in (1, 2):
            value.type.tensor_type.shape.dim[axis].ClearField("dim_value")
            value.type.tensor_type.shape.dim[axis].dim_param = "HW"[axis - 1]
    return model.SerializeToString()


def kill_during(action: Callable[[], Any], pid: Callable[[], int], number: int) -> None:
    """Kill a process soon after an action has begun."""
    timer = threading.Timer(0.2, lambda: os.kill(pid(), number))
    timer.start()
    try:
        action()
    finally:
        timer.join()
