"""Operations that `torch.export` only captures for one extent, in operators that it captures for any."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset18 as op
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# For each layer of torch: the order in which ONNX has its gates, and its activations where it may choose.
RECURRENT: dict[str, tuple[list[int], list[str]]] = {
    "lstm": ([0, 3, 1, 2], []),
    "gru": ([1, 0, 2], []),
    "rnn_tanh": ([0], ["Tanh"]),
    "rnn_relu": ([0], ["Relu"]),
}

FLOAT_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow)
EXTENTS = np.arange(1.0, 2**16)  # of an axis that is resized
LARGEST_DENOMINATOR = 1000  # of a factor that it is resized by

torch.library.define(
    "mdlstm::recurrent",
    "(str kind, Tensor x, Tensor w, Tensor r, Tensor b, Tensor h, Tensor? c=None)"
    " -> (Tensor, Tensor, Tensor)",
)


def _fake(
    kind: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, _ = x.shape
    dirs, _, units = r.shape
    return x.new_empty(steps, dirs, batch, units), torch.empty_like(h), torch.empty_like(h)


torch.library.register_fake("mdlstm::recurrent", _fake)


class Capturable(TorchFunctionMode):
    """While it is active, each layer of an LSTM, GRU or RNN of torch is one operator, where torch would
    unroll it for the number of steps at hand, `torch.linspace` takes a free extent, `one_hot` is a scatter,
    which refuses classes beyond the last one, as torch does, and `interpolate` takes the positions that
    torch takes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in RECURRENT and len(args) == 9 and isinstance(args[3], bool):  # else a packed sequence
            if name == "lstm" and args[1][0].shape[-1] != args[1][1].shape[-1]:
                raise NotImplementedError("ONNX has no LSTM with projections; leave proj_size out")
            return _recurrent(name, *args)
        if func is torch.linspace:
            steps = args[2] if len(args) > 2 else kwargs.get("steps")
            if isinstance(steps, torch.SymInt):
                return _linspace(*args, **kwargs)
        if func is functional.one_hot:
            return _one_hot(*args, **kwargs)
        if func is functional.interpolate:
            return _interpolate(*args, **kwargs)
        return func(*args, **kwargs)


def _linspace(start: float, end: float, steps: int, **options: Any) -> Tensor:
    """`torch.linspace`, which counts from both ends."""
    k = torch.arange(steps, **{"dtype": torch.get_default_dtype(), **options})
    step = (end - start) / torch.scalar_tensor(steps - 1, dtype=k.dtype).clamp(min=1)
    return torch.where(k < steps / 2, start + step * k, end - step * (steps - 1 - k))


def _one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise NotImplementedError("one_hot needs num_classes, which a file cannot take from its input")
    return input.new_zeros(*input.shape, num_classes).scatter(-1, input[..., None], 1)


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """`interpolate`, without the operator Resize of ONNX where that would take other positions than torch.

    torch takes the position ⌊k · s⌋ for pixel k, where s in float32 is the ratio of the extents, or the
    reciprocal of the factor. Resize divides k by the reciprocal of s, which is rounded otherwise.
    """
    extents: Sequence[Any] = input.shape[2:]
    factors: list[Any] = [None] * len(extents)
    sizes: list[Any] = list(size) if isinstance(size, Sequence) else [size] * len(extents)
    if scale_factor is not None:
        given = scale_factor if isinstance(scale_factor, Sequence) else [scale_factor] * len(extents)
        sizes = list(map(_resized, extents, given))
        factors = factors if recompute_scale_factor else list(given)
    is_of_resize = mode == "nearest" and all(map(_is_of_resize, extents, sizes, factors))
    if mode not in ("nearest", "nearest-exact") or is_of_resize:
        return functional.interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    x, device = input.movedim((0, 1), (-2, -1)), input.device  # rows of these are taken faster than numbers
    for axis, (extent, count, factor) in enumerate(zip(extents, sizes, factors, strict=True)):
        k = torch.arange(count, dtype=torch.float32, device=device) + 0.5 * (mode == "nearest-exact")
        if factor is None:
            n, m = (torch.scalar_tensor(e, dtype=torch.float32, device=device) for e in (extent, count))
            position = k * (n / m)
        else:
            position = k * float(np.float32(1 / factor))
        x = x.index_select(axis, position.floor().to(torch.int64).clamp(max=extent - 1))
    return x.movedim((-2, -1), (0, 1))


def _resized(extent: Any, factor: float) -> Any:
    """An extent times a number, rounded down as in Python, which a file does in float32."""
    if isinstance(extent, int):
        return math.floor(extent * factor)
    ratio, of_python = Fraction(factor).limit_denominator(LARGEST_DENOMINATOR), np.floor(EXTENTS * factor)
    of_file = np.floor(EXTENTS.astype(np.float32) * np.float32(factor))
    of_integers = EXTENTS.astype(np.int64) * ratio.numerator // ratio.denominator
    if (of_file != of_python).any() or (of_integers != of_python).any():
        raise NotImplementedError(
            f"interpolate by {factor} gives other extents in a file, which computes them in float32, on "
            "some grids; give it size=, such as 7 * x.shape[2] // 10"
        )
    return extent * ratio.numerator // ratio.denominator


def _is_of_resize(extent: Any, count: Any, factor: float | None) -> bool:
    """True if Resize takes the positions of an axis that torch takes, whatever its extent is if it is free.

    Args:
        extent: of the input.
        count: extent of the output.
        factor: the output is scaled by; None for the ratio of both extents.
    """
    k = np.arange(count if isinstance(count, int) else len(EXTENTS), dtype=np.float32)
    if factor is not None:
        of_torch, of_resize = np.float32(1 / factor), np.float32(factor)
        if isinstance(extent, int):  # ONNX Runtime multiplies in float32, the checker of onnx does not
            products = [float(np.float32(extent) * of_resize), extent * float(of_resize)]
            if any(math.floor(product) != count for product in products):
                return False
    elif isinstance(extent, int) and isinstance(count, int):
        of_torch, of_resize = np.float32(extent) / np.float32(count), np.float32(count) / np.float32(extent)
    else:
        return False
    return bool((np.floor(k * of_torch) == np.floor(k / of_resize)).all())


def _recurrent(
    kind: str,
    x: Tensor,
    initial: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The stacked layers of an `nn.LSTM`, `nn.GRU` or `nn.RNN` in eval mode."""
    h, *others = [initial] if isinstance(initial, Tensor) else initial
    order, _ = RECURRENT[kind]
    units, dirs = h.shape[-1], 1 + bidirectional
    of_direction = len(weights) // (layers * dirs)

    def joined(part: int, layer: int) -> Tensor:
        """A weight of all directions, (dirs, G·n, …), its gates in the order of ONNX."""
        start = layer * dirs * of_direction + part
        stacked = torch.stack([weights[start + d * of_direction] for d in range(dirs)])
        return torch.cat([stacked[:, g * units : (g + 1) * units] for g in order], dim=1)

    final: list[tuple[Tensor, ...]] = []
    x = x.transpose(0, 1) if batch_first else x
    for layer in range(layers):
        w, r = joined(0, layer), joined(1, layer)
        if has_biases:
            b = torch.cat([joined(2, layer), joined(3, layer)], dim=1)
        else:
            b = w.new_zeros(dirs, 2 * len(order) * units)
        states = [state[layer * dirs : (layer + 1) * dirs] for state in (h, *others)]
        y, *leaving = torch.ops.mdlstm.recurrent(kind, x, w, r, b, *states)
        final.append(tuple(leaving[: len(states)]))
        x = y.permute(0, 2, 1, 3).flatten(2)
    x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.cat(states) for states in zip(*final, strict=True))


def translate(kind: str, x: Any, w: Any, r: Any, b: Any, h: Any, c: Any = None) -> Any:
    """One of these operators as a node of ONNX."""
    dirs, _, units = r.shape
    options: dict[str, Any] = {
        "hidden_size": int(units),
        "direction": "bidirectional" if dirs == 2 else "forward",
    }
    if kind == "lstm":
        return op.LSTM(x, w, r, b, None, h, c, **options)
    if kind == "gru":
        y, last = op.GRU(x, w, r, b, None, h, linear_before_reset=1, **options)
    else:
        y, last = op.RNN(x, w, r, b, None, h, activations=int(dirs) * RECURRENT[kind][1], **options)
    return y, last, last


def _not_negative(indices: Any, count: Any) -> Any:
    """Indices, of which negative ones become `count`, which is beyond the end."""
    whole: Any = op.Cast(indices, to=onnx.TensorProto.INT64)
    return op.Where(op.Less(whole, op.Constant(value_int=0)), count, whole)


def _number(value: float, like: Any) -> Any:
    """A number in the type of another value."""
    is_float = isinstance(value, float)
    constant: Any = op.Constant(value_float=value) if is_float else op.Constant(value_int=int(value))
    return op.CastLike(constant, like)


def _along(x: Any, axis: int, indices: Any) -> Any:
    """Indices along an axis of x, of which negative ones are refused at run time."""
    ends = {} if axis == -1 else {"end": axis + 1}
    return _not_negative(indices, op.Squeeze(op.Shape(x, start=axis, **ends)))


def translate_index_select(x: Any, dim: int, index: Any) -> Any:
    shape: Any = op.Constant(value_ints=[-1])  # also of a single number
    return op.Gather(x, op.Reshape(_along(x, dim, index), shape), axis=dim)


def translate_gather(x: Any, dim: int, index: Any, **_: Any) -> Any:
    return op.GatherElements(x, _along(x, dim, index), axis=dim)


def translate_scatter(x: Any, dim: int, index: Any, source: Any) -> Any:
    return op.ScatterElements(x, _along(x, dim, index), source, axis=dim)


def translate_scatter_value(x: Any, dim: int, index: Any, value: float) -> Any:
    return translate_scatter(x, dim, index, op.Expand(_number(value, x), op.Shape(index)))


def translate_scatter_add(x: Any, dim: int, index: Any, source: Any) -> Any:
    return op.ScatterElements(x, _along(x, dim, index), source, axis=dim, reduction="add")


def translate_log_sigmoid(x: Any) -> Any:
    """−log(1 + e^−x); the logarithm of a sigmoid would be −∞ from x = −17 on."""
    return op.Neg(op.Softplus(op.Neg(x)))


def translate_logaddexp(a: Any, b: Any, base: float = math.e) -> Any:
    """log(e^a + e^b) without overflow; two infinities of one sign stay."""
    scale = _number(math.log(base), a)
    difference: Any = op.Where(op.Equal(a, b), op.Sub(scale, scale), op.Abs(op.Sub(a, b)))
    return op.Add(op.Max(a, b), op.Div(op.Softplus(op.Neg(op.Mul(difference, scale))), scale))


def translate_atan2(y: Any, x: Any) -> Any:
    """The angle of (x, y), with the sign of y also where it is 0."""
    pi = _number(math.pi, y)
    zero: Any = op.Sub(pi, pi)
    is_left = op.Or(op.Less(x, zero), op.Less(op.Reciprocal(x), zero))  # −0 counts as negative
    is_below = op.Or(op.Less(y, zero), op.Less(op.Reciprocal(y), zero))
    angle: Any = op.Where(op.Equal(y, zero), zero, op.Atan(op.Div(y, x)))
    turned: Any = op.Add(angle, op.Where(is_below, op.Neg(pi), pi))
    return op.Where(is_left, turned, angle)


def translate_logcumsumexp(x: Any, dim: int) -> Any:
    raise NotImplementedError(
        "ONNX has no logcumsumexp that keeps small numbers beside large ones; use torch.logsumexp of the "
        "numbers up to each position"
    )


def translate_embedding(weight: Any, indices: Any, *_: Any, **__: Any) -> Any:
    """The rows of a table. ONNX counts negative indices from the end, torch's embedding refuses them: they
    become an index beyond the end. ONNX Runtime refuses those on a CPU, and takes them for zeros on CUDA,
    where such rows are therefore NaN."""
    count = op.Constant(value_int=int(weight.shape[0]))
    index = _not_negative(indices, count)
    nan = op.Constant(value=onnx.helper.make_tensor("nan", int(weight.dtype), [], [math.nan]))
    axes: Any = op.Constant(value_ints=[-1])
    exists: Any = op.Unsqueeze(op.Less(index, count), axes)
    return op.Where(exists, op.Gather(weight, index, axis=0), nan)


def translate_floordiv(a: Any, b: Any) -> Any:
    """`a // b` of extents, rounded down as in Python; torch's exporter rounds towards 0."""
    a, b = (op.Constant(value_int=value) if isinstance(value, int) else value for value in (a, b))
    return op.Div(op.Sub(a, op.Mod(a, b)), b)  # Mod has the sign of b


def inexact_factor(graph: Any) -> float | None:
    """The number that is no float32 in a float that a graph rounds to an integer; None if there is none.

    Such floats are computed from extents. ONNX has them in float32, Python in float64.
    """
    for node in graph.nodes:
        parts = list(node.args) if node.target in (math.floor, math.ceil, math.trunc, round) else []
        while parts:
            part = parts.pop()
            if isinstance(part, float) and float(np.float32(part)) != part:
                return part
            if isinstance(part, torch.fx.Node) and part.target in FLOAT_ARITHMETIC:
                parts += part.args
    return None


def _of_one_type(a: Any, b: Any) -> tuple[Any, Any, bool]:
    """Two values, of which one may be a number; and True if they are floats."""
    if isinstance(a, int | float):
        return _number(a, b), b, b.dtype.is_floating_point()
    return a, _number(b, a) if isinstance(b, int | float) else b, a.dtype.is_floating_point()


def _remainder(a: Any, b: Any) -> tuple[Any, Any]:
    """What C's `fmod` leaves of floats, and where its sign is not that of b."""
    rest: Any = op.Mod(a, b, fmod=1)
    zero = _number(0, a)
    has_other_sign = op.Not(op.Equal(op.Less(rest, zero), op.Less(b, zero)))
    return rest, op.And(op.Not(op.Equal(rest, zero)), has_other_sign)


def translate_remainder(a: Any, b: Any) -> Any:
    """`a % b` with the sign of b. Where a is a multiple of b but for rounding, a − ⌊a / b⌋ · b, as torch's
    exporter has it, is off by b."""
    a, b, are_floats = _of_one_type(a, b)
    if not are_floats:
        return op.Mod(a, b)
    rest, differs = _remainder(a, b)
    return op.Where(differs, op.Add(rest, b), rest)


def translate_floor_divide(a: Any, b: Any) -> Any:
    """`a // b`. Where a is a multiple of b but for rounding, ⌊a / b⌋ is off by 1."""
    a, b, are_floats = _of_one_type(a, b)
    if not are_floats:
        return translate_floordiv(a, b)
    zero, half, one = (_number(value, a) for value in (0, 0.5, 1))
    rest, differs = _remainder(a, b)
    quotient: Any = op.Div(op.Sub(a, rest), b)
    quotient = op.Where(differs, op.Sub(quotient, one), quotient)
    whole: Any = op.Floor(quotient)
    whole = op.Where(op.Greater(op.Sub(quotient, whole), half), op.Add(whole, one), whole)
    return op.Where(op.Equal(b, zero), op.Div(a, b), whole)


def translate_div(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    """`div`. Of integers, torch's exporter rounds the quotient in float32, which is wrong from 2²⁴ on."""
    if rounding_mode == "floor":
        return translate_floor_divide(a, b)
    a, b, are_floats = _of_one_type(a, b)
    if rounding_mode is None:
        a, b = (a, b) if are_floats else (op.Cast(each, to=onnx.TensorProto.FLOAT) for each in (a, b))
        return op.Div(a, b)
    quotient: Any = op.Div(a, b)  # of integers, it is rounded towards 0
    if not are_floats:
        return quotient
    return op.Where(op.Less(quotient, _number(0, a)), op.Ceil(quotient), op.Floor(quotient))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.mdlstm.recurrent.default: translate,
    torch.ops.aten.embedding.default: translate_embedding,
    torch.ops.aten.index_select.default: translate_index_select,
    torch.ops.aten.gather.default: translate_gather,
    torch.ops.aten.scatter.src: translate_scatter,
    torch.ops.aten.scatter.value: translate_scatter_value,
    torch.ops.aten.scatter_add.default: translate_scatter_add,
    torch.ops.aten.log_sigmoid.default: translate_log_sigmoid,
    torch.ops.aten.logaddexp.default: translate_logaddexp,
    torch.ops.aten.logaddexp2.default: partial(translate_logaddexp, base=2.0),
    torch.ops.aten.logcumsumexp.default: translate_logcumsumexp,
    torch.ops.aten.atan2.default: translate_atan2,
    torch.ops.aten.remainder.Tensor: translate_remainder,
    torch.ops.aten.remainder.Scalar: translate_remainder,
    torch.ops.aten.remainder.Scalar_Tensor: translate_remainder,
    torch.ops.aten.floor_divide.default: translate_floor_divide,
    torch.ops.aten.floor_divide.Scalar: translate_floor_divide,
    torch.ops.aten.div.Tensor_mode: translate_div,
    torch.ops.aten.div.Scalar_mode: translate_div,
    operator.floordiv: translate_floordiv,
}
