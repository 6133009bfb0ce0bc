"""The table of operations that a cell's equations may use.

A new operation is one more row of this file, if `compute` needs only what tensors and `Vector` both have,
and `triton` only Triton's language and the functions below. What they lack is written there first.
Equations may then use it as a method and as torch's function of that name; a function of `mdlstm_tk.cells`
is one more line of `functions`.

Columns
    symbol     how a user writes it, for error messages
    compute    of tensors, and of `mdlstm_tk.backends.cpu.simd.Vector`, which has torch's methods
    gradient   (dy, y, *arguments) → the gradient of each argument, in recorded values
    triton     an expression in which {0}, {1} stand for the arguments; functions without `tl.` are those
               of `mdlstm_tk.backends.cuda.kernels`
    onnx       the operator

Where an operation has no derivative, the gradient is that of torch: half for each of two equal arguments of
`maximum` and `minimum`, 0 for `relu` and `abs` at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """An elementwise operation. The module's docstring describes the attributes."""

    symbol: str
    compute: Callable[..., Any]
    gradient: Callable[..., tuple[Any, ...]]
    triton: str
    onnx: str


def _shares(dy: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """dy where a > b, and dy where a < b; half of it each where they are equal."""
    share = 0.5 * (a - b).sign()
    return dy * (0.5 + share), dy * (0.5 - share)


# fmt: off
OPERATIONS: dict[str, Operation] = {
    "add": Operation("+", lambda a, b: a + b, lambda dy, y, a, b: (dy, dy), "{0} + {1}", "Add"),
    "subtract": Operation("-", lambda a, b: a - b, lambda dy, y, a, b: (dy, 0.0 - dy), "{0} - {1}", "Sub"),
    "multiply": Operation("*", lambda a, b: a * b, lambda dy, y, a, b: (dy * b, dy * a),
                          "{0} * {1}", "Mul"),
    "divide": Operation("/", lambda a, b: a / b, lambda dy, y, a, b: (dy / b, 0.0 - dy * y / b),
                        "{0} / {1}", "Div"),
    "exp": Operation("exp", lambda x: x.exp(), lambda dy, y, x: (dy * y,), "exp({0})", "Exp"),
    "log": Operation("log", lambda x: x.log(), lambda dy, y, x: (dy / x,), "tl.log({0})", "Log"),
    "sqrt": Operation("sqrt", lambda x: x.sqrt(), lambda dy, y, x: (dy * 0.5 / y,), "sqrt({0})", "Sqrt"),
    "abs": Operation("abs", lambda x: x.abs(), lambda dy, y, x: (dy * x.sign(),), "tl.abs({0})", "Abs"),
    "sign": Operation("sign", lambda x: x.sign(), lambda dy, y, x: (dy * 0.0,),
                      "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, 0.0))", "Sign"),
    "maximum": Operation("maximum", lambda a, b: a.maximum(b), lambda dy, y, a, b: _shares(dy, a, b),
                         "tl.maximum({0}, {1}, tl.PropagateNan.ALL)", "Max"),
    "minimum": Operation("minimum", lambda a, b: a.minimum(b), lambda dy, y, a, b: _shares(dy, b, a),
                         "tl.minimum({0}, {1}, tl.PropagateNan.ALL)", "Min"),
    "tanh": Operation("tanh", lambda x: x.tanh(), lambda dy, y, x: (dy * (1.0 - y * y),),
                      "tanh({0})", "Tanh"),
    "sigmoid": Operation("sigmoid", lambda x: x.sigmoid(), lambda dy, y, x: (dy * (y * (1.0 - y)),),
                         "sigmoid({0})", "Sigmoid"),
    "relu": Operation("relu", lambda x: x.relu(), lambda dy, y, x: (dy * y.sign(),),
                      "tl.maximum({0}, 0.0, tl.PropagateNan.ALL)", "Relu"),
    # log(1 + exp(x)); torch's own function is linear from x = 20 on
    "softplus": Operation("softplus", lambda x: x.logaddexp(x.new_zeros(())),
                          lambda dy, y, x: (dy * x.sigmoid(),), "softplus({0})", "Softplus"),
}
# fmt: on


def supported() -> str:
    """The operations as users write them, for error messages."""
    return ", ".join(operation.symbol for operation in OPERATIONS.values())
