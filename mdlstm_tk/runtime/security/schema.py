"""The messages and fields of ONNX that an exported model has.

Whatever is not listed here is refused: fields of features that no export uses, fields that do not exist,
fields of the wrong wire type, and single fields that occur twice, of which protobuf would merge some and
keep the last of others. Field numbers are those of onnx.proto, which never change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mdlstm_tk.runtime.security.protobuf import BYTES, FIXED32, VARINT, Reader
from mdlstm_tk.runtime.security.refusal import holds

MAX_RANK = 16  # axes of a tensor; a layer with a window on a 6-dimensional grid needs 14
MAX_NAME = 1000  # bytes of a name
MAX_PROPERTIES = 200  # entries of metadata_props
MAX_INTERFACE = 256  # inputs, and outputs, of a graph or a function
MAX_ATTRIBUTE_NUMBERS = 2 * MAX_RANK  # pads have a number for each end of each axis

Span = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """A field that a message may have.

    Attributes:
        name: its name in onnx.proto.
        wire_type: how it is encoded.
        limit: how often it may occur in one message; None: any number of times.
        max_bytes: largest size of the value; None: any size.
    """

    name: str
    wire_type: int
    limit: int | None = 1
    max_bytes: int | None = None


@dataclass(frozen=True)
class Message:
    """A message type.

    Attributes:
        name: its name in onnx.proto.
        fields: the fields that it may have, by number.
        refused: what the other fields are, by number, for error messages.
    """

    name: str
    fields: dict[int, Field]
    refused: dict[int, str] = field(default_factory=dict)

    def refusal(self, number: int) -> Exception:
        """The refusal of a field that is not among `fields`."""
        return holds(self.refused.get(number, f"an unknown field {number} in {self.name}"))


def _name(name: str, limit: int | None = 1) -> Field:
    return Field(name, BYTES, limit, MAX_NAME)


DOC, METADATA = "a doc_string", "further metadata_props"

MODEL = Message(
    "ModelProto",
    {
        1: Field("ir_version", VARINT),
        2: _name("producer_name"),
        7: Field("graph", BYTES),
        8: Field("opset_import", BYTES, 8),
        14: Field("metadata_props", BYTES, MAX_PROPERTIES),
        25: Field("functions", BYTES, None),
    },
    {
        3: "a producer_version",
        4: "a domain",
        5: "a model_version",
        6: DOC,
        20: "training information",
        26: "a device configuration",
    },
)
OPSET = Message("OperatorSetIdProto", {1: _name("domain"), 2: Field("version", VARINT)})
PROPERTY = Message("StringStringEntryProto", {1: _name("key"), 2: Field("value", BYTES, 1, 2**20)})
GRAPH = Message(
    "GraphProto",
    {
        1: Field("node", BYTES, None),
        2: _name("name"),
        5: Field("initializer", BYTES, None),
        11: Field("input", BYTES, MAX_INTERFACE),
        12: Field("output", BYTES, MAX_INTERFACE),
    },
    {
        10: DOC,
        13: "declarations of intermediate values",
        14: "a quantization annotation",
        15: "a sparse tensor",
        16: METADATA,
    },
)
VALUE = Message(
    "ValueInfoProto",
    {1: _name("name"), 2: Field("type", BYTES), 4: Field("metadata_props", BYTES, 16)},
    {3: DOC},
)
TYPE = Message(
    "TypeProto",
    {1: Field("tensor_type", BYTES)},
    {
        4: "a value that is a sequence",
        5: "a value that is a map",
        6: "a denotation",
        7: "a value of an opaque type",
        8: "a value that is a sparse tensor",
        9: "an optional value",
    },
)
TENSOR_TYPE = Message("TypeProto.Tensor", {1: Field("elem_type", VARINT), 2: Field("shape", BYTES)})
SHAPE = Message("TensorShapeProto", {1: Field("dim", BYTES, MAX_RANK)})
DIMENSION = Message(
    "TensorShapeProto.Dimension",
    {1: Field("dim_value", VARINT), 2: _name("dim_param")},
    {3: "a denotation"},
)
TENSOR = Message(
    "TensorProto",
    {
        1: Field("dims", VARINT, MAX_RANK),
        2: Field("data_type", VARINT),
        8: _name("name"),
        9: Field("raw_data", BYTES),
    },
    {
        3: "a tensor in segments",
        **dict.fromkeys((4, 5, 7, 10, 11), "a tensor whose numbers are not in raw_data"),
        6: "a tensor of strings",
        12: DOC,
        13: "a tensor whose data lie outside the file, which are never read",
        14: "a tensor whose data lie outside the file, which are never read",
        16: METADATA,
    },
)
FUNCTION = Message(
    "FunctionProto",
    {
        1: _name("name"),
        4: _name("input", MAX_INTERFACE),
        5: _name("output", MAX_INTERFACE),
        7: Field("node", BYTES, None),
        9: Field("opset_import", BYTES, 8),
        10: _name("domain"),
    },
    {
        6: "a function with attributes",
        8: DOC,
        11: "a function with attributes",
        12: "declarations of intermediate values",
        13: "an overloaded function",
        14: METADATA,
    },
)
NODE = Message(
    "NodeProto",
    {
        1: _name("input", None),
        2: _name("output", None),
        3: _name("name"),
        4: _name("op_type"),
        5: Field("attribute", BYTES, 16),
        7: _name("domain"),
    },
    {6: DOC, 8: "an overloaded operator", 9: METADATA, 10: "a device configuration"},
)
ATTRIBUTE = Message(
    "AttributeProto",
    {
        1: _name("name"),
        2: Field("f", FIXED32),
        3: Field("i", VARINT),
        4: Field("s", BYTES, 1, MAX_NAME),
        5: Field("t", BYTES),
        6: Field("g", BYTES),
        8: Field("ints", VARINT, MAX_ATTRIBUTE_NUMBERS),
        20: Field("type", VARINT),
    },
    {
        7: "an attribute with a list of floats",
        9: "an attribute with a list of strings",
        10: "an attribute with a list of tensors",
        11: "an attribute with a list of graphs",
        13: DOC,
        14: "an attribute that is a type",
        15: "an attribute with a list of types",
        21: "a reference to an attribute of a function",
        22: "a sparse tensor",
        23: "a sparse tensor",
    },
)


class Content:
    """The fields of one message, after checks against its type.

    Args:
        reader: of the file.
        message: type of the message.
        start, end: where the message lies in the file.

    Raises:
        Refusal: the message is malformed, or holds something that its type does not list.
    """

    def __init__(self, reader: Reader, message: Message, start: int, end: int) -> None:
        self._data = reader.data
        self._spans: dict[str, list[Span]] = {}
        allowed, spans = message.fields, self._spans
        for number, wire_type, a, b in reader.fields(start, end):
            known = allowed.get(number)
            if known is None:
                raise message.refusal(number)
            if wire_type != known.wire_type:
                raise holds(f"the field {known.name} of {message.name} in a wrong encoding")
            if known.max_bytes is not None and b - a > known.max_bytes:
                raise holds(f"more than {known.max_bytes} bytes in {known.name} of {message.name}")
            found = spans.get(known.name)
            if found is None:
                spans[known.name] = [(a, b)]
                continue
            if len(found) == known.limit:
                times = "twice" if known.limit == 1 else f"more than {known.limit} times"
                raise holds(f"the field {known.name} {times} in one {message.name}")
            found.append((a, b))

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def names(self) -> set[str]:
        """The fields that the message has."""
        return set(self._spans)

    def spans(self, name: str) -> list[Span]:
        """Where the values of a field lie."""
        return self._spans.get(name, [])

    def span(self, name: str) -> Span | None:
        """Where the only value of a field lies; None if the message lacks it."""
        return self._spans[name][0] if name in self._spans else None

    def text(self, name: str) -> bytes:
        """The bytes of a single field; empty if the message lacks it."""
        start, end = self.span(name) or (0, 0)
        return self._data[start:end]

    def texts(self, name: str) -> list[bytes]:
        """The bytes of all occurrences of a field."""
        return [self._data[start:end] for start, end in self.spans(name)]

    def number(self, name: str) -> int | None:
        """The unsigned value of a single VARINT field; None if the message lacks it."""
        return self._spans[name][0][0] if name in self._spans else None

    def numbers(self, name: str) -> list[int]:
        """The unsigned values of all occurrences of a VARINT field."""
        return [value for value, _ in self.spans(name)]
