"""Operations that torch's exporter captures for one extent, or translates wrongly; each with the issue
after which it can go. `tests/export/test_operators.py` fails without them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset18 as op
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ROUNDING = (math.floor, math.ceil, math.trunc, round)

# For each layer of torch: the order in which ONNX has its gates, and its activations where it may choose.
RECURRENT: dict[str, tuple[list[int], list[str]]] = {
    "lstm": ([0, 3, 1, 2], []),
    "gru": ([1, 0, 2], []),
    "rnn_tanh": ([0], ["Tanh"]),
    "rnn_relu": ([0], ["Relu"]),
}

torch.library.define(
    "mdlstm::recurrent",
    "(str kind, Tensor x, Tensor w, Tensor r, Tensor b, Tensor h, Tensor? c=None)"
    " -> (Tensor, Tensor, Tensor)",
)


def _fake(kind: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Any = None) -> Any:
    return x.new_empty(x.shape[0], r.shape[0], x.shape[1], r.shape[2]), h.clone(), h.clone()


torch.library.register_fake("mdlstm::recurrent", _fake)


class Capturing(TorchFunctionMode):
    """While it is active, operations have what torch can capture."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in RECURRENT and len(args) == 9 and isinstance(args[3], bool):  # else a packed sequence
            return _recurrent(name, *args)
        if func is torch.linspace and isinstance(kwargs.get("steps", [*args, 0, 0, 0][2]), torch.SymInt):
            return _linspace(*args, **kwargs)
        return REPLACED.get(func, func)(*args, **kwargs)


def _linspace(start: float, end: float, steps: int, **options: Any) -> Tensor:
    """`torch.linspace`, which counts from both ends. torch fixes a free number of steps
    (microsoft/onnxscript#854)."""
    k = torch.arange(steps, **{"dtype": torch.get_default_dtype(), **options})
    step = (end - start) / torch.scalar_tensor(steps - 1, dtype=k.dtype).clamp(min=1)
    return torch.where(k < steps / 2, start + step * k, end - step * (steps - 1 - k))


def _one_hot(input: Tensor, num_classes: int) -> Tensor:
    """`one_hot` as a scatter, which refuses classes beyond the last one; OneHot of ONNX makes zeros of
    them. The standard has it so; no issue."""
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
    """`interpolate`; to the nearest position as a gather, which takes the positions that torch takes.

    torch takes the position ⌊k · s⌋ for pixel k, where s in float32 is the ratio of the extents, or the
    reciprocal of the factor. Resize of ONNX divides k by the reciprocal of s, which is rounded otherwise
    (microsoft/onnxruntime#12098).
    """
    extents: Sequence[Any] = input.shape[2:]
    factors: list[Any] = [None] * len(extents)
    sizes: list[Any] = list(size) if isinstance(size, Sequence) else [size] * len(extents)
    if scale_factor is not None:
        factors = (
            list(scale_factor) if isinstance(scale_factor, Sequence) else [scale_factor] * len(extents)
        )
        sizes = list(map(_resized, extents, factors))
    if mode == "area" and any(isinstance(extent, torch.SymInt) for extent in (*extents, *sizes)):
        raise NotImplementedError("ONNX has no interpolation by area for free extents")
    is_whole = all(factor is not None and factor % 1 == 0 for factor in factors)
    if mode not in ("nearest", "nearest-exact") or (mode == "nearest" and is_whole):
        return functional.interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    x, device = input.movedim((0, 1), (-2, -1)), input.device  # rows of these are taken faster than numbers
    for axis, (extent, count, factor) in enumerate(zip(extents, sizes, factors, strict=True)):
        k = torch.arange(count, dtype=torch.float32, device=device) + 0.5 * (mode == "nearest-exact")
        if factor is None or recompute_scale_factor:
            n, m = (torch.scalar_tensor(e, dtype=torch.float32, device=device) for e in (extent, count))
            position = k * (n / m)
        else:
            position = k * float(np.float32(1 / factor))
        x = x.index_select(axis, position.floor().to(torch.int64).clamp(max=extent - 1))
    return x.movedim((-2, -1), (0, 1))


def _adaptive_pool(input: Tensor, output_size: Any) -> Tensor:
    """`adaptive_avg_pool2d` of free extents to one position along each axis, or to all; torch's exporter
    writes the extents that it was traced with."""
    if not any(isinstance(extent, torch.SymInt) for extent in input.shape[2:]):
        return functional.adaptive_avg_pool2d(input, output_size)
    sizes = output_size if isinstance(output_size, Sequence) else [output_size] * 2
    for axis, size in zip((-2, -1), sizes, strict=True):
        if size not in (1, None):
            raise NotImplementedError("ONNX pools free extents to one position alone")
        input = input if size is None else input.mean(axis, keepdim=True)
    return input


def _resized(extent: Any, factor: float) -> Any:
    """An extent times a number, rounded down as in Python, which a file would do in float32."""
    if isinstance(extent, int):
        return math.floor(extent * factor)
    ratio, n = Fraction(factor).limit_denominator(1000), np.arange(1, 2**16)
    exact = n * ratio.numerator // ratio.denominator
    if any(
        (np.floor(n.astype(t) * np.asarray(factor, t)) != exact).any() for t in (np.float32, np.float64)
    ):
        raise NotImplementedError(
            f"interpolate by {factor} gives other extents in a file, which computes them in float32, on "
            "some grids; give it size=, such as 7 * x.shape[2] // 10"
        )
    return extent * ratio.numerator // ratio.denominator


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
    """The stacked layers of an `nn.LSTM`, `nn.GRU` or `nn.RNN` in eval mode, each as one operator; torch
    fixes the number of their steps (pytorch/pytorch#126339)."""
    h, *others = [initial] if isinstance(initial, Tensor) else initial
    if others and others[0].shape[-1] != h.shape[-1]:
        raise NotImplementedError("ONNX has no LSTM with projections; leave proj_size out")
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


def _translate_recurrent(kind: str, x: Any, w: Any, r: Any, b: Any, h: Any, c: Any = None) -> Any:
    dirs, _, units = map(int, r.shape)
    options: dict[str, Any] = {
        "hidden_size": units,
        "direction": "bidirectional" if dirs == 2 else "forward",
    }
    if kind == "lstm":
        return op.LSTM(x, w, r, b, None, h, c, **options)
    if kind == "gru":
        y, last = op.GRU(x, w, r, b, None, h, linear_before_reset=1, **options)
    else:
        y, last = op.RNN(x, w, r, b, None, h, activations=dirs * RECURRENT[kind][1], **options)
    return y, last, last


# Indices: ONNX counts negative ones from the end, torch refuses them. They become one beyond the end, which
# ONNX Runtime refuses. The standard of ONNX has it so; no issue.


def _not_negative(indices: Any, count: Any) -> Any:
    whole: Any = op.Cast(indices, to=onnx.TensorProto.INT64)
    return op.Where(op.Less(whole, op.Constant(value_int=0)), count, whole)


def _number(value: float, like: Any) -> Any:
    """A number in the type of another value."""
    is_float = isinstance(value, float)
    constant: Any = op.Constant(value_float=value) if is_float else op.Constant(value_int=int(value))
    return op.CastLike(constant, like)


def _along(x: Any, dim: int, indices: Any) -> tuple[Any, int]:
    """Indices along an axis of x; and the axis, not negative, as the evaluator of onnx wants it."""
    axis = dim % len(x.shape)
    return _not_negative(indices, op.Squeeze(op.Shape(x, start=axis, end=axis + 1))), axis


def _index_select(x: Any, dim: int, index: Any) -> Any:
    shape: Any = op.Constant(value_ints=[-1])  # also of a single number
    indices, axis = _along(x, dim, index)
    return op.Gather(x, op.Reshape(indices, shape), axis=axis)


def _gather(x: Any, dim: int, index: Any, **_: Any) -> Any:
    indices, axis = _along(x, dim, index)
    return op.GatherElements(x, indices, axis=axis)


def _scatter(x: Any, dim: int, index: Any, source: Any, **options: Any) -> Any:
    indices, axis = _along(x, dim, index)
    return op.ScatterElements(x, indices, source, axis=axis, **options)


def _scatter_value(x: Any, dim: int, index: Any, value: float) -> Any:
    return _scatter(x, dim, index, op.Expand(_number(value, x), op.Shape(index)))


def _scatter_add(x: Any, dim: int, index: Any, source: Any) -> Any:
    return _scatter(x, dim, index, source, reduction="add")


def _embedding(weight: Any, indices: Any, *_: Any, **__: Any) -> Any:
    """On CUDA, ONNX Runtime takes rows beyond the end for zeros; they are made NaN."""
    count = op.Constant(value_int=int(weight.shape[0]))
    index = _not_negative(indices, count)
    nan = op.Constant(value=onnx.helper.make_tensor("nan", int(weight.dtype), [], [math.nan]))
    axes: Any = op.Constant(value_ints=[-1])
    exists: Any = op.Unsqueeze(op.Less(index, count), axes)
    return op.Where(exists, op.Gather(weight, index, axis=0), nan)


def _log_sigmoid(x: Any) -> Any:
    """−log(1 + e^−x). torch's exporter takes the logarithm of a sigmoid, which is −∞ from x = −17 on
    (pytorch/pytorch#14830 has it so)."""
    return op.Neg(op.Softplus(op.Neg(x)))


def _logaddexp(a: Any, b: Any) -> Any:
    """log(e^a + e^b) without overflow (microsoft/onnxscript#281 has it with); two infinities stay."""
    zero = _number(0.0, a)
    difference: Any = op.Where(op.Equal(a, b), zero, op.Abs(op.Sub(a, b)))
    return op.Add(op.Max(a, b), op.Softplus(op.Neg(difference)))


def _floor_of_extents(a: Any, b: Any) -> Any:
    """`a // b` of integers, rounded down as in Python: torch's exporter rounds that of extents towards 0,
    and that of tensors in float32, wrong from 2²⁴ on (microsoft/onnxscript#2342, #2589)."""
    a, b = (op.Constant(value_int=value) if isinstance(value, int) else value for value in (a, b))
    return op.Div(op.Sub(a, op.Mod(a, b)), b)  # Mod has the sign of b


def _division(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    """`div`, that of integers as integers; see above."""
    like = b if isinstance(a, int | float) else a
    a, b = (_number(v, like) if isinstance(v, int | float) else v for v in (a, b))
    is_float = any(v.dtype.is_floating_point() for v in (a, b) if v.dtype is not None)
    if rounding_mode is None or is_float:
        if not is_float:
            a, b = (op.Cast(each, to=onnx.TensorProto.FLOAT) for each in (a, b))
        quotient: Any = op.Div(a, b)
        if rounding_mode is None:
            return quotient
        down: Any = op.Floor(quotient)
        if rounding_mode == "floor":
            return down
        return op.Where(op.Less(quotient, _number(0, a)), op.Ceil(quotient), down)
    return _floor_of_extents(a, b) if rounding_mode == "floor" else op.Div(a, b)


def _floor_divide(a: Any, b: Any) -> Any:
    return _division(a, b, "floor")


REPLACED: dict[Any, Callable[..., Tensor]] = {
    functional.adaptive_avg_pool2d: _adaptive_pool,
    functional.one_hot: _one_hot,
    functional.interpolate: _interpolate,
}
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.mdlstm.recurrent.default: _translate_recurrent,
    torch.ops.aten.embedding.default: _embedding,
    torch.ops.aten.index_select.default: _index_select,
    torch.ops.aten.gather.default: _gather,
    torch.ops.aten.scatter.src: _scatter,
    torch.ops.aten.scatter.value: _scatter_value,
    torch.ops.aten.scatter_add.default: _scatter_add,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
    torch.ops.aten.logaddexp.default: _logaddexp,
    torch.ops.aten.floor_divide.default: _floor_divide,
    torch.ops.aten.floor_divide.Scalar: _floor_divide,
    torch.ops.aten.div.Tensor_mode: _division,
    torch.ops.aten.div.Scalar_mode: _division,
    operator.floordiv: _floor_of_extents,
}


def inexact_rounding(graph: Any) -> bool:
    """True if a graph rounds what it computes of extents, other than the ratio of two integers. ONNX has
    such numbers in float32, Python in float64."""

    def is_integer(value: Any) -> bool:
        value = value.meta.get("val") if isinstance(value, torch.fx.Node) else value
        return isinstance(value, int | torch.SymInt)

    for node in graph.nodes:
        for part in node.args if node.target in ROUNDING else ():
            is_ratio = isinstance(part, torch.fx.Node) and part.target is operator.truediv
            if not is_integer(part) and not (is_ratio and all(map(is_integer, part.args))):
                return True
    return False
