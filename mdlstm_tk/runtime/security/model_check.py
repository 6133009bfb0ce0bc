"""What a model from a stranger may hold, checked before ONNX Runtime sees a byte of it.

Refused are: data outside the file, in whatever tensor; sparse tensors and texts; operators that are
neither standard ones listed here nor functions of the model's own; tensors that declare more than
they may take; loops with nothing in them, which nothing can stop; functions that call themselves,
or each other so often that writing them out would fill the memory; training parts.

What this cannot do: a single operator on large tensors runs until it is done, whatever the time
limit, and ONNX Runtime itself is trusted with what passes. Against a determined enemy, run it in a
container.
"""

from __future__ import annotations

from collections import Counter
from math import prod

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.security.protobuf import BYTES, VARINT, Reader

MAX_NODES = 1_000_000  # once functions are written out
MAX_DEPTH = 8  # of graphs in graphs
MAX_RANK = 32

# Standard operators on numbers. Left out is what works on texts, sequences, optional values and
# encoded images, what is random, and what trains.
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
STANDARD = (b"", b"ai.onnx")

# Bytes an element, by TensorProto.DataType; STRING and what is unknown are not here.
ITEM_BYTES = {
    **dict.fromkeys((2, 3, 9), 1),  # uint8, int8, bool
    **dict.fromkeys((4, 5, 10, 16), 2),  # uint16, int16, float16, bfloat16
    **dict.fromkeys((1, 6, 12), 4),  # float, int32, uint32
    **dict.fromkeys((7, 11, 13, 14), 8),  # int64, double, uint64, complex64
    15: 16,  # complex128
    **dict.fromkeys(range(17, 29), 1),  # 8 bits and less
}

# Field numbers of onnx.proto that are looked at: nobody reuses a number.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
FUNCTION_NAME, FUNCTION_NODE, FUNCTION_DOMAIN, FUNCTION_DEFAULT, FUNCTION_OVERLOAD = 1, 7, 10, 11, 13
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOC, NODE_DOMAIN, NODE_OVERLOAD = 4, 5, 6, 7, 8
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)  # one, several
TENSOR_DIMS, TENSOR_TYPE, TENSOR_TEXT, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 2, 6, 13, 14
TENSOR_DATA = (4, 5, 7, 9, 10, 11)

Key = tuple[bytes, bytes, bytes]  # domain, name, overload of a function
Calls = Counter[Key]


def check_model(data: bytes, shown: str, max_bytes: int = MAX_BYTES) -> None:
    """Make sure that a model holds nothing but what it may hold.

    Args:
        data: the file.
        shown: what messages call it.
        max_bytes: that its tensors may take together.

    Raises:
        InputError: it holds something else, or is no ONNX model; says what.
    """
    _Guard(data, shown, max_bytes).check()


class _Guard:
    """One walk through one model."""

    def __init__(self, data: bytes, shown: str, max_bytes: int) -> None:
        self.data, self.shown, self.max_bytes = data, shown, max_bytes
        self.reader = Reader(data, shown)
        self.fields = self.reader.fields
        self.declared = 0

    def check(self) -> None:
        graphs = []
        functions: dict[Key, Calls] = {}
        for number, kind, a, b in self.fields(0, len(self.data)):
            if number == MODEL_GRAPH:
                self.is_bytes(kind, a)
                graphs.append((a, b))
            elif number == MODEL_TRAINING:
                raise self.refuse("a training part")
            elif number == MODEL_FUNCTIONS:
                self.is_bytes(kind, a)
                key, calls = self.function(a, b)
                if key in functions:
                    raise self.refuse(f"two functions named {show(key[1])}")
                functions[key] = calls
        if len(graphs) != 1:
            raise InputError(
                f"{self.shown} is not a model that ONNX Runtime can load: it holds {len(graphs)} graphs"
            )
        self.expand(self.graph(*graphs[0], depth=0), functions)

    def graph(self, start: int, end: int, depth: int, looped: bool = False) -> Calls:
        """What the nodes of a graph call."""
        if depth > MAX_DEPTH:
            raise self.refuse(f"graphs in graphs, more than {MAX_DEPTH} deep")
        calls: Calls = Counter()
        for number, kind, a, b in self.fields(start, end):
            if number == GRAPH_NODE:
                self.is_bytes(kind, a)
                self.node(a, b, depth, calls)
            elif number == GRAPH_INITIALIZER:
                self.is_bytes(kind, a)
                self.tensor(a, b)
            elif number == GRAPH_SPARSE:
                raise self.refuse("a sparse tensor")
        if looped and does_nothing(calls):
            raise self.refuse("a loop around nothing, which could not be stopped")
        return calls

    def function(self, start: int, end: int) -> tuple[Key, Calls]:
        """A function's key, and what its nodes call."""
        key = {FUNCTION_DOMAIN: b"", FUNCTION_NAME: b"", FUNCTION_OVERLOAD: b""}
        calls: Calls = Counter()
        for number, kind, a, b in self.fields(start, end):
            if number in key:
                self.is_bytes(kind, a)
                if key[number]:
                    raise self.reader.damaged(a)
                key[number] = self.data[a:b]
            elif number == FUNCTION_NODE:
                self.is_bytes(kind, a)
                self.node(a, b, 0, calls)
            elif number == FUNCTION_DEFAULT:
                self.is_bytes(kind, a)
                self.attribute(a, b, 0, calls, looped=True)
        if does_nothing(calls):
            raise self.refuse("a function that does nothing")
        if key[FUNCTION_DOMAIN] in STANDARD:
            raise self.refuse("a function in place of a standard operator")
        return (key[FUNCTION_DOMAIN], key[FUNCTION_NAME], key[FUNCTION_OVERLOAD]), calls

    def node(self, start: int, end: int, depth: int, calls: Calls) -> None:
        """Check a node's attributes, and add what it calls, and what its graphs call, to `calls`."""
        data = self.data
        domain = name = overload = b""
        attributes = []
        for number, kind, a, b in self.fields(start, end):
            if number < NODE_OPERATOR or number > NODE_OVERLOAD:
                continue
            if kind != BYTES:
                raise self.reader.damaged(start)
            if number == NODE_ATTRIBUTE:
                attributes.append((a, b))
            elif number == NODE_OPERATOR and not name:
                name = data[a:b]
            elif number == NODE_DOMAIN and not domain:
                domain = data[a:b]
            elif number == NODE_OVERLOAD and not overload:
                overload = data[a:b]
            elif number != NODE_DOC:  # given twice
                raise self.reader.damaged(a)
        calls[domain, name, overload] += 1
        looped = name != b"If"  # a function, too, may hand its graph to a loop
        for a, b in attributes:
            self.attribute(a, b, depth, calls, looped)

    def attribute(self, start: int, end: int, depth: int, calls: Calls, looped: bool) -> None:
        """Check the tensors and graphs in an attribute."""
        for number, kind, a, b in self.fields(start, end):
            if number in ATTRIBUTE_TENSORS:
                self.is_bytes(kind, a)
                self.tensor(a, b)
            elif number in ATTRIBUTE_GRAPHS:
                self.is_bytes(kind, a)
                calls.update(self.graph(a, b, depth + 1, looped))
            elif number in ATTRIBUTE_SPARSE:
                raise self.refuse("a sparse tensor")

    def tensor(self, start: int, end: int) -> None:
        """Check that a tensor's numbers are all here, and how much it declares."""
        dims: list[int] = []
        item = 0
        for number, kind, a, b in self.fields(start, end):
            if number == TENSOR_DIMS:
                dims += [a] if kind == VARINT else self.reader.packed(a, b)
            elif number == TENSOR_TYPE:
                if kind != VARINT or a not in ITEM_BYTES:
                    raise self.refuse("a tensor of texts, or of an unknown type")
                item = max(item, ITEM_BYTES[a])
            elif number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and (kind, a) != (VARINT, 0)):
                raise self.refuse("a tensor whose data lies outside the file, which is never read")
            elif number == TENSOR_TEXT:
                raise self.refuse("a tensor of texts")
            elif number in TENSOR_DATA:
                self.is_bytes(kind, a)
        if not item:
            raise self.refuse("a tensor without a type")
        if len(dims) > MAX_RANK:
            raise self.refuse(f"a tensor of {len(dims)} axes")
        self.declared += prod(dims) * item
        if self.declared > self.max_bytes:
            raise InputError(
                f"the tensors of {self.shown} take more than {self.max_bytes} bytes; "
                "allow more with --max-bytes"
            )

    def expand(self, calls: Calls, functions: dict[Key, Calls]) -> None:
        """Check that all that is called may be, and how many nodes that is with functions written out."""
        sizes: dict[Key, int] = {}
        open_: set[Key] = set()

        def size(calls: Calls, depth: int) -> int:
            total = 0
            for key, times in calls.items():
                if key in functions:
                    if key in open_ or depth > MAX_DEPTH:
                        raise self.refuse(f"functions that call each other too deep, at {show(key[1])}")
                    if key not in sizes:
                        open_.add(key)
                        sizes[key] = size(functions[key], depth + 1)
                        open_.remove(key)
                    total += times * sizes[key]
                elif key[0] in STANDARD and key[1] in OPERATORS:
                    total += times
                else:
                    raise self.refuse(
                        f"the operator {show(key[1])}"
                        + (f" of domain {show(key[0])}" if key[0] not in STANDARD else "")
                    )
            return total

        for called in (calls, *functions.values()):
            if size(called, 0) > MAX_NODES:
                raise self.refuse(f"more than {MAX_NODES} nodes")

    def is_bytes(self, kind: int, position: int) -> None:
        if kind != BYTES:
            raise self.reader.damaged(position)

    def refuse(self, what: str) -> InputError:
        return InputError(f"{self.shown} holds {what}; mdlstm-tk runs what `mdlstm export` writes")


def does_nothing(calls: Calls) -> bool:
    """Is there nothing to run? ONNX Runtime takes Constant nodes for stored tensors, and looks whether it
    should stop before each node that it runs."""
    return all(name == b"Constant" for _, name, _ in calls)


def show(name: bytes) -> str:
    """A name from the file, fit for a terminal."""
    return ascii(name[:60].decode(errors="replace"))
