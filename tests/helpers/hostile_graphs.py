"""Models that are refused for their operators, values or functions, by group."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from helpers.crafted_models import (
    FLOAT,
    NEGATE,
    PASS_ON,
    STRING,
    Case,
    attribute,
    body,
    call,
    called_often,
    calling_f,
    crafted,
    edited,
    external_tensor,
    function,
    info,
    node,
    scan,
    scanning,
    tensor,
    with_attribute,
)


def with_opsets(*opsets: tuple[str, int]) -> onnx.ModelProto:
    model = crafted()
    model.ClearField("opset_import")
    model.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets)
    return model


def if_node(inner: onnx.NodeProto, **keywords: object) -> onnx.NodeProto:
    graph = helper.make_graph([inner], "branch", [], [info("b", FLOAT, [None])])
    return node("If", "go", "y", then_branch=graph, else_branch=graph, **keywords)


LOOP = node("Loop", " go x", "y", body=body(*PASS_ON))
GO = tensor("go", True, np.bool_)


REMOVED = [
    "Constant",
    "DFT",
    "GridSample",
    "ImageDecoder",
    "LpPool",
    "NonZero",
    "Optional",
    "RandomNormalLike",
    "RoiAlign",
    "STFT",
    "SequenceConstruct",
    "StringNormalizer",
    "Unique",
]

OPERATORS: dict[str, Case] = {
    "newer opset": (lambda: with_opsets(("", 21)), "version 18 of the standard operators"),
    "two opsets": (lambda: with_opsets(("", 18), ("", 19)), "a domain with two versions"),
    "foreign domain": (lambda: with_opsets(("", 18), ("com.microsoft", 1)), "version 18 of"),
    "operator of Microsoft's that reads files": (
        lambda: crafted([node("EPContext", "x", "y", domain="com.microsoft")]),
        "'EPContext' of domain 'com.microsoft'",
    ),
    "Python in the graph": (
        lambda: crafted([node("PyOp", "x", "y", domain="ai.onnx.contrib")]),
        "'PyOp' of",
    ),
    "other name of the standard domain": (
        lambda: crafted([node("Neg", "x", "y", domain="ai.onnx")]),
        "'Neg' of",
    ),
    "function named like an operator of another domain": (
        lambda: crafted(
            [call("Binarizer", "x", "y", domain="ai.onnx.ml")],
            functions=[function("Binarizer", *NEGATE.node, domain="ai.onnx.ml")],
        ),
        "the function 'Binarizer' of domain 'ai.onnx.ml'",
    ),
    "function in place of a standard operator": (
        lambda: crafted([node("Neg", "x", "y")], functions=[function("Neg", *NEGATE.node, domain="")]),
        "the function 'Neg' of domain ''",
    ),
    "no operator": (lambda: crafted([node("", "x", "y")]), "the operator ''"),
    "loop": (lambda: crafted([LOOP], [GO]), "the operator 'Loop'"),
    "function called If with a loop": (
        lambda: crafted(
            [call("If", "x go", "y")], [GO], [function("If", LOOP, inputs="x go", outputs="y")]
        ),
        "the operator 'Loop'",
    ),
    "nested conditions": (lambda: crafted([if_node(if_node(LOOP))], [GO]), "the operator 'If'"),
    "text": (
        lambda: crafted([node("Cast", "x", "t", to=STRING), node("Identity", "x", "y")]),
        "the attribute to of Cast",
    ),
    **{
        name: (lambda name=name: crafted([node(name, "x", "y")]), f"the operator '{name}'")
        for name in REMOVED
    },
    "terminal escape": (lambda: crafted([node("\x1b[2J", "x", "y")]), r"'\\x1b\[2J'"),
    "attribute": (lambda: crafted([node("Neg", "x", "y", alpha=1.0)]), "the attribute 'alpha' of Neg"),
    "attribute twice": (
        lambda: edited(
            crafted([node("Elu", "x", "y", alpha=1.0)]),
            "graph.node[0]",
            attribute=[attribute(type=1, f=1.0)],
        ),
        "'alpha' of Elu twice",
    ),
    "attribute of another type": (lambda: crafted([node("Elu", "x", "y", alpha=1)]), "with a wrong type"),
    "attribute without a value": (lambda: with_attribute(type=1), "with a wrong type"),
    "attribute with two values": (lambda: with_attribute(type=1, f=1.0, i=1), "with a wrong type"),
    "infinite attribute": (
        lambda: crafted([node("Elu", "x", "y", alpha=float("inf"))]),
        "a value that no export",
    ),
    "axis 100": (lambda: crafted([node("Softmax", "x", "y", axis=100)]), "a value that no export"),
    "mode": (
        lambda: crafted([node("Pad", "x p", "y", mode="elsewhere")], [tensor("p", [0] * 8)]),
        "the attribute mode of Pad with a value",
    ),
    "kernel of millions of positions": (
        lambda: crafted([node("MaxPool", "x", "y", kernel_shape=[4096, 4096])]),
        "the attribute kernel_shape of MaxPool with a value",
    ),
    "kernel without extent": (lambda: crafted([node("MaxPool", "x", "y", kernel_shape=[0, 1])]), "a value"),
    "100 strides": (
        lambda: crafted([node("MaxPool", "x", "y", kernel_shape=[1] * 100)]),
        "more than 32 times",
    ),
    "equation over 17 axes": (
        lambda: crafted([node("Einsum", "x", "y", equation="abcdefghijklmnopq->a")]),
        "more than 16 axes",
    ),
    "equation of two tensors": (
        lambda: crafted([node("Einsum", "x", "y", equation="abcd,abcd->a")]),
        "an Einsum of another number of tensors",
    ),
    "constant of a million elements": (
        lambda: crafted([node("ConstantOfShape", "x", "y", value=tensor("", [0] * 1000, np.float32))]),
        "the attribute value of ConstantOfShape",
    ),
    "external constant": (
        lambda: crafted([node("ConstantOfShape", "x", "y", value=external_tensor())]),
        "outside the file",
    ),
    "missing input": (lambda: crafted([node("Max", "x ", "y")]), "'Max' without an input"),
    "missing argument": (lambda: crafted([call("f", "", "y")], [], [NEGATE]), "'f' without an input"),
    "missing input of a Scan": (lambda: crafted([scan(body(*PASS_ON), "x ")]), "'Scan' without an input"),
    "Split into other parts": (
        lambda: crafted([node("Split", "x", "y z", num_outputs=1)]),
        "another number of parts",
    ),
    "too many inputs": (lambda: crafted([node("Neg", "x x", "y")]), "'Neg' with 2 inputs and 1 outputs"),
    "too many outputs": (lambda: crafted([node("Neg", "x", "y z")]), "'Neg' with 1 inputs and 2 outputs"),
}

VALUES: dict[str, Case] = {
    "undefined": (lambda: crafted([node("Neg", "u", "y")]), "the value 'u' before it is defined"),
    "used before it is defined": (
        lambda: crafted([node("Neg", "t", "y"), node("Neg", "x", "t")]),
        "the value 't' before",
    ),
    "defined twice": (
        lambda: crafted([node("Neg", "x", "y"), node("Abs", "x", "y")]),
        "two values named 'y'",
    ),
    "input redefined": (lambda: crafted([node("Neg", "x", "x")]), "two values named 'x'"),
    "without a name": (
        lambda: crafted([node("TopK", "x k", " y")], [tensor("k", [1])]),
        "two values named ''",
    ),
    "body that stores a tensor": (
        lambda: scanning(*PASS_ON, initializers=[tensor("w", [1])]),
        "a body that stores tensors",
    ),
    "empty body": (lambda: scanning(), "an empty body"),
    "body that redefines a value": (
        lambda: scanning(node("Neg", "v", "rows"), *PASS_ON),
        "two values named 'rows'",
    ),
    "body that reads a computed value": (
        lambda: scanning(node("Add", "v rows", "v_out")),
        "the value 'rows' before it is defined",
    ),
    "body read from outside": (
        lambda: edited(scanning(*PASS_ON), "graph", node=[node("Neg", "v_out", "z")]),
        "used outside it",
    ),
    "body without an output": (lambda: scanning(node("Neg", "v", "t")), "does not compute its outputs"),
    "body of any rank": (lambda: scanning(*PASS_ON, rank=None), "'v' with an unknown number of axes"),
    "body of text": (
        lambda: crafted(
            [
                scan(
                    helper.make_graph(
                        PASS_ON,
                        "b",
                        [info("v", STRING, [1]), info("i", FLOAT, [])],
                        [info("v_out", STRING, [1])],
                    ),
                    "x x",
                )
            ]
        ),
        "'v', which is no tensor of numbers",
    ),
    "Scan in a Scan": (
        lambda: scanning(scan(body(*PASS_ON), "v two", "v_out")),
        "a Scan inside a function or another",
    ),
    "Scan without a body": (
        lambda: crafted([node("Scan", "x", "y", num_scan_inputs=1)]),
        "does not fit its inputs",
    ),
    "Scan of other inputs": (lambda: crafted([scan(body(*PASS_ON), "x")]), "does not fit its inputs"),
}

UNSAFE = "a division of integers by a number that may be 0 or -1"


def dividing(*before: onnx.NodeProto, by: str = "t", values: int | list[int] = 1) -> onnx.ModelProto:
    """A model that divides the smallest integer, which would end the process if the divisor is −1."""
    constants = [tensor("smallest", [-(2**63)]), tensor("c", values), tensor("s", [2])]
    return crafted([*before, node("Div", f"smallest {by}", "q"), node("Identity", "x", "y")], constants)


DIVISIONS: dict[str, Case] = {
    "by a constant": (lambda: dividing(by="c", values=[5, -1]), UNSAFE),
    "by one of many constants": (lambda: dividing(by="c", values=[*range(2000), -1]), UNSAFE),
    "by a moved constant": (lambda: dividing(node("Expand", "c s", "t"), values=-1), UNSAFE),
    "by a joined constant": (lambda: dividing(node("Concat", "s c", "t", axis=0), values=[-1]), UNSAFE),
    "by zero": (lambda: dividing(by="c", values=0), UNSAFE),
    "by a product of extents": (
        lambda: dividing(node("Shape", "x", "e"), node("ReduceProd", "e", "t")),
        UNSAFE,
    ),
    "by a computed number": (lambda: dividing(node("Neg", "c", "t")), UNSAFE),
    "by a product that overflows": (
        lambda: dividing(node("ReduceProd", "c", "t"), values=[2**32 - 1, 2**32 + 1]),
        UNSAFE,
    ),
    "by a number that is cut off": (
        lambda: dividing(
            node("Cast", "c", "narrow", to=6), node("Cast", "narrow", "t", to=7), values=2**32 - 1
        ),
        UNSAFE,
    ),
    "by a rounded number": (
        lambda: dividing(node("Neg", "x", "n"), node("Cast", "n", "t", to=7)),
        UNSAFE,
    ),
    "by an index": (lambda: dividing(node("TopK", "x s", "u t")), UNSAFE),
    "by a function's result": (
        lambda: edited(
            edited(dividing(call("f", "c", "t")), "", functions=[NEGATE]),
            "",
            opset_import=[helper.make_opsetid("mdlstm.functions", 1)],
        ),
        UNSAFE,
    ),
    "remainder": (
        lambda: crafted([node("Mod", "c c", "t"), node("Identity", "x", "y")], [tensor("c", [-1])]),
        UNSAFE,
    ),
}

FUNCTIONS: dict[str, Case] = {
    "undefined": (lambda: crafted([call("f", "x", "y")]), "the function 'f', which it does not define"),
    "uncalled": (lambda: crafted(functions=[NEGATE]), "the function 'f', which nothing calls"),
    "calls itself": (
        lambda: calling_f(function("f", call("f", "a", "b"))),
        "'f' from a function or a body",
    ),
    "calls another": (
        lambda: calling_f(function("f", call("g", "a", "b")), function("g", *NEGATE.node)),
        "'g' from a function",
    ),
    "called in a body": (
        lambda: edited(
            edited(scanning(call("f", "v", "v_out")), "", functions=[NEGATE]),
            "",
            opset_import=[helper.make_opsetid("mdlstm.functions", 1)],
        ),
        "'f' from a function or a body",
    ),
    "Scan inside": (
        lambda: calling_f(function("f", scan(body(*PASS_ON), "a a", "b"))),
        "a Scan inside a function",
    ),
    "twice": (lambda: calling_f(NEGATE, NEGATE), "two functions named 'f'"),
    "empty": (lambda: calling_f(function("f")), "without nodes"),
    "equal parameters": (lambda: calling_f(function("f", *NEGATE.node, inputs="a a")), "equal or missing"),
    "attributes": (lambda: calling_f(NEGATE, alpha=1.0), "a call of the function 'f' with attributes"),
    "graph as an attribute": (lambda: calling_f(NEGATE, graph=body(*PASS_ON)), "with attributes"),
    "too few arguments": (
        lambda: calling_f(function("f", node("Add", "a c", "b"), inputs="a c")),
        "'f' with 1 inputs",
    ),
    "unknown operator": (lambda: calling_f(function("f", node("NonZero", "a", "b"))), "'NonZero'"),
    "undefined value": (lambda: calling_f(function("f", node("Add", "a x", "b"))), "the value 'x' before"),
    "undefined result": (
        lambda: calling_f(function("f", node("Neg", "a", "c"))),
        "not compute its outputs",
    ),
    "other opset": (
        lambda: edited(calling_f(NEGATE), "functions[0]", opset_import=[helper.make_opsetid("own", 1)]),
        "other opsets",
    ),
    "constant inside": (
        lambda: called_often(
            function("f", node("Constant", "", "w", value=tensor("", [1])), *NEGATE.node), 9
        ),
        "'Constant'",
    ),
    "expands to a million nodes": (
        lambda: called_often(
            function("f", *(node("Neg", "a", f"t{k}") for k in range(1000)), *NEGATE.node), 1000
        ),
        "more than 250000 nodes",
    ),
    "expands to gigabytes": (
        lambda: called_often(
            function("f", *(node("Neg", "a", f"{k:0900}") for k in range(1000)), *NEGATE.node), 200
        ),
        "takes more than 100000000 bytes with its functions expanded",
    ),
}
