"""Check a model file before ONNX Runtime sees it, and read its metadata. Needs no onnx.

A model passes if it is an ONNX graph whose tensors all lie in the file, and whose operators are those of
`OPERATORS`, of the ONNX standard, or functions of its own, as version 1.0 exported them. So a file can
compute, but neither read nor write files, nor load a library. Nothing is said about time and memory: see
`mdlstm infer --isolated`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdlstm_tk.errors import InputError

STANDARD_DOMAINS = (b"", b"ai.onnx")  # two names of one domain
FUNCTION_DOMAIN = b"mdlstm.functions"  # of version 1.0; in another one they could replace operators
MAX_DEPTH = 9  # of graphs in graphs, the outermost one included

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

# Fields of onnx.proto by message. Messages that hold neither nodes nor tensors are skipped.
GRAPH, PROPERTY, FUNCTION = 7, 14, 25  # of a model
CHILDREN = {  # message: {field: the message in it}
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
NODE_OUTPUT, NODE_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 2, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INTEGER = 1, 3
TENSOR_EXTERNAL, TENSOR_LOCATION = 13, 14
FUNCTION_DOMAIN_FIELD = 10
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
MALFORMED = "is not an ONNX model: it is malformed"


class Refusal(Exception):  # noqa: N818
    """The reason why a model is refused."""


def check_model(data: bytes, label: str, *, trusted: bool = False) -> dict[str, str]:
    """Check the content of an `.onnx` file, and return the entries of its `metadata_props`.

    Args:
        data, label: the file, and its name in error messages.
        trusted: allow all operators of the ONNX standard, for a file of your own.
    """
    try:
        parts: dict[int, list[memoryview]] = {GRAPH: [], PROPERTY: [], FUNCTION: []}
        for number, value in _parts(memoryview(data)):
            parts.get(number, []).append(value)
        if not parts[GRAPH]:
            raise Refusal("is not an ONNX model: it holds no graph")
        for function in parts[FUNCTION]:
            if bytes(dict(_parts(function)).get(FUNCTION_DOMAIN_FIELD, b"")) != FUNCTION_DOMAIN:
                raise Refusal("defines functions in a domain where they could replace operators")
            _check("function", function, trusted, STANDARD_DOMAINS)  # no calls, which could go on forever
        for graph in parts[GRAPH]:  # protobuf merges them
            _check("graph", graph, trusted, (*STANDARD_DOMAINS, FUNCTION_DOMAIN))
        entries = [dict(_parts(entry)) for entry in parts[PROPERTY]]
        return {str(each.get(1, b""), "utf-8"): str(each.get(2, b""), "utf-8") for each in entries}
    except Refusal as refusal:
        raise InputError(f"{label} {refusal}") from None
    except UnicodeDecodeError:
        raise InputError(f"{label} has metadata that are not UTF-8") from None


def _check(
    kind: str, message: memoryview, trusted: bool, domains: tuple[bytes, ...], depth: int = 0
) -> None:
    """Check all nodes and tensors in a message, and in the messages in it."""
    depth += kind == "graph"
    if depth > MAX_DEPTH:
        raise Refusal(f"nests graphs more than {MAX_DEPTH} deep")
    if kind == "node":
        _check_operator(message, trusted, domains)
    for number, value in _fields(message):
        if kind == "tensor" and (number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value)):
            raise Refusal("has tensors whose data lie outside the file, which are never read")
        if number in CHILDREN[kind] and isinstance(value, memoryview):
            _check(CHILDREN[kind][number], value, trusted, domains, depth)


def _check_operator(node: memoryview, trusted: bool, domains: tuple[bytes, ...]) -> None:
    fields = list(_parts(node))
    last = {number: bytes(value) for number, value in fields if number in (NODE_TYPE, NODE_DOMAIN)}
    operator, domain = last.get(NODE_TYPE, b""), last.get(NODE_DOMAIN, b"")
    if domain not in domains:
        raise Refusal(f"has a node of the domain {_shown(domain)}, expected operators of the ONNX standard")
    if operator not in OPERATORS and domain != FUNCTION_DOMAIN and not trusted:
        raise Refusal(f"uses the operator {_shown(operator)}; if you trust the file, pass --trusted")
    if domain == FUNCTION_DOMAIN and any(number == NODE_ATTRIBUTE for number, _ in fields):
        raise Refusal("gives attributes to a function, which takes none")
    if operator == b"Split":  # ONNX Runtime trusts num_outputs, and writes beyond its memory
        outputs = sum(number == NODE_OUTPUT for number, _ in fields)
        for attribute in (value for number, value in fields if number == NODE_ATTRIBUTE):
            is_count = bytes(dict(_parts(attribute)).get(ATTRIBUTE_NAME, b"")) == b"num_outputs"
            if is_count and dict(_fields(attribute)).get(ATTRIBUTE_INTEGER) != outputs:
                raise Refusal("has a Split into another number of parts than it has outputs")


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message that hold bytes: texts, tensors and other messages. ONNX Runtime
    skips a field of the right number in another wire type, so that it must not count here."""
    return ((number, value) for number, value in _fields(message) if isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a protobuf message: number, and the integer or the part of the file that it holds.
    Numbers of 4 and 8 bytes, which are floats in ONNX, are left out."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        wire_type = tag & 7
        # ONNX uses no groups, and ONNX Runtime would drop the higher bits of a large tag.
        if wire_type not in (VARINT, BYTES, FIXED32, FIXED64) or tag >= 2**32:
            raise Refusal(MALFORMED)
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        size = 4 if wire_type == FIXED32 else 8
        if wire_type == BYTES:
            size, position = _varint(message, position)
        if position + size > end:
            raise Refusal(MALFORMED)
        if wire_type == BYTES:
            yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The unsigned integer at a position, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, position + shift + 1
    raise Refusal(MALFORMED)


def _shown(name: bytes) -> str:
    return ascii(name[:60].decode(errors="replace"))
