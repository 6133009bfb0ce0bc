"""Elementwise functions of vectors in LLVM, from which the table of operations makes cells.

Functions that have no instruction are polynomials, after the argument was brought into a short interval.
They are right for all arguments: infinities, numbers too small for a whole mantissa, and NaN, which stays
NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial, log2, sqrt
from typing import NamedTuple

from llvmlite import ir

from mdlstm_tk.backends.cpu.simd import CONTRACT, lane_type, multiply_add, splat

INFINITY, NAN = float("inf"), float("nan")

# Eigen's rational minimax approximation of tanh in float32, highest power of x² first; error ≤ 1e-7.
TANH_BOUND = 7.90531110763549805
TANH_ONE = 9.02  # beyond this tanh rounds to 1
TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)

LOG2_E = 1.4426950408889634


class Format(NamedTuple):
    """A number format, and what functions in it need.

    Attributes:
        bits, mantissa: of a number, and of its mantissa.
        ln_2: ln 2 as a sum of two numbers. The first has so few bits that whole multiples of it are exact.
        smallest: the smallest number with a whole mantissa.
        underflow, overflow: e^x is 0 below, and infinite above.
        exp_terms, log_terms, softplus_terms: of the series, so that the rest is less than rounding.
    """

    bits: int
    mantissa: int
    ln_2: tuple[float, float]
    smallest: float
    underflow: float
    overflow: float
    exp_terms: int
    log_terms: int
    softplus_terms: int


FLOAT32 = Format(32, 23, (0.693359375, -2.1219444005469058e-4), 2.0**-126, -104.0, 89.0, 8, 5, 8)
FLOAT64 = Format(
    64, 52, (0.6931471803691238, 1.9082149292705877e-10), 2.0**-1022, -746.0, 710.0, 14, 11, 17
)


class Vectors:
    """Arithmetic on vectors with a given element type and number of lanes."""

    def __init__(self, builder: ir.IRBuilder, element: ir.Type, lanes: int) -> None:
        self.builder, self.element, self.lanes = builder, element, lanes
        self.type = lane_type(element, lanes)
        self.format = FLOAT64 if isinstance(element, ir.DoubleType) else FLOAT32
        self.integer = ir.IntType(self.format.bits)
        self.bits = lane_type(self.integer, lanes)

    def constant(self, number: float) -> ir.Value:
        return splat(self.builder, ir.Constant(self.element, number), self.lanes)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fadd(a, b, flags=CONTRACT)

    def subtract(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fsub(a, b, flags=CONTRACT)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fmul(a, b, flags=CONTRACT)

    def divide(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fdiv(a, b)

    def sqrt(self, x: ir.Value) -> ir.Value:
        name = f"llvm.sqrt.{f'v{self.lanes}' if self.lanes > 1 else ''}f{self.format.bits}"
        root = self.builder.module.declare_intrinsic(name, fnty=ir.FunctionType(self.type, [self.type]))
        return self.builder.call(root, [x])

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._pick(">", a, b)

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._pick("<", a, b)

    def _pick(self, comparison: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """a where the comparison holds or a is NaN, else b, which may be NaN, too."""
        holds = self.builder.fcmp_ordered(comparison, a, b)
        return self.builder.select(self.builder.or_(holds, self._is_nan(a)), a, b)

    def sign(self, x: ir.Value) -> ir.Value:
        """1, −1 or 0; 0 for NaN, as torch has it."""
        zero = self.constant(0.0)
        below = self._where("<", x, 0.0, self.constant(-1.0), zero)
        return self._where(">", x, 0.0, self.constant(1.0), below)

    def tanh(self, x: ir.Value) -> ir.Value:
        if self.format is FLOAT64:
            # 1 − 2 / (e^2x + 1), which rounds to 1 from x = 20 on.
            double = self.exp(self.multiply(self.clamp(x, -20.0, 20.0), self.constant(2.0)))
            quotient = self.divide(self.constant(2.0), self.add(double, self.constant(1.0)))
            return self.subtract(self.constant(1.0), quotient)
        inner = self.clamp(x, -TANH_BOUND, TANH_BOUND)
        square = self.multiply(inner, inner)
        numerator = self.multiply(inner, self.polynomial(square, TANH_NUMERATOR))
        quotient = self.divide(numerator, self.polynomial(square, TANH_DENOMINATOR))
        # Exactly ±1 far out: then the slope 1 − tanh² is exactly 0, and a very large c passes no gradient.
        above = self._where(">", x, TANH_ONE, self.constant(1.0), quotient)
        return self._where("<", x, -TANH_ONE, self.constant(-1.0), above)

    def sigmoid(self, x: ir.Value) -> ir.Value:
        if self.format is FLOAT64:
            power = self.exp(self.subtract(self.constant(0.0), x))
            return self.divide(self.constant(1.0), self.add(power, self.constant(1.0)))
        half = self.constant(0.5)
        return multiply_add(self.builder, half, self.tanh(self.multiply(half, x)), half)

    def exp(self, x: ir.Value) -> ir.Value:
        """2^k e^r with |r| ≤ ln 2 / 2, e^r by Taylor. 2^k is two factors, as k is beyond the exponents of
        normal numbers where the result is subnormal."""
        high, low = self.format.ln_2
        rounder = 1.5 * 2.0**self.format.mantissa  # adding it leaves the nearest integer in the low bits
        inner = self.clamp(x, self.format.underflow, self.format.overflow)
        shifted = multiply_add(self.builder, inner, self.constant(LOG2_E), self.constant(rounder))
        k = self.subtract(shifted, self.constant(rounder))
        r = multiply_add(self.builder, k, self.constant(-high), inner)
        r = multiply_add(self.builder, k, self.constant(-low), r)
        power = self.polynomial(r, [1 / factorial(i) for i in reversed(range(self.format.exp_terms))])
        exponent = self.builder.sub(self._bits_of(shifted), self._bits_of(self.constant(rounder)))
        half = self.builder.ashr(exponent, self._integer(1))
        result = self.multiply(power, self._power_of_two(half))
        result = self.multiply(result, self._power_of_two(self.builder.sub(exponent, half)))
        return self.builder.select(self._is_nan(x), x, result)

    def log(self, x: ir.Value) -> ir.Value:
        """log m + e ln 2, where x = 2^e m and √½ ≤ m < √2."""
        high, low = self.format.ln_2
        tiny = self.builder.fcmp_ordered("<", x, self.constant(self.format.smallest))
        scale = 2.0 ** (self.format.mantissa + 1)
        normal = self.builder.select(tiny, self.multiply(x, self.constant(scale)), x)
        bits = self._bits_of(normal)
        from_root = self.builder.sub(bits, self._bits_of(self.constant(sqrt(0.5))))
        exponent = self.builder.ashr(from_root, self._integer(self.format.mantissa))
        mantissa = self.builder.sub(bits, self.builder.shl(exponent, self._integer(self.format.mantissa)))
        f = self.subtract(self.builder.bitcast(mantissa, self.type), self.constant(1.0))
        e = self.builder.sitofp(exponent, self.type)
        e = self.subtract(e, self.builder.select(tiny, self.constant(log2(scale)), self.constant(0.0)))
        # log m = 2 atanh(s) = f − f²/2 + s (f²/2 + R), which loses fewer bits than 2s + sR.
        s = self.divide(f, self.add(f, self.constant(2.0)))
        square = self.multiply(s, s)
        terms = [2 / (2 * i + 3) for i in reversed(range(self.format.log_terms))]
        r = self.multiply(square, self.polynomial(square, terms))
        half = self.multiply(self.constant(0.5), self.multiply(f, f))
        rest = multiply_add(self.builder, s, self.add(half, r), self.multiply(e, self.constant(low)))
        result = self.subtract(f, self.subtract(half, rest))
        result = multiply_add(self.builder, e, self.constant(high), result)
        result = self._where("==", x, 0.0, self.constant(-INFINITY), result)
        result = self._where("<", x, 0.0, self.constant(NAN), result)
        as_is = self.builder.or_(
            self.builder.fcmp_ordered("==", x, self.constant(INFINITY)), self._is_nan(x)
        )
        return self.builder.select(as_is, x, result)

    def softplus(self, x: ir.Value) -> ir.Value:
        """max(x, 0) + log(1 + t) with t = e^−|x|, and log(1 + t) = 2 atanh(t / (2 + t)) as a series."""
        magnitude = self.maximum(x, self.subtract(self.constant(0.0), x))
        t = self.exp(self.subtract(self.constant(0.0), magnitude))
        s = self.divide(t, self.add(t, self.constant(2.0)))
        terms = [2 / (2 * i + 1) for i in reversed(range(self.format.softplus_terms))]
        series = self.polynomial(self.multiply(s, s), terms)
        return multiply_add(self.builder, s, series, self.maximum(x, self.constant(0.0)))

    def clamp(self, a: ir.Value, low: float, high: float) -> ir.Value:
        """a limited to [low, high]; NaN stays NaN."""
        a = self._where(">", a, high, self.constant(high), a)
        return self._where("<", a, low, self.constant(low), a)

    def polynomial(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """Horner's rule, highest power first."""
        result = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            result = multiply_add(self.builder, result, x, self.constant(coefficient))
        return result

    def total(self, x: ir.Value) -> ir.Value:
        """The sum of the lanes, in log₂(lanes) steps."""
        index = ir.IntType(32)
        lanes = self.lanes
        while lanes > 1:
            lanes //= 2
            masks = (list(range(start, start + lanes)) for start in (0, lanes))
            x = self.add(
                *(
                    self.builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(index, lanes), mask))
                    for mask in masks
                )
            )
        return x if self.lanes == 1 else self.builder.extract_element(x, ir.Constant(index, 0))

    def _where(
        self, comparison: str, x: ir.Value, bound: float, then: ir.Value, other: ir.Value
    ) -> ir.Value:
        """`then` where x compares so with the bound, else `other`, also where x is NaN."""
        holds = self.builder.fcmp_ordered(comparison, x, self.constant(bound))
        return self.builder.select(holds, then, other)

    def _is_nan(self, x: ir.Value) -> ir.Value:
        return self.builder.fcmp_unordered("uno", x, x)

    def _bits_of(self, x: ir.Value) -> ir.Value:
        return self.builder.bitcast(x, self.bits)

    def _integer(self, number: int) -> ir.Value:
        return splat(self.builder, ir.Constant(self.integer, number), self.lanes)

    def _power_of_two(self, exponent: ir.Value) -> ir.Value:
        """2^exponent, where that is a normal number."""
        one = self._bits_of(self.constant(1.0))
        shifted = self.builder.shl(exponent, self._integer(self.format.mantissa))
        return self.builder.bitcast(self.builder.add(one, shifted), self.type)
