"""The functions that a cell's equations may use, of recorded values and numbers."""

from __future__ import annotations

from collections.abc import Callable

from mdlstm_tk.cells.ir import Value, record


def _function(op: str, doc: str) -> Callable[..., Value]:
    def function(*args: Value | float) -> Value:
        return record(op, *args)

    function.__name__, function.__doc__ = op, doc
    return function


exp = _function("exp", "e^x.")
log = _function("log", "The natural logarithm.")
sqrt = _function("sqrt", "The square root.")
sign = _function("sign", "1, 0 or −1.")
maximum = _function(
    "maximum", "The larger of two; if they are equal, each gets half of the gradient, as in torch."
)
minimum = _function("minimum", "The smaller of two, as `maximum`.")
tanh = _function("tanh", "The hyperbolic tangent.")
sigmoid = _function("sigmoid", "1 / (1 + e^−x).")
relu = _function("relu", "max(x, 0).")
softplus = _function("softplus", "log(1 + e^x).")
