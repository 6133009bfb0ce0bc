"""Operations that `torch.export` only captures for one extent, in operators that it captures for any."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
    unroll it for the number of steps at hand, `torch.linspace` takes a free extent, and `one_hot` is a
    scatter, which refuses classes beyond the last one, as torch does."""

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
    operator.floordiv: translate_floordiv,
}
