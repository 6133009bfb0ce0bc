"""Models that are refused as their values could get too many axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import onnx

from helpers.crafted_models import (
    Case,
    call,
    crafted,
    edited,
    function,
    node,
    scanning,
    tensor,
)

ONES = tensor("ones", [1] * 100_000)  # 800 KB as a shape; ONNX Runtime would take gigabytes for it
MANY_ELEMENTS, UNKNOWN = "a shape with more than 16 elements", "a shape with an unknown number"


def reshaping(
    *before: onnx.NodeProto, shape: str = "shape", more: Sequence[onnx.TensorProto] = ()
) -> onnx.ModelProto:
    return crafted([*before, node("Reshape", f"x {shape}", "y")], [ONES, *more])


def chained(operator: str, count: int, *constants: onnx.TensorProto) -> onnx.ModelProto:
    """Each node takes the result of the one before twice, or with constants."""
    names = ["x", *(f"t{k}" for k in range(1, count)), "t"]
    second = [constants[0].name if constants else name for name in names]
    nodes = [node(operator, f"{names[k]} {second[k]}", names[k + 1]) for k in range(count)]
    return crafted([*nodes, node("Identity", "x", "y")], constants)


RANKS: dict[str, Case] = {
    "Reshape": (lambda: reshaping(shape="ones"), MANY_ELEMENTS),
    "Expand": (lambda: crafted([node("Expand", "x ones", "y")], [ONES]), MANY_ELEMENTS),
    "ConstantOfShape": (lambda: crafted([node("ConstantOfShape", "ones", "y")], [ONES]), MANY_ELEMENTS),
    "Unsqueeze": (lambda: crafted([node("Unsqueeze", "x ones", "y")], [ONES]), MANY_ELEMENTS),
    "Tile": (lambda: crafted([node("Tile", "x ones", "y")], [ONES]), "more than 32"),
    "Pad": (lambda: crafted([node("Pad", "x ones", "y")], [ONES]), "more than 32"),
    "Resize": (lambda: crafted([node("Resize", "x  ones", "y")], [ONES]), "more than 32"),
    "Slice": (lambda: crafted([node("Slice", "x ones ones", "y")], [ONES]), MANY_ELEMENTS),
    "Squeeze": (lambda: crafted([node("Squeeze", "x ones", "y")], [ONES]), MANY_ELEMENTS),
    "ReduceSum": (lambda: crafted([node("ReduceSum", "x ones", "y")], [ONES]), MANY_ELEMENTS),
    "Split": (lambda: crafted([node("Split", "x ones", "y z")], [ONES]), "more than 2"),
    "through Identity": (lambda: reshaping(node("Identity", "ones", "shape")), MANY_ELEMENTS),
    "through Cast": (
        lambda: reshaping(node("Cast", "ones", "t", to=6), node("Cast", "t", "shape", to=7)),
        MANY_ELEMENTS,
    ),
    "through Concat": (
        lambda: reshaping(
            node("Concat", " ".join(["few"] * 20), "shape", axis=0), more=[tensor("few", [1])]
        ),
        MANY_ELEMENTS,
    ),
    "through Gather": (
        lambda: reshaping(
            node("Gather", "few zeros", "shape"), more=[tensor("few", [1]), tensor("zeros", [0] * 99)]
        ),
        MANY_ELEMENTS,
    ),
    "through Slice": (
        lambda: reshaping(
            node("Slice", "ones a b", "shape"), more=[tensor("a", [0]), tensor("b", [99_999])]
        ),
        MANY_ELEMENTS,
    ),
    "through sums": (lambda: reshaping(node("Add", "ones ones", "shape")), MANY_ELEMENTS),
    "through outer products": (
        lambda: reshaping(
            node("Mul", "row column", "t"),
            node("Reshape", "t flat", "shape"),
            more=[tensor("row", [[1] * 9]), tensor("column", [[1]] * 9), tensor("flat", [-1])],
        ),
        MANY_ELEMENTS,
    ),
    "through Expand": (
        lambda: reshaping(
            node("Expand", "one long", "shape"), more=[tensor("one", [1]), tensor("long", [99_999])]
        ),
        UNKNOWN,
    ),
    "through Tile": (
        lambda: reshaping(
            node("Tile", "one long", "shape"), more=[tensor("one", [1]), tensor("long", [99_999])]
        ),
        UNKNOWN,
    ),
    "through Range": (
        lambda: reshaping(
            node("Range", "zero many one", "shape"),
            more=[tensor(name, value) for name, value in (("zero", 0), ("many", 99_999), ("one", 1))],
        ),
        UNKNOWN,
    ),
    "through sums of nothing": (  # (0, 99999) → (1, 99999)
        lambda: reshaping(
            node("ReduceSum", "empty first", "t", keepdims=0),
            node("Cast", "t", "shape", to=7),
            more=[tensor("empty", np.zeros((0, 99_999))), tensor("first", [0])],
        ),
        UNKNOWN,
    ),
    "argument of a function": (
        lambda: crafted(
            [call("f", "x ones", "y")],
            [ONES],
            [function("f", node("Reshape", "a shape", "b"), inputs="a shape")],
        ),
        MANY_ELEMENTS,
    ),
    "result of a function": (
        lambda: crafted(
            [call("f", "ones", "shape"), node("Reshape", "x shape", "y")],
            [ONES],
            [function("f", node("Identity", "a", "b"))],
        ),
        MANY_ELEMENTS,
    ),
    "in a body": (
        lambda: edited(scanning(node("Reshape", "v ones", "v_out")), "graph", initializer=[ONES]),
        MANY_ELEMENTS,
    ),
    "state of a body": (
        lambda: scanning(node("Cast", "i", "s", to=7), node("Reshape", "v s", "v_out")),
        UNKNOWN,
    ),
    "state that grows": (
        lambda: edited(
            scanning(node("Unsqueeze", "v axis", "v_out")), "graph", initializer=[tensor("axis", [0])]
        ),
        "may get more axes with each iteration",
    ),
    "ranks that double": (
        lambda: crafted(
            [
                node("Cast", "x", "t0", to=7),
                *(node("Gather", f"t{k} t{k}", f"t{k + 1}") for k in range(30)),
                node("Identity", "x", "y"),
            ]
        ),
        "may have more than 16 axes",
    ),
    "ranks that double with GatherND": (
        lambda: crafted(
            [
                node("Cast", "x", "t0", to=7),
                *(node("GatherND", f"t{k} t{k}", f"t{k + 1}") for k in range(30)),
                node("Identity", "x", "y"),
            ]
        ),
        "may have more than 16 axes",
    ),
    "ranks that grow": (
        lambda: chained("Unsqueeze", 30, tensor("axis", [0])),
        "may have more than 16 axes",
    ),
    "axes that count twice": (  # ONNX Runtime removes one axis, not three
        lambda: crafted(
            [
                *chain.from_iterable(
                    (
                        node("Unsqueeze", f"t{k} three", f"u{k}"),
                        node("Squeeze", f"u{k} equal", f"t{k + 1}"),
                    )
                    for k in range(9)
                ),
                node("Identity", "x", "y"),
            ],
            [tensor("t0", [1.0], np.float32), tensor("three", [0, 1, 2]), tensor("equal", [0, 0, 0])],
        ),
        "may have more than 16 axes",
    ),
}
