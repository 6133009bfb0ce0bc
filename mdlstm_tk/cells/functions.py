"""The functions that a cell's equations may use, of recorded values and numbers."""

from __future__ import annotations

from mdlstm_tk.cells.ir import Value, record

Operand = Value | float


def exp(x: Operand) -> Value:
    """e^x."""
    return record("exp", x)


def log(x: Operand) -> Value:
    """The natural logarithm."""
    return record("log", x)


def sqrt(x: Operand) -> Value:
    """The square root."""
    return record("sqrt", x)


def sign(x: Operand) -> Value:
    """1, 0 or −1."""
    return record("sign", x)


def maximum(a: Operand, b: Operand) -> Value:
    """The larger one; if they are equal, each gets half of the gradient, as in torch."""
    return record("maximum", a, b)


def minimum(a: Operand, b: Operand) -> Value:
    """The smaller one, as `maximum`."""
    return record("minimum", a, b)


def tanh(x: Operand) -> Value:
    """The hyperbolic tangent."""
    return record("tanh", x)


def sigmoid(x: Operand) -> Value:
    """1 / (1 + e^−x)."""
    return record("sigmoid", x)


def relu(x: Operand) -> Value:
    """max(x, 0)."""
    return record("relu", x)


def softplus(x: Operand) -> Value:
    """log(1 + e^x)."""
    return record("softplus", x)
