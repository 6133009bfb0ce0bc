"""Check an untrusted model before ONNX Runtime sees a byte of it.

A model is refused if it holds:
- tensors whose data lie outside the file, sparse tensors, or tensors of strings;
- operators that are neither in `OPERATORS` nor functions of the model's own;
- tensors that declare more memory than allowed;
- loops over an empty body, which cannot be interrupted;
- functions that are recursive, or that expand to so many nodes that they would fill the memory;
- training information.

Limits: a single operator on large tensors runs until it is done, whatever the timeout, and ONNX Runtime
itself is trusted with every model that passes. Run models from determined attackers in a container.
"""

from __future__ import annotations

from collections import Counter
from math import prod

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.security.protobuf import BYTES, VARINT, Reader

MAX_NODES = 1_000_000  # with all functions expanded
MAX_DEPTH = 8  # of nested graphs, and of functions that call functions
MAX_RANK = 32

# Standard operators on numbers. Operators on strings, sequences, optional values and encoded images are
# missing, as are random ones and those for training.
OPERATORS = frozenset(
    b"""
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike
    Ceil Celu CenterCropPad Clip Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger
    ConvTranspose Cos Cosh CumProd CumSum DFT DeformConv DepthToSpace DequantizeLinear Det Div Dropout
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax
    Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual
    Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean
    MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Neg NegativeLogLikelihoodLoss
    NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear
    RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
    RoiAlign RotaryEmbedding Round STFT Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin
    Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub
    Sum SwiGLU Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze
    Upsample Where Xor
    """.split()
)
STANDARD_DOMAINS = (b"", b"ai.onnx")

# Bytes per element, by TensorProto.DataType. STRING and unknown types are missing.
ITEM_BYTES = {
    **dict.fromkeys((2, 3, 9), 1),  # uint8, int8, bool
    **dict.fromkeys((4, 5, 10, 16), 2),  # uint16, int16, float16, bfloat16
    **dict.fromkeys((1, 6, 12), 4),  # float, int32, uint32
    **dict.fromkeys((7, 11, 13, 14), 8),  # int64, double, uint64, complex64
    15: 16,  # complex128
    **dict.fromkeys(range(17, 29), 1),  # 8 bits and less
}

# Field numbers of onnx.proto, which never change.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
FUNCTION_NAME, FUNCTION_NODE, FUNCTION_DOMAIN, FUNCTION_DEFAULT, FUNCTION_OVERLOAD = 1, 7, 10, 11, 13
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOC, NODE_DOMAIN, NODE_OVERLOAD = 4, 5, 6, 7, 8
# Each of these is a pair: the field for a single value and the field for a list.
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
TENSOR_DIMS, TENSOR_TYPE, TENSOR_STRINGS, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 2, 6, 13, 14
TENSOR_DATA = (4, 5, 7, 9, 10, 11)

OperatorKey = tuple[bytes, bytes, bytes]
"""Domain, name and overload of an operator or function."""

CallCounts = Counter[OperatorKey]
"""How many nodes call each operator or function."""


def check_model(data: bytes, label: str, max_bytes: int = MAX_BYTES) -> None:
    """Check that a model holds nothing that this module refuses.

    Args:
        data: content of the `.onnx` file.
        label: what error messages call the model.
        max_bytes: maximum size in bytes of all its tensors together.

    Raises:
        InputError: the model is refused, or is not an ONNX model; the message says why.
    """
    _ModelCheck(data, label, max_bytes).run()


class _ModelCheck:
    """One pass over one model."""

    def __init__(self, data: bytes, label: str, max_bytes: int) -> None:
        self.data, self.label, self.max_bytes = data, label, max_bytes
        self.reader = Reader(data, label)
        self.fields = self.reader.fields
        self.tensor_bytes = 0

    def run(self) -> None:
        graphs = []
        functions: dict[OperatorKey, CallCounts] = {}
        for number, wire_type, a, b in self.fields(0, len(self.data)):
            if number == MODEL_GRAPH:
                self.expect_bytes(wire_type, a)
                graphs.append((a, b))
            elif number == MODEL_TRAINING:
                raise self.refusal("training information")
            elif number == MODEL_FUNCTIONS:
                self.expect_bytes(wire_type, a)
                key, calls = self.check_function(a, b)
                if key in functions:
                    raise self.refusal(f"two functions named {printable(key[1])}")
                functions[key] = calls
        if len(graphs) != 1:
            raise InputError(
                f"{self.label} is not a model that ONNX Runtime can load: it holds {len(graphs)} graphs"
            )
        self.check_calls(self.check_graph(*graphs[0], depth=0), functions)

    def check_graph(self, start: int, end: int, depth: int, may_loop: bool = False) -> CallCounts:
        """Check a graph and count what its nodes call.

        Args:
            start, end: where the graph's message lies in the file.
            depth: number of graphs around this one.
            may_loop: whether a loop may run this graph.
        """
        if depth > MAX_DEPTH:
            raise self.refusal(f"graphs nested more than {MAX_DEPTH} deep")
        calls: CallCounts = Counter()
        for number, wire_type, a, b in self.fields(start, end):
            if number == GRAPH_NODE:
                self.expect_bytes(wire_type, a)
                self.check_node(a, b, depth, calls)
            elif number == GRAPH_INITIALIZER:
                self.expect_bytes(wire_type, a)
                self.check_tensor(a, b)
            elif number == GRAPH_SPARSE:
                raise self.refusal("a sparse tensor")
        if may_loop and has_no_operators(calls):
            raise self.refusal("a loop over an empty body, which could not be stopped")
        return calls

    def check_function(self, start: int, end: int) -> tuple[OperatorKey, CallCounts]:
        """Check a function and count what its nodes call."""
        key = {FUNCTION_DOMAIN: b"", FUNCTION_NAME: b"", FUNCTION_OVERLOAD: b""}
        calls: CallCounts = Counter()
        for number, wire_type, a, b in self.fields(start, end):
            if number in key:
                self.expect_bytes(wire_type, a)
                if key[number]:
                    raise self.reader.malformed(a)
                key[number] = self.data[a:b]
            elif number == FUNCTION_NODE:
                self.expect_bytes(wire_type, a)
                self.check_node(a, b, 0, calls)
            elif number == FUNCTION_DEFAULT:
                self.expect_bytes(wire_type, a)
                self.check_attribute(a, b, 0, calls, may_loop=True)
        if has_no_operators(calls):
            raise self.refusal("a function without operators")
        if key[FUNCTION_DOMAIN] in STANDARD_DOMAINS:
            raise self.refusal(
                f"a function {printable(key[FUNCTION_NAME])} in the domain of the standard operators"
            )
        return (key[FUNCTION_DOMAIN], key[FUNCTION_NAME], key[FUNCTION_OVERLOAD]), calls

    def check_node(self, start: int, end: int, depth: int, calls: CallCounts) -> None:
        """Check a node's attributes; add what the node and its graphs call to `calls`."""
        data = self.data
        domain = name = overload = b""
        attributes = []
        for number, wire_type, a, b in self.fields(start, end):
            if number < NODE_OPERATOR or number > NODE_OVERLOAD:
                continue
            if wire_type != BYTES:
                raise self.reader.malformed(start)
            if number == NODE_ATTRIBUTE:
                attributes.append((a, b))
            elif number == NODE_OPERATOR and not name:
                name = data[a:b]
            elif number == NODE_DOMAIN and not domain:
                domain = data[a:b]
            elif number == NODE_OVERLOAD and not overload:
                overload = data[a:b]
            elif number != NODE_DOC:  # a field that occurs twice
                raise self.reader.malformed(a)
        calls[domain, name, overload] += 1
        may_loop = name != b"If"  # a function may pass a graph on to a loop
        for a, b in attributes:
            self.check_attribute(a, b, depth, calls, may_loop)

    def check_attribute(self, start: int, end: int, depth: int, calls: CallCounts, may_loop: bool) -> None:
        """Check the tensors and graphs in an attribute; add what the graphs call to `calls`."""
        for number, wire_type, a, b in self.fields(start, end):
            if number in ATTRIBUTE_TENSORS:
                self.expect_bytes(wire_type, a)
                self.check_tensor(a, b)
            elif number in ATTRIBUTE_GRAPHS:
                self.expect_bytes(wire_type, a)
                calls.update(self.check_graph(a, b, depth + 1, may_loop))
            elif number in ATTRIBUTE_SPARSE:
                raise self.refusal("a sparse tensor")

    def check_tensor(self, start: int, end: int) -> None:
        """Check that a tensor's data lie in the file, and add up the size that it declares."""
        dims: list[int] = []
        item_bytes = 0
        for number, wire_type, a, b in self.fields(start, end):
            if number == TENSOR_DIMS:
                dims += [a] if wire_type == VARINT else self.reader.packed(a, b)
            elif number == TENSOR_TYPE:
                if wire_type != VARINT or a not in ITEM_BYTES:
                    raise self.refusal("a tensor of strings or of an unknown type")
                item_bytes = max(item_bytes, ITEM_BYTES[a])
            elif number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and (wire_type, a) != (VARINT, 0)):
                raise self.refusal("a tensor whose data lie outside the file, which are never read")
            elif number == TENSOR_STRINGS:
                raise self.refusal("a tensor of strings")
            elif number in TENSOR_DATA:
                self.expect_bytes(wire_type, a)
        if not item_bytes:
            raise self.refusal("a tensor without a type")
        if len(dims) > MAX_RANK:
            raise self.refusal(f"a tensor of {len(dims)} axes")
        self.tensor_bytes += prod(dims) * item_bytes
        if self.tensor_bytes > self.max_bytes:
            raise InputError(
                f"the tensors of {self.label} take more than {self.max_bytes} bytes; "
                "allow more with --max-bytes"
            )

    def check_calls(self, graph_calls: CallCounts, functions: dict[OperatorKey, CallCounts]) -> None:
        """Check that all operators are allowed, and count the nodes with all functions expanded."""
        expanded_sizes: dict[OperatorKey, int] = {}
        expanding: set[OperatorKey] = set()

        def expanded_size(calls: CallCounts, depth: int) -> int:
            nodes = 0
            for key, count in calls.items():
                domain, name, _ = key
                if key in functions:
                    if key in expanding or depth > MAX_DEPTH:
                        raise self.refusal(
                            f"functions that call each other recursively or too deep, at {printable(name)}"
                        )
                    if key not in expanded_sizes:
                        expanding.add(key)
                        expanded_sizes[key] = expanded_size(functions[key], depth + 1)
                        expanding.remove(key)
                    nodes += count * expanded_sizes[key]
                elif domain in STANDARD_DOMAINS and name in OPERATORS:
                    nodes += count
                else:
                    of_domain = "" if domain in STANDARD_DOMAINS else f" of domain {printable(domain)}"
                    raise self.refusal(f"the operator {printable(name)}{of_domain}")
            return nodes

        for calls in (graph_calls, *functions.values()):
            if expanded_size(calls, 0) > MAX_NODES:
                raise self.refusal(f"more than {MAX_NODES} nodes")

    def expect_bytes(self, wire_type: int, position: int) -> None:
        if wire_type != BYTES:
            raise self.reader.malformed(position)

    def refusal(self, content: str) -> InputError:
        return InputError(f"{self.label} holds {content}; expected a model that `mdlstm export` wrote")


def has_no_operators(calls: CallCounts) -> bool:
    """Whether a graph runs nothing.

    ONNX Runtime checks for a timeout before each node that it runs. It treats Constant nodes as stored
    tensors, so they do not count.
    """
    return all(name == b"Constant" for _, name, _ in calls)


def printable(name: bytes) -> str:
    """A name from the file without terminal escapes, for error messages."""
    return ascii(name[:60].decode(errors="replace"))
