"""Check a model file before ONNX Runtime sees it.

A model passes if
- it is a protobuf message of a bounded size that holds a graph;
- all its tensors lie in the file, so that nothing outside it is read;
- its operators are those of the ONNX standard that `OPERATORS` lists, or functions of its own, which are in
  the domain of functions that version 1.0 exported and call no other functions.

So a file can compute, but it can neither read nor write files, nor give the name of a standard operator to
something else. The check says nothing about time and memory: a small file may compute large tensors. Nor
does it protect from a mistake in ONNX Runtime. `Session(isolated=True)` limits both, in another process.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdlstm_tk.errors import Argument, InputError
from mdlstm_tk.runtime.io.npy import MAX_BYTES, MORE_BYTES

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
MALFORMED = "is not an ONNX model: it is malformed"
MAX_TAG = 2**32 - 1  # the number of a field and its wire type; ONNX Runtime would drop higher bits


class Refusal(Exception):  # noqa: N818
    """The reason why a model is refused."""


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
        raise InputError(f"{label} takes {len(data)} bytes, more than {max_bytes}", MORE_BYTES)
    try:
        return _Check(trusted).properties(memoryview(data))
    except Refusal as refusal:
        raise InputError(f"{label} ", *refusal.args) from None


class _Check:
    """The check of one file; `trusted` is that of `check_model`."""

    def __init__(self, trusted: bool) -> None:
        self._trusted = trusted
        self._functions: set[bytes] = set()

    def properties(self, model: memoryview) -> dict[str, str]:
        """Check the model, and return its `metadata_props`."""
        parts: dict[int, list[memoryview]] = {MODEL_GRAPH: [], MODEL_FUNCTION: [], MODEL_PROPERTY: []}
        for number, value in _parts(model):
            if number in parts:
                parts[number].append(value)
        if not parts[MODEL_GRAPH]:
            raise Refusal("is not an ONNX model: it holds no graph")
        for function in parts[MODEL_FUNCTION]:
            values = dict(_parts(function))
            name, domain = (bytes(values.get(key, b"")) for key in (FUNCTION_NAME, FUNCTION_DOMAIN_FIELD))
            if domain != FUNCTION_DOMAIN:
                raise Refusal(
                    f"defines the function {_shown(name)} in the domain {_shown(domain)}; expected "
                    f"functions in '{FUNCTION_DOMAIN.decode()}' alone"
                )
            if name in self._functions:
                raise Refusal(f"defines two functions named {_shown(name)}")
            self._functions.add(name)
        for function in parts[MODEL_FUNCTION]:
            self._check_message("function", function, depth=0, in_function=True)
        for graph in parts[MODEL_GRAPH]:  # protobuf merges them
            self._check_message("graph", graph, depth=0, in_function=False)
        entries = [dict(_parts(entry)) for entry in parts[MODEL_PROPERTY]]
        try:
            return {str(entry.get(1, b""), "utf-8"): str(entry.get(2, b""), "utf-8") for entry in entries}
        except UnicodeDecodeError:
            raise Refusal("has metadata that are not UTF-8; export the model again") from None

    def _check_message(self, kind: str, message: memoryview, depth: int, in_function: bool) -> None:
        """Check all nodes and tensors in a message, and in the messages in it."""
        if depth > MAX_DEPTH:
            raise Refusal(f"nests graphs more than {MAX_DEPTH} deep")
        nodes = {"graph": GRAPH_NODE, "function": FUNCTION_NODE}.get(kind)
        children = CHILDREN[kind]
        for number, value in _fields(message):
            if kind == "tensor" and (number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value)):
                raise Refusal("has tensors whose data lie outside the file, which are never read")
            if not isinstance(value, memoryview):
                continue
            if number == nodes:
                self._check_node(value, depth, in_function)
            elif number in children:
                self._check_message(children[number], value, depth, in_function)
            elif kind == "attribute" and number in ATTRIBUTE_GRAPHS:
                self._check_message("graph", value, depth + 1, in_function)

    def _check_node(self, node: memoryview, depth: int, in_function: bool) -> None:
        """Check the operator of a node, and its attributes."""
        operator = domain = b""
        attributes: list[memoryview] = []
        outputs = 0
        for number, value in _parts(node):
            if number == NODE_OUTPUT:
                outputs += 1
            elif number == NODE_TYPE:
                operator = bytes(value)
            elif number == NODE_DOMAIN:
                domain = bytes(value)
            elif number == NODE_ATTRIBUTE:
                attributes.append(value)
        is_call = domain == FUNCTION_DOMAIN and operator in self._functions and not in_function
        if not is_call and domain not in STANDARD_DOMAINS:
            raise Refusal(
                f"has a node {_shown(operator)} of the domain {_shown(domain)}; expected operators of the "
                "ONNX standard, and calls of functions of the file from its graphs"
            )
        if not is_call and operator not in OPERATORS and not self._trusted:
            raise Refusal(
                f"uses the operator {_shown(operator)}, which only files that you trust may use; if this "
                "is one, pass ",
                Argument("trusted", True),
            )
        for attribute in attributes:
            if operator == b"Split":  # ONNX Runtime trusts num_outputs, and writes beyond its memory
                name = bytes(dict(_parts(attribute)).get(ATTRIBUTE_NAME, b""))
                if name == b"num_outputs" and dict(_fields(attribute)).get(ATTRIBUTE_INTEGER) != outputs:
                    raise Refusal("has a Split into another number of parts than it has outputs")
            # The function may use a graph that its caller gives.
            self._check_message("attribute", attribute, depth, in_function or is_call)


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message that hold bytes: texts, tensors and other messages.

    ONNX Runtime skips a field of the right number in another wire type, so that it must not count here.
    """
    return ((number, value) for number, value in _fields(message) if isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a protobuf message: number, and the integer or the part of the file that it holds.
    Numbers of 4 and 8 bytes, which are floats in ONNX, are left out."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if tag > MAX_TAG:
            raise Refusal(MALFORMED)
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        size = 4 if wire_type == FIXED32 else 8
        if wire_type == BYTES:
            size, position = _varint(message, position)
        if wire_type not in (BYTES, FIXED32, FIXED64) or position + size > end:  # ONNX uses no groups
            raise Refusal(MALFORMED)
        if wire_type == BYTES:
            yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The unsigned integer at a position, and the position after it."""
    value = shift = 0
    for index in range(position, min(len(message), position + 10)):
        byte = message[index]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, index + 1
        shift += 7
    raise Refusal(MALFORMED)


def _shown(name: bytes) -> str:
    return ascii(name[:60].decode(errors="replace"))
