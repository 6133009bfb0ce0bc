"""Vectors in LLVM: the machine's registers, pointers, loops over vectors, and elementwise functions.

Numba leaves it to LLVM to vectorise a loop. With a dozen arrays that may overlap, or 16 units per row, LLVM
does not. So the inner loops are written as vector instructions with llvmlite, which Numba depends on.

A `Vector` computes as torch's tensors do, so the table of operations holds for both. Functions that have no
instruction are polynomials, after the argument was brought into a short interval. They are right for all
arguments: infinities, numbers too small for a whole mantissa, and NaN, which stays NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import factorial, log2, sqrt
from typing import NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config
from numba.core import cgutils
from numpy.polynomial import Chebyshev, Polynomial

I64 = ir.IntType(64)


def _vector_bytes() -> int:
    """The size of the machine's vector registers. LLVM splits wider vectors, so a wrong guess costs only
    time."""
    features: dict[str, bool] = llvm.get_host_cpu_features() if config.CPU_NAME is None else {}
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


VECTOR_BYTES = _vector_bytes()
# A tile's accumulators, rows × vectors, and its operands must fit the registers: 16 with AVX2, 32 with
# AVX-512 and NEON.
TILE_ROWS, TILE_VECTORS = (4, 3) if VECTOR_BYTES == 32 else (8, 2)


def vector_length(itemsize: int) -> int:
    """The number of elements of a vector."""
    return VECTOR_BYTES // itemsize


def lane_counts(element: ir.Type) -> tuple[int, ...]:
    """The vector lengths in which a row is processed: full vectors first, then shorter ones for its end."""
    longest = vector_length(itemsize(element))
    return (longest, 4, 1) if longest > 4 else (longest, 1)


def itemsize(element: ir.Type) -> int:
    return 8 if isinstance(element, ir.DoubleType) else 4


def lane_type(element: ir.Type, lanes: int) -> ir.Type:
    return element if lanes == 1 else ir.VectorType(element, lanes)


@dataclass(frozen=True)
class Pointer:
    """An address and the type of the elements there; LLVM's pointers have none.

    Attributes:
        builder: where instructions are added.
        value: LLVM's pointer.
        element: the type of one element.
    """

    builder: ir.IRBuilder
    value: ir.Value
    element: ir.Type

    def at(self, offset: ir.Value | int) -> Pointer:
        """The pointer to the element that many elements further on."""
        index = ir.Constant(I64, offset) if isinstance(offset, int) else offset
        value = self.builder.gep(self.value, [index], source_etype=self.element)
        return Pointer(self.builder, value, self.element)

    def row(self, stride: ir.Value, index: ir.Value | int) -> Pointer:
        """The pointer to row `index` of rows that lie `stride` elements apart."""
        index = ir.Constant(I64, index) if isinstance(index, int) else index
        return self.at(self.builder.mul(stride, index))

    def load(self, lanes: int = 1) -> Vector:
        """The elements from here on as a vector."""
        vector = lane_type(self.element, lanes)
        pointer = self.builder.bitcast(self.value, vector.as_pointer())
        loaded = self.builder.load(pointer, align=itemsize(self.element), typ=vector)
        return Vector(self.builder, loaded)

    def store(self, vector: Vector) -> None:
        pointer = self.builder.bitcast(self.value, vector.type.as_pointer())
        self.builder.store(vector.value, pointer, align=itemsize(self.element))


@contextmanager
def vector_loop(
    builder: ir.IRBuilder, position: ir.Value, limit: ir.Value, step: int
) -> Iterator[ir.Value]:
    """The body of `while position + step <= limit: …; position += step`, with the position in memory."""
    head, body, end = (builder.append_basic_block(name) for name in ("loop", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    current = builder.load(position, typ=I64)
    following = builder.add(current, ir.Constant(I64, step))
    builder.cbranch(builder.icmp_signed("<=", following, limit), body, end)
    builder.position_at_end(body)
    yield current
    builder.store(following, position)
    builder.branch(head)
    builder.position_at_end(end)


def zeros(builder: ir.IRBuilder, element: ir.Type, lanes: int = 1) -> Pointer:
    """Zeros in memory; LLVM turns it into a register."""
    kind = lane_type(element, lanes)
    place = Pointer(builder, cgutils.alloca_once(builder, kind), element)
    place.store(Vector(builder, ir.Constant(kind, None)))
    return place


def counter(builder: ir.IRBuilder) -> ir.Value:
    """A position for `vector_loop`."""
    return zeros(builder, I64).value


CONTRACT = ("contract",)  # a product and a sum may become one fused multiply-add; nothing else changes
INFINITY, NAN = float("inf"), float("nan")

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


class Format(NamedTuple):
    """A number format, and what functions in it need.

    Attributes:
        bits, mantissa: of a number, and of its mantissa.
        ln_2: ln 2 as a sum of two numbers. The first has so few bits that whole multiples of it are exact.
        smallest: the smallest number with a whole mantissa.
        underflow, overflow: e^x is 0 below, and infinite above.
        tanh_bound: tanh rounds to ±1 beyond.
        exp_terms, tanh_terms, log_terms, logaddexp_terms: of the series, so that its remainder is below
            rounding.
    """

    bits: int
    mantissa: int
    ln_2: tuple[float, float]
    smallest: float
    underflow: float
    overflow: float
    tanh_bound: float
    exp_terms: int
    tanh_terms: int
    log_terms: int
    logaddexp_terms: int


FLOAT32 = Format(32, 23, (0.693359375, -2.1219444005469058e-4), 2.0**-126, -104.0, 89.0, 9.02, 7, 6, 5, 8)
FLOAT64 = Format(
    64, 52, (0.6931471803691238, 1.9082149292705877e-10), 2.0**-1022, -746.0, 710.0, 20.0, 13, 11, 11, 17
)


@cache
def growth_series(rate: float, bound: float, terms: int) -> list[float]:
    """Coefficients of (e^(rate·x) − 1) / x for |x| ≤ bound, highest power first.

    They are of Taylor's series, from which the last terms are taken in the form of Chebyshev polynomials,
    where they are smallest.
    """
    taylor = [rate ** (k + 1) / factorial(k + 1) for k in range(2 * terms)]
    chebyshev = Polynomial(taylor).convert(kind=Chebyshev, domain=[-bound, bound]).truncate(terms)
    return chebyshev.convert(kind=Polynomial).coef[::-1].tolist()  # type: ignore[no-any-return]


def splat(builder: ir.IRBuilder, number: ir.Value, lanes: int) -> ir.Value:
    """A vector of `lanes` copies of a number."""
    if lanes == 1:
        return number
    empty = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))


class Vector:
    """A vector, or a number as a vector of one lane; float32 or float64.

    Args:
        builder: where instructions are added.
        value: LLVM's vector or number.
    """

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value, self.type = builder, value, value.type
        is_vector = isinstance(self.type, ir.VectorType)
        self.lanes = self.type.count if is_vector else 1
        self.element = self.type.element if is_vector else self.type
        self.format = FLOAT64 if isinstance(self.element, ir.DoubleType) else FLOAT32

    def like(self, number: Vector | float) -> Vector:
        """A number in every lane."""
        if isinstance(number, Vector):
            return number
        return Vector(self.builder, ir.Constant(self.element, number)).splat(self.lanes)

    def splat(self, lanes: int) -> Vector:
        """A vector of copies of this number."""
        return Vector(self.builder, splat(self.builder, self.value, lanes))

    def new_zeros(self, shape: tuple[int, ...]) -> Vector:
        """Zeros, whatever the shape."""
        return self.like(0.0)

    def __add__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.value, self.like(other).value, flags=CONTRACT))

    def __sub__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.value, self.like(other).value, flags=CONTRACT))

    def __mul__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.value, self.like(other).value, flags=CONTRACT))

    def __truediv__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self.value, self.like(other).value))

    def __rsub__(self, number: float) -> Vector:
        return self.like(number) - self

    def __rmul__(self, number: float) -> Vector:
        return self.like(number) * self

    def __rtruediv__(self, number: float) -> Vector:
        return self.like(number) / self

    def __neg__(self) -> Vector:
        return Vector(self.builder, self.builder.fneg(self.value))

    def sqrt(self) -> Vector:
        return self._intrinsic("sqrt")

    def abs(self) -> Vector:
        return self._intrinsic("fabs")

    def maximum(self, other: Vector) -> Vector:
        """The larger one, NaN if one of them is."""
        return self._if(self.builder.or_(self._compare(">", other), self._is_nan()), self, other)

    def minimum(self, other: Vector) -> Vector:
        """The smaller one, NaN if one of them is."""
        return self._if(self.builder.or_(self._compare("<", other), self._is_nan()), self, other)

    def relu(self) -> Vector:
        return self.maximum(self.like(0.0))

    def sign(self) -> Vector:
        """1, −1 or 0; 0 for NaN, as torch has it."""
        return self._if(self._compare(">", 0.0), 1.0, self._if(self._compare("<", 0.0), -1.0, 0.0))

    def tanh(self) -> Vector:
        """u / (u + 2) with u = e^2x − 1 = 2^k (e^2r − 1) + (2^k − 1), which keeps all digits of small x.

        It is exactly ±1 far out: then the slope 1 − tanh² is exactly 0, and a very large c passes no
        gradient.
        """
        bound = self.format.tanh_bound
        r, power = self.clamp(-bound, bound)._modulo(0.5)
        growth = r * r.polynomial(growth_series(2.0, LN_2 / 4, self.format.tanh_terms))
        u = growth * power + (power - 1.0)
        return u / (u + 2.0)

    def sigmoid(self) -> Vector:
        """1 / (1 + e^−x), and e^x / (1 + e^x) for x < 0, as e^−x may overflow."""
        decay = self._decay()
        return self._if(self._compare("<", 0.0), decay, 1.0) / (decay + 1.0)

    def exp(self) -> Vector:
        return self.clamp(self.format.underflow, self.format.overflow)._exp()

    def _decay(self) -> Vector:
        """e^−|x|."""
        return (-self.abs())._at_least(self.format.underflow)._exp()

    def _exp(self) -> Vector:
        """2^2k e^r with |r| ≤ ln 2. 2^2k is two factors, as 2k is beyond the exponents of normal numbers
        where the result is subnormal."""
        r, power = self._modulo(2.0)
        series = r.polynomial(growth_series(1.0, LN_2, self.format.exp_terms))
        return (r * series + 1.0) * power * power

    def _modulo(self, factor: float) -> tuple[Vector, Vector]:
        """r and 2^k, where x = k·factor·ln 2 + r and |r| ≤ factor·ln 2 / 2. 2^k has to be normal."""
        high, low = (factor * part for part in self.format.ln_2)
        rounder = 1.5 * 2.0**self.format.mantissa  # adding it leaves the nearest integer in the low bits
        shifted = self * (LOG2_E / factor) + rounder
        k = shifted - rounder
        r = k * -low + (k * -high + self)
        exponent = self.builder.shl(shifted._bits(), self._integer(self.format.mantissa))
        return r, self._from_bits(self.builder.add(self.like(1.0)._bits(), exponent))

    def log(self) -> Vector:
        """log m + e ln 2, where x = 2^e m and √½ ≤ m < √2."""
        high, low = self.format.ln_2
        tiny = self._compare("<", self.format.smallest)
        scale = 2.0 ** (self.format.mantissa + 1)
        bits = self._if(tiny, self * scale, self)._bits()
        mantissa_bits = self._integer(self.format.mantissa)
        exponent = self.builder.ashr(self.builder.sub(bits, self.like(sqrt(0.5))._bits()), mantissa_bits)
        mantissa = self.builder.sub(bits, self.builder.shl(exponent, mantissa_bits))
        f = self._from_bits(mantissa) - 1.0
        e = Vector(self.builder, self.builder.sitofp(exponent, self.type))
        e = e - self._if(tiny, log2(scale), 0.0)
        # log m = 2 atanh(s) = f − f²/2 + s (f²/2 + R), which loses fewer bits than 2s + sR.
        s = f / (f + 2.0)
        square = s * s
        r = square * square.polynomial([2 / (2 * i + 3) for i in reversed(range(self.format.log_terms))])
        half = 0.5 * (f * f)
        result = e * high + (f - (half - (s * (half + r) + e * low)))
        result = self._if(self._compare("==", 0.0), -INFINITY, result)
        result = self._if(self._compare("<", 0.0), NAN, result)
        return self._if(self.builder.or_(self._compare("==", INFINITY), self._is_nan()), self, result)

    def logaddexp(self, other: Vector) -> Vector:
        """max(a, b) + log(1 + t) with t = e^−|a − b|, and log(1 + t) = 2 atanh(t / (2 + t)) as a series."""
        t = (self - other)._decay()
        s = t / (t + 2.0)
        terms = [2 / (2 * i + 1) for i in reversed(range(self.format.logaddexp_terms))]
        return s * (s * s).polynomial(terms) + self.maximum(other)

    def clamp(self, low: float, high: float) -> Vector:
        """The nearest number in [low, high]; NaN stays NaN."""
        return self._if(self._compare(">", high), high, self)._at_least(low)

    def _at_least(self, low: float) -> Vector:
        return self._if(self._compare("<", low), low, self)

    def polynomial(self, coefficients: Sequence[float]) -> Vector:
        """Horner's rule, highest power first."""
        result = self.like(coefficients[0])
        for coefficient in coefficients[1:]:
            result = result * self + coefficient
        return result

    def total(self) -> Vector:
        """The sum of the lanes, in log₂(lanes) steps."""
        if self.lanes == 1:
            return self
        vector, index = self, ir.IntType(32)
        for lanes in (self.lanes >> step for step in range(1, self.lanes.bit_length())):
            masks = (ir.Constant(ir.VectorType(index, lanes), [*range(k, k + lanes)]) for k in (0, lanes))
            low, high = (self.builder.shuffle_vector(vector.value, vector.value, mask) for mask in masks)
            vector = Vector(self.builder, low) + Vector(self.builder, high)
        return Vector(self.builder, self.builder.extract_element(vector.value, ir.Constant(index, 0)))

    def _compare(self, comparison: str, other: Vector | float) -> ir.Value:
        """True in the lanes where it holds; false where one is NaN."""
        return self.builder.fcmp_ordered(comparison, self.value, self.like(other).value)

    def _is_nan(self) -> ir.Value:
        return self.builder.fcmp_unordered("uno", self.value, self.value)

    def _if(self, condition: ir.Value, then: Vector | float, other: Vector | float) -> Vector:
        """In each lane `then` where the condition holds, else `other`."""
        chosen = self.builder.select(condition, self.like(then).value, self.like(other).value)
        return Vector(self.builder, chosen)

    def _intrinsic(self, name: str) -> Vector:
        """A function of one argument that LLVM has."""
        lanes = f"v{self.lanes}" if self.lanes > 1 else ""
        function = self.builder.module.declare_intrinsic(
            f"llvm.{name}.{lanes}f{self.format.bits}", fnty=ir.FunctionType(self.type, [self.type])
        )
        return Vector(self.builder, self.builder.call(function, [self.value]))

    def _bits(self) -> ir.Value:
        return self.builder.bitcast(self.value, self._integer(0).type)

    def _from_bits(self, bits: ir.Value) -> Vector:
        return Vector(self.builder, self.builder.bitcast(bits, self.type))

    def _integer(self, number: int) -> ir.Value:
        return splat(self.builder, ir.Constant(ir.IntType(self.format.bits), number), self.lanes)
