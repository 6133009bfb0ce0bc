"""Check a model file before ONNX Runtime sees it.

A model passes if
- it is a protobuf message of a bounded size that holds a graph;
- all its tensors lie in the file, so that nothing outside it is read;
- its operators are those of the ONNX standard that `OPERATORS` lists, or functions of its own, which are in
  the domain of exported functions and call no other functions.

So a file can compute, but it can neither read nor write files, nor give the name of a standard operator to
something else. The check says nothing about time and memory: a small file may compute large tensors. Nor
does it protect from a mistake in ONNX Runtime. `Session(isolated=True)` limits both, in another process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import MAX_BYTES

STANDARD_DOMAINS = (b"", b"ai.onnx")  # two names of one domain
FUNCTION_DOMAIN = b"mdlstm.functions"
MAX_DEPTH = 8  # of graphs in graphs

# Not listed are operators on strings, sequences and optional values, random ones, and those that need
# `trusted`: If and Loop, which repeat and nest; NonZero, RoiAlign, LpPool, DFT and windows of signals,
# which run long or allocate memory that no limit of ONNX Runtime counts; GridSample, which computes
# addresses.
OPERATORS = frozenset(
    b"""
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape
    Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid
    HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul
    QuantizeLinear RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round Scan
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
    Where Xor
    """.split()
)

# Fields of onnx.proto. Messages that hold neither nodes nor tensors are skipped.
MODEL_GRAPH, MODEL_PROPERTY, MODEL_FUNCTION = 7, 14, 25
GRAPH_NODE, FUNCTION_NODE = 1, 7
FUNCTION_NAME, FUNCTION_DOMAIN_FIELD = 1, 10
NODE_OUTPUT, NODE_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 2, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INTEGER = 1, 3
ATTRIBUTE_GRAPHS = (6, 11)
TENSOR_EXTERNAL, TENSOR_LOCATION = 13, 14
CHILDREN = {  # message: {field: the message in it}
    "graph": {5: "tensor", 15: "sparse tensor"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse tensor", 23: "sparse tensor"},
    "function": {11: "attribute"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf


class Refusal(Exception):  # noqa: N818
    """The reason why a model is refused."""


class Span(NamedTuple):
    """Part of the file: data[start:end]."""

    start: int
    end: int


def check_model(
    data: bytes, label: str, *, max_bytes: int = MAX_BYTES, trusted: bool = False
) -> dict[str, str]:
    """Check the content of an `.onnx` file, and return the entries of its `metadata_props`.

    Args:
        data, label: the file, and its name in error messages.
        max_bytes: maximum size in bytes of the file.
        trusted: allow all operators of the ONNX standard, for a file of your own.

    Raises:
        InputError: the file is refused, or is not an ONNX model; the message says why.
    """
    if len(data) > max_bytes:
        raise InputError(
            f"{label} takes {len(data)} bytes, more than {max_bytes}; allow more with max_bytes=..."
        )
    try:
        return _Check(data, trusted).properties()
    except Refusal as refusal:
        raise InputError(f"{label} {refusal}") from None


class _Check:
    """The check of one file.

    Args:
        data: its content.
        trusted: as for `check_model`.
    """

    def __init__(self, data: bytes, trusted: bool) -> None:
        self._data, self._trusted = data, trusted
        self._functions: set[bytes] = set()

    def properties(self) -> dict[str, str]:
        """Check the model, and return its `metadata_props`."""
        graphs: list[Span] = []
        functions: list[Span] = []
        properties: dict[str, str] = {}
        for number, value in _fields(self._data, Span(0, len(self._data))):
            if not isinstance(value, Span):
                continue
            if number == MODEL_GRAPH:
                graphs.append(value)
            elif number == MODEL_FUNCTION:
                functions.append(value)
            elif number == MODEL_PROPERTY:
                texts = {key: self._bytes(text) for key, text in _fields(self._data, value)}
                try:
                    properties[texts.get(1, b"").decode()] = texts.get(2, b"").decode()
                except UnicodeDecodeError:
                    raise Refusal("has metadata that are not UTF-8; export the model again") from None
        if not graphs:
            raise Refusal("is not an ONNX model: it holds no graph")
        for function in functions:
            self._read_function(function)
        for function in functions:
            self._check_message("function", function, depth=0, in_function=True)
        for graph in graphs:  # protobuf merges them
            self._check_message("graph", graph, depth=0, in_function=False)
        return properties

    def _read_function(self, span: Span) -> None:
        """Note the name of a function."""
        values = dict(_fields(self._data, span))
        name = self._bytes(values.get(FUNCTION_NAME))
        domain = self._bytes(values.get(FUNCTION_DOMAIN_FIELD))
        if domain != FUNCTION_DOMAIN:
            raise Refusal(
                f"defines the function {_shown(name)} in the domain {_shown(domain)}; expected functions "
                f"in '{FUNCTION_DOMAIN.decode()}' alone"
            )
        if name in self._functions:
            raise Refusal(f"defines two functions named {_shown(name)}")
        self._functions.add(name)

    def _check_message(self, kind: str, span: Span, depth: int, in_function: bool) -> None:
        """Check all nodes and tensors in a message, and in the messages in it."""
        if depth > MAX_DEPTH:
            raise Refusal(f"nests graphs more than {MAX_DEPTH} deep")
        nodes = {"graph": GRAPH_NODE, "function": FUNCTION_NODE}.get(kind)
        children = CHILDREN[kind]
        for number, value in _fields(self._data, span):
            if kind == "tensor" and (number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value)):
                raise Refusal("has tensors whose data lie outside the file, which are never read")
            if not isinstance(value, Span):
                continue
            if number == nodes:
                self._check_node(value, depth, in_function)
            elif number in children:
                self._check_message(children[number], value, depth, in_function)
            elif kind == "attribute" and number in ATTRIBUTE_GRAPHS:
                self._check_message("graph", value, depth + 1, in_function)

    def _check_node(self, span: Span, depth: int, in_function: bool) -> None:
        """Check the operator of a node, and its attributes."""
        operator = domain = b""
        attributes: list[Span] = []
        outputs = 0
        for number, value in _fields(self._data, span):
            if number == NODE_OUTPUT:
                outputs += 1
            elif number == NODE_TYPE:
                operator = self._bytes(value)
            elif number == NODE_DOMAIN:
                domain = self._bytes(value)
            elif number == NODE_ATTRIBUTE and isinstance(value, Span):
                attributes.append(value)
        if domain == FUNCTION_DOMAIN and operator in self._functions and not in_function:
            return
        if domain not in STANDARD_DOMAINS:
            raise Refusal(
                f"has a node {_shown(operator)} of the domain {_shown(domain)}; expected operators of the "
                "ONNX standard, and calls of functions of the file from its graphs"
            )
        if operator not in OPERATORS and not self._trusted:
            raise Refusal(
                f"uses the operator {_shown(operator)}, which only files that you trust may use; if this "
                "is one, pass trusted=True"
            )
        for attribute in attributes:
            if operator == b"Split":
                self._check_split(attribute, outputs)
            self._check_message("attribute", attribute, depth, in_function)

    def _check_split(self, attribute: Span, outputs: int) -> None:
        """Check `num_outputs`: ONNX Runtime trusts it, and writes beyond its memory if it is wrong."""
        values = dict(_fields(self._data, attribute))
        is_number = self._bytes(values.get(ATTRIBUTE_NAME)) == b"num_outputs"
        if is_number and values.get(ATTRIBUTE_INTEGER) != outputs:
            raise Refusal("has a Split into another number of parts than it has outputs")

    def _bytes(self, value: Span | int | None) -> bytes:
        return self._data[value.start : value.end] if isinstance(value, Span) else b""


def _fields(data: bytes, span: Span) -> Iterator[tuple[int, Span | int]]:
    """The fields of a protobuf message: number, and the integer or the part of the file that it holds.

    Raises:
        Refusal: the message is malformed.
    """
    position, end = span
    while position < end:
        tag, position = _varint(data, position, end)
        wire_type = tag & 7
        if wire_type == VARINT:
            value, position = _varint(data, position, end)
            yield tag >> 3, value
            continue
        if wire_type == BYTES:
            size, position = _varint(data, position, end)
        elif wire_type in (FIXED32, FIXED64):
            size = 4 if wire_type == FIXED32 else 8
        else:  # groups, which ONNX does not use
            raise _malformed(position)
        if position + size > end:
            raise _malformed(position)
        yield tag >> 3, Span(position, position + size)
        position += size


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The unsigned integer at a position, and the position after it."""
    value = shift = 0
    for index in range(position, min(end, position + 10)):
        byte = data[index]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, index + 1
        shift += 7
    raise _malformed(position)


def _malformed(position: int) -> Refusal:
    return Refusal(f"is not an ONNX model: it is malformed at byte {position}")


def _shown(name: bytes) -> str:
    return ascii(name[:60].decode(errors="replace"))
