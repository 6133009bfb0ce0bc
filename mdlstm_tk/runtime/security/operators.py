"""The operators that a model may have, each with its inputs, outputs and attributes.

The table lists what `mdlstm_tk.export` writes for every form and option of its layers, and for common
layers of PyTorch around them; tests/integration/test_allowed_operators.py derives it. Some operators that
PyTorch can emit are missing on purpose:

- If and Loop: no export needs them, and they nest and repeat.
- RoiAlign, NonZero, LpPool, DFT and the windows of signal processing: they run long or allocate memory that
  no limit counts.
- GridSample: it computes addresses from untrusted numbers.
- Constant: exports store all constants as initializers.
- Operators on strings, sequences and optional values, and random ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mdlstm_tk.runtime.security import bounds
from mdlstm_tk.runtime.security.schema import MAX_RANK

OPSET, IR_VERSION = 18, 10  # of exported files
FUNCTION_DOMAIN, FUNCTION_OPSET = b"mdlstm.functions", 1

# AttributeProto.AttributeType
FLOAT, INT, STRING, TENSOR, GRAPH, INTS = 1, 2, 3, 4, 5, 7
# TensorProto.DataType: the name in NumPy and the size in bytes of each type of numbers
NUMBER_TYPES = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
}
MAX_WINDOW = 4096  # extent of a kernel, a stride, a dilation or a padding
MAX_WINDOW_POSITIONS = 2**20  # positions of one kernel
MAX_UNITS = 2**16  # hidden units, groups and blocks
ANY = 10**9  # number of inputs or outputs; graphs.py limits their sum


@dataclass(frozen=True)
class Attribute:
    """An attribute that an operator may have.

    Attributes:
        kind: its type.
        lowest, highest: of an INT, and of each of INTS.
        values: of a STRING, or of an INT that is an enumeration; None: any between the bounds.
        pattern: of a STRING.
        limit: the largest product of INTS; None: any.
    """

    kind: int
    lowest: int = 0
    highest: int = 0
    values: frozenset[int | bytes] | None = None
    pattern: re.Pattern[bytes] | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Operator:
    """An operator.

    Attributes:
        rule: bounds the ranks of its outputs.
        min_inputs, max_inputs: how many inputs it may have.
        max_outputs: how many outputs it may have.
        attributes: by name.
        optional: positions of the inputs that may be missing although others follow.
    """

    rule: bounds.Rule
    min_inputs: int
    max_inputs: int
    max_outputs: int
    attributes: dict[bytes, Attribute]
    optional: tuple[int, ...] = ()


def _operator(
    rule: bounds.Rule, inputs: int | tuple[int, int], outputs: int, /, **attributes: Attribute
) -> Operator:
    named = {name.encode(): attribute for name, attribute in attributes.items()}
    lowest, highest = (inputs, inputs) if isinstance(inputs, int) else inputs
    return Operator(rule, lowest, highest, outputs, named)


def _int(lowest: int, highest: int) -> Attribute:
    return Attribute(INT, lowest, highest)


def _ints(lowest: int, highest: int, limit: int | None = None) -> Attribute:
    return Attribute(INTS, lowest, highest, limit=limit)


def _string(*values: str) -> Attribute:
    return Attribute(STRING, values=frozenset(value.encode() for value in values))


NUMBER = Attribute(FLOAT)
FLAG, ZERO = _int(0, 1), _int(0, 0)
AXIS = _int(-MAX_RANK, MAX_RANK)
EXTENTS = _ints(1, MAX_WINDOW)
PADDING = _ints(0, MAX_WINDOW)
NO_AUTO_PAD = _string("NOTSET")
BODY = Attribute(GRAPH)
KERNEL = {
    "auto_pad": NO_AUTO_PAD,
    "kernel_shape": _ints(1, MAX_WINDOW, MAX_WINDOW_POSITIONS),
    "pads": PADDING,
    "strides": EXTENTS,
}
CONVOLUTION = {**KERNEL, "dilations": EXTENTS, "group": _int(1, MAX_UNITS)}
RECURRENT = {
    "direction": _string("forward", "bidirectional"),
    "hidden_size": _int(1, MAX_UNITS),
    "layout": ZERO,
}
REDUCTION = {"keepdims": FLAG, "noop_with_empty_axes": ZERO}
# One operand and any letters; bounds.einsum limits their number.
EQUATION = Attribute(STRING, pattern=re.compile(rb"[a-zA-Z]+(, ?[a-zA-Z]+)*( ?)->( ?)[a-zA-Z]*"))

_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor HardSwish IsInf IsNaN Log Mish Neg Not
    Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Sqrt Tan Tanh
"""
_BINARY = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Or Pow Sub Xor"
_REDUCTIONS = "L1 L2 LogSumExp Max Mean Min Prod Sum"

_NAMED = {
    **dict.fromkeys(_UNARY.split(), _operator(bounds.first, 1, 1)),
    **dict.fromkeys(_BINARY.split(), _operator(bounds.broadcast, 2, 1)),
    **{f"Reduce{name}": _operator(bounds.reduce, (1, 2), 1, **REDUCTION) for name in _REDUCTIONS.split()},
    "ArgMax": _operator(bounds.arg_reduce, 1, 1, axis=AXIS, keepdims=FLAG, select_last_index=ZERO),
    "ArgMin": _operator(bounds.arg_reduce, 1, 1, axis=AXIS, keepdims=FLAG, select_last_index=ZERO),
    "AveragePool": _operator(bounds.first_rank, 1, 1, **KERNEL, ceil_mode=FLAG, count_include_pad=FLAG),
    "BatchNormalization": _operator(bounds.first, 5, 1, epsilon=NUMBER, momentum=NUMBER),
    "Cast": _operator(bounds.first, 1, 1, to=Attribute(INT, values=frozenset(NUMBER_TYPES))),
    "Celu": _operator(bounds.first, 1, 1, alpha=NUMBER),
    "Clip": _operator(bounds.first, (2, 3), 1),
    "Concat": _operator(bounds.concat, (1, ANY), 1, axis=AXIS),
    "ConstantOfShape": _operator(bounds.constant_of_shape, 1, 1, value=Attribute(TENSOR)),
    "Conv": _operator(bounds.first_rank, (2, 3), 1, **CONVOLUTION),
    "ConvTranspose": _operator(bounds.first_rank, (2, 3), 1, **CONVOLUTION, output_padding=PADDING),
    "CumSum": _operator(bounds.first, 2, 1, exclusive=FLAG, reverse=ZERO),
    "DepthToSpace": _operator(bounds.first, 1, 1, blocksize=_int(1, MAX_WINDOW), mode=_string("CRD")),
    "DynamicQuantizeLinear": _operator(bounds.quantized, 1, 3),
    "Einsum": _operator(bounds.einsum, (1, MAX_RANK), 1, equation=EQUATION),
    "Elu": _operator(bounds.first, 1, 1, alpha=NUMBER),
    "Expand": _operator(bounds.expand, 2, 1),
    "GRU": _operator(bounds.recurrent, 6, 2, **RECURRENT, linear_before_reset=FLAG),
    "Gather": _operator(bounds.gather, 2, 1, axis=AXIS),
    "GatherElements": _operator(bounds.second, 2, 1, axis=AXIS),
    "GatherND": _operator(bounds.gather_nd, 2, 1, batch_dims=ZERO),
    "Gemm": _operator(bounds.gemm, (2, 3), 1, alpha=NUMBER, beta=NUMBER, transA=ZERO, transB=FLAG),
    "HardSigmoid": _operator(bounds.first, 1, 1, alpha=NUMBER, beta=NUMBER),
    "Identity": _operator(bounds.identity, 1, 1),
    "InstanceNormalization": _operator(bounds.first, 3, 1, epsilon=NUMBER),
    "LSTM": _operator(bounds.recurrent, 7, 3, **RECURRENT, input_forget=ZERO),
    "LayerNormalization": _operator(
        bounds.first, (2, 3), 1, axis=AXIS, epsilon=NUMBER, stash_type=_int(1, 1)
    ),
    "LeakyRelu": _operator(bounds.first, 1, 1, alpha=NUMBER),
    "LogSoftmax": _operator(bounds.first, 1, 1, axis=AXIS),
    "MatMul": _operator(bounds.matmul, 2, 1),
    "MatMulInteger": _operator(bounds.matmul, 4, 1),
    "MaxPool": _operator(
        bounds.first_rank, 1, 1, **KERNEL, ceil_mode=FLAG, dilations=EXTENTS, storage_order=ZERO
    ),
    "Mod": _operator(bounds.broadcast, 2, 1, fmod=FLAG),
    "PRelu": _operator(bounds.broadcast, 2, 1),
    "Pad": _operator(bounds.resized, (2, 3), 1, mode=_string("constant", "edge", "reflect", "wrap")),
    "Range": _operator(bounds.vector, 3, 1),
    "Reshape": _operator(bounds.reshape, 2, 1, allowzero=FLAG),
    "Resize": _operator(
        bounds.resized,
        (3, 4),
        1,
        antialias=FLAG,
        coordinate_transformation_mode=_string("align_corners", "asymmetric", "half_pixel"),
        cubic_coeff_a=NUMBER,
        exclude_outside=FLAG,
        extrapolation_value=NUMBER,
        keep_aspect_ratio_policy=_string("stretch"),
        mode=_string("cubic", "linear", "nearest"),
        nearest_mode=_string("floor"),
    ),
    # graphs.py follows the body of a Scan instead of calling a rule.
    "Scan": _operator(bounds.vector, (1, ANY), ANY, body=Attribute(GRAPH), num_scan_inputs=_int(1, ANY)),
    "ScatterElements": _operator(bounds.first, 3, 1, axis=AXIS, reduction=_string("add", "none")),
    "ScatterND": _operator(bounds.first, 3, 1, reduction=_string("add", "none")),
    "Shape": _operator(bounds.shape, 1, 1, end=AXIS, start=AXIS),
    "Slice": _operator(bounds.slice_, (3, 5), 1),
    "Softmax": _operator(bounds.first, 1, 1, axis=AXIS),
    "Split": _operator(bounds.split, (1, 2), ANY, axis=AXIS, num_outputs=_int(1, ANY)),
    "Squeeze": _operator(bounds.squeeze, (1, 2), 1),
    "Sum": _operator(bounds.broadcast, (1, ANY), 1),
    "Tile": _operator(bounds.resized, 2, 1),
    "TopK": _operator(bounds.first, 2, 2, axis=AXIS, largest=FLAG, sorted=_int(1, 1)),
    "Transpose": _operator(bounds.first, 1, 1, perm=_ints(0, MAX_RANK - 1)),
    "Trilu": _operator(bounds.first, (1, 2), 1, upper=FLAG),
    "Unsqueeze": _operator(bounds.unsqueeze, 2, 1),
    "Where": _operator(bounds.broadcast, 3, 1),
}
# ONNX Runtime reads missing inputs of other operators as if they were there.
_OPTIONAL = {"Clip": (1,), "GRU": (4,), "LSTM": (4,), "Resize": (1, 2)}
OPERATORS = {
    name.encode(): replace(operator, optional=_OPTIONAL.get(name, ())) for name, operator in _NAMED.items()
}
