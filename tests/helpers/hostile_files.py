"""Models that are refused for their fields, encoding, tensors, interface or metadata, by group."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from helpers.crafted_models import (
    FLOAT,
    INT64,
    NEGATE,
    PASS_ON,
    STRING,
    Case,
    attribute,
    body,
    calling_f,
    crafted,
    edited,
    external_tensor,
    field,
    function,
    info,
    node,
    sparse_tensor,
    tensor,
    varint,
    with_attribute,
    with_bytes,
)


def with_tensor(**fields: object) -> onnx.ModelProto:
    """An honest model that stores one more tensor, of one float unless the fields say otherwise."""
    default = {"name": "w", "data_type": FLOAT, "dims": [1], "raw_data": b"\0\0\0\0"}
    return crafted([], [TensorProto(**{**default, **fields})])


def with_output(value: onnx.ValueInfoProto) -> onnx.ModelProto:
    return edited(crafted([node("Identity", "x", "y"), node("Shape", "x", "z")]), "graph", output=[value])


UNUSUAL_FIELDS: dict[str, Case] = {
    "training": (lambda: edited(crafted(), "", training_info=[onnx.TrainingInfoProto()]), "training"),
    "documentation": (lambda: edited(crafted(), "", doc_string="a"), "a doc_string"),
    "documented graph": (lambda: edited(crafted(), "graph", doc_string="a"), "a doc_string"),
    "documented node": (lambda: edited(crafted(), "graph.node[0]", doc_string="a"), "a doc_string"),
    "unknown field": (
        lambda: crafted().SerializeToString() + field(99, 0, b"\1"),
        "unknown field 99 in Model",
    ),
    "unknown field of a node": (
        lambda: with_bytes(field(1, 2, node("Neg", "x", "z").SerializeToString() + field(15, 2, b""))),
        "unknown field 15 in NodeProto",
    ),
    "sparse tensor": (lambda: edited(crafted(), "graph", sparse_initializer=[sparse_tensor()]), "sparse"),
    "quantization": (
        lambda: edited(crafted(), "graph", quantization_annotation=[onnx.TensorAnnotation()]),
        "a quantization annotation",
    ),
    "intermediate value": (lambda: edited(crafted(), "graph", value_info=[info("v")]), "declarations of"),
    "overload": (lambda: edited(crafted(), "graph.node[0]", overload="a"), "an overloaded operator"),
    "metadata of a node": (
        lambda: edited(
            crafted(), "graph.node[0]", metadata_props=[onnx.StringStringEntryProto(key="a", value="b")]
        ),
        "further metadata_props",
    ),
    "function with an attribute": (
        lambda: calling_f(function("f", *NEGATE.node, attributes=["alpha"])),
        "attrib",
    ),
    "function with a default": (
        lambda: calling_f(function("f", *NEGATE.node, attribute_protos=[attribute(type=1, f=1.0)])),
        "a function with attributes",
    ),
    "overloaded function": (lambda: edited(calling_f(NEGATE), "functions[0]", overload="a"), "overloaded"),
    "reference to an attribute": (lambda: with_attribute(type=1, ref_attr_name="a"), "a reference to"),
    "list of floats": (lambda: with_attribute(type=6, floats=[1.0]), "a list of floats"),
    "list of strings": (lambda: with_attribute(type=8, strings=[b"a"]), "a list of strings"),
    "list of tensors": (lambda: with_attribute(type=9, tensors=[external_tensor()]), "a list of tensors"),
    "list of graphs": (lambda: with_attribute(type=10, graphs=[body(*PASS_ON)]), "a list of graphs"),
    "attribute that is a type": (lambda: with_attribute(type=13, tp=onnx.TypeProto()), "that is a type"),
    "list of types": (lambda: with_attribute(type=14, type_protos=[onnx.TypeProto()]), "a list of types"),
    "sparse attribute": (lambda: with_attribute(type=11, sparse_tensor=sparse_tensor()), "a sparse tensor"),
    "sparse attributes": (lambda: with_attribute(type=12, sparse_tensors=[sparse_tensor()]), "a sparse"),
    "segment": (lambda: with_tensor(segment=TensorProto.Segment(begin=0, end=1)), "a tensor in segments"),
    "floats": (lambda: with_tensor(float_data=[1.0]), "not in raw_data"),
    "strings": (lambda: with_tensor(string_data=[b"a"]), "a tensor of strings"),
    "sequence": (
        lambda: with_output(helper.make_tensor_sequence_value_info("z", FLOAT, None)),
        "a value that is a sequence",
    ),
    "optional value": (
        lambda: with_output(
            helper.make_value_info(
                "z", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, []))
            )
        ),
        "an optional value",
    ),
}

ENCODINGS: dict[str, Case] = {
    "two graphs that protobuf merges": (
        lambda: crafted().SerializeToString() + field(7, 2, b""),
        "graph twice",
    ),
    "no graph": (lambda: b"\x08\x0a", "no graph"),
    "two types of a tensor": (
        lambda: with_bytes(field(5, 2, tensor("w", [1]).SerializeToString() + field(2, 0, b"\1"))),
        "the field data_type twice",
    ),
    "extents as fixed32": (
        lambda: with_bytes(field(5, 2, field(1, 5, b"\xff\xff\xff\x7f") + b"\x10\x01")),
        "dims of TensorProto in a wrong encoding",
    ),
    "20 MB of packed extents": (
        lambda: with_bytes(field(5, 2, field(1, 2, b"\1" * 20_000_000) + b"\x10\x01")),
        "dims of TensorProto in a wrong encoding",
    ),
    "20 MB of extents": (
        lambda: with_bytes(field(5, 2, b"\x08\1" * 10_000_000 + b"\x10\x01")),
        "dims more than 16 times",
    ),
    "type beyond 32 bits, which protobuf cuts off": (
        lambda: with_bytes(field(5, 2, b"\x08\1" + field(2, 0, varint(2**32 + 1)) + field(9, 2, b"0000"))),
        "unknown type",
    ),
    "fields of a node in another order": (
        lambda: with_bytes(field(1, 2, field(4, 2, b"Neg") + field(1, 2, b"x") + field(2, 2, b"z"))),
        "not in the order",
    ),
    "two operators of a node": (
        lambda: with_bytes(field(1, 2, node("Neg", "x", "z").SerializeToString() + field(4, 2, b"Abs"))),
        "not in the order",
    ),
    "node that runs into the next": (
        lambda: with_bytes(b"\x0a\x04" + node("Neg", "x", "z").SerializeToString()),
        "malformed|order",
    ),
    "long name of an operator": (
        lambda: with_bytes(field(1, 2, field(1, 2, b"x") + field(2, 2, b"z") + field(4, 2, b"a" * 200))),
        "more than 127 bytes",
    ),
    "long name": (lambda: crafted([node("Neg", "x", "y", name="a" * 2000)]), "a name of more than 1000"),
    "group": (lambda: crafted().SerializeToString() + b"\x0b\x0c", "malformed"),
}

TENSORS: dict[str, Case] = {
    "external": (lambda: crafted([node("Add", "x w", "y")], [external_tensor()]), "outside the file"),
    "strings": (lambda: with_tensor(data_type=STRING, raw_data=b""), "of strings"),
    "unknown type": (lambda: with_tensor(data_type=99), "unknown type"),
    "no type": (lambda: with_bytes(field(5, 2, b"\x08\1" + field(9, 2, b"0000"))), "without a type"),
    "terabytes declared": (lambda: with_tensor(dims=[10**6, 10**6]), "needs 4000000000000 bytes"),
    "negative extent": (lambda: with_tensor(dims=[-1]), "needs .* bytes, but which has 4"),
    "more data than declared": (lambda: with_tensor(raw_data=b"\0" * 8), "needs 4 bytes, but which has 8"),
    "endless and empty": (lambda: with_tensor(dims=[2**40, 0], raw_data=b""), "needs 0 bytes"),
    "many axes": (lambda: with_tensor(dims=[1] * 17), "dims more than 16 times"),
    "same name": (lambda: crafted([], [tensor("w", [1]), tensor("w", [1])]), "two values named 'w'"),
    "default of an input": (lambda: crafted([], [tensor("x", [1])]), "two values named 'x'"),
}

INTERFACES: dict[str, Case] = {
    "text as output": (
        lambda: with_output(info("z", STRING, [None])),
        "'z', which is no tensor of numbers",
    ),
    "unknown number of axes": (lambda: with_output(info("z", INT64)), "'z' with an unknown number of axes"),
    "many axes": (lambda: with_output(info("z", INT64, [1] * 17)), "dim more than 16 times"),
    "no type": (lambda: with_output(onnx.ValueInfoProto(name="z")), "'z' without a type"),
    "no name": (lambda: with_output(info("", INT64, [4])), "without a name"),
    "terminal escape": (lambda: with_output(info("\x1b[2J", STRING, [4])), r"'\\x1b\[2J', which"),
    "not UTF-8": (
        lambda: with_output(info("\x01\x01", INT64, [4])).SerializeToString().replace(b"\1\1", b"\xff\xff"),
        "not UTF-8",
    ),
    "output that nothing computes": (lambda: with_output(info("u", INT64, [4])), "no node computes"),
    "output twice": (lambda: with_output(info("y", FLOAT, [4])), "declared twice"),
    "huge extent": (lambda: with_output(info("z", INT64, [2**40])), "no number of positions"),
    "300 inputs": (
        lambda: edited(crafted(), "graph", input=[info(f"x{k}", FLOAT, [1]) for k in range(300)]),
        "input more than 256 times",
    ),
}

METADATA: dict[str, Case] = {
    "one key twice": (
        lambda: edited(
            crafted(), "", metadata_props=[onnx.StringStringEntryProto(key="mdlstm.grid", value="[9, 9]")]
        ),
        "two entries 'mdlstm.grid'",
    ),
    "not UTF-8": (
        lambda: crafted(task='"\x01\x01"').SerializeToString().replace(b"\1\1", b"\xff\xff"),
        "UTF-8",
    ),
    "300 entries": (lambda: crafted(**{f"k{k}": "1" for k in range(300)}), "metadata_props more than 200"),
    "2 MB": (lambda: crafted(task="1" * 2_000_000), "more than 1048576 bytes in value"),
}
