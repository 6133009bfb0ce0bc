"""Vectors in LLVM: loads and stores, strided loops, and elementwise functions on them.

Numba leaves it to LLVM to find the vectors in a loop, and with a dozen arrays that may overlap, or
16 units a row, it finds none. So the inner loops are written as vector instructions with llvmlite,
which Numba comes with; `mdlstm_tk.backends.cpu.intrinsics` makes them callable from Numba.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config
from numba.core import cgutils

I64 = ir.IntType(64)
CONTRACT = ("contract",)  # a product and a sum may become one fused multiply-add; nothing else changes


def _vector_bytes() -> int:
    """The width of the machine's vectors; LLVM splits wider ones, so a wrong guess only costs time."""
    features: dict[str, bool] = llvm.get_host_cpu_features() if config.CPU_NAME is None else {}
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


VECTOR_BYTES = _vector_bytes()
# Accumulators of a tile are rows × vectors, and must fit the registers beside what is multiplied:
# 16 registers with AVX2, 32 with AVX-512 and NEON.
TILE_ROWS, TILE_VECTORS = (4, 3) if VECTOR_BYTES == 32 else (8, 2)


def vector_length(itemsize: int) -> int:
    """Numbers in a vector."""
    return VECTOR_BYTES // itemsize


def panel_width(itemsize: int) -> int:
    """Columns of the right operand that `matmul` takes at a time."""
    return TILE_VECTORS * vector_length(itemsize)


def widths(element: ir.Type) -> tuple[int, ...]:
    """The vectors in which a row is gone through: long ones, then what is left in ever shorter ones."""
    longest = vector_length(itemsize(element))
    return (longest, 4, 1) if longest > 4 else (longest, 1)


def itemsize(element: ir.Type) -> int:
    return 8 if isinstance(element, ir.DoubleType) else 4


def lane_type(element: ir.Type, width: int) -> ir.Type:
    return element if width == 1 else ir.VectorType(element, width)


def splat(builder: ir.IRBuilder, number: ir.Value, width: int) -> ir.Value:
    if width == 1:
        return number
    empty = ir.Constant(ir.VectorType(number.type, width), ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), width), None))


def shifted(builder: ir.IRBuilder, pointer: ir.Value, *amounts: ir.Value | int) -> ir.Value:
    for amount in amounts:
        offset = ir.Constant(I64, amount) if isinstance(amount, int) else amount
        pointer = builder.gep(pointer, [offset])
    return pointer


def load(builder: ir.IRBuilder, pointer: ir.Value, width: int) -> ir.Value:
    element = pointer.type.pointee
    vector = builder.bitcast(pointer, lane_type(element, width).as_pointer())
    return builder.load(vector, align=itemsize(element))


def store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    align = itemsize(pointer.type.pointee)
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=align)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return builder.fadd(builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)


@contextmanager
def stride(builder: ir.IRBuilder, position: ir.Value, limit: ir.Value, width: int) -> Iterator[ir.Value]:
    """The body of `while position + width <= limit: …; position += width`, position in memory."""
    head, body, end = (builder.append_basic_block(name) for name in ("stride", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    current = builder.load(position)
    after = builder.add(current, ir.Constant(I64, width))
    builder.cbranch(builder.icmp_signed("<=", after, limit), body, end)
    builder.position_at_end(body)
    yield current
    builder.store(after, position)
    builder.branch(head)
    builder.position_at_end(end)


def counter(builder: ir.IRBuilder) -> ir.Value:
    """A zero in memory; LLVM turns it into a register."""
    position = cgutils.alloca_once(builder, I64)
    builder.store(ir.Constant(I64, 0), position)
    return position


# Eigen's minimax quotient for tanh in float32, highest power of x² first; off by 1e-7 at most.
TANH_BOUND = 7.90531110763549805
TANH_ONE = 9.02  # from here on tanh is 1 to rounding
TANH_OVER = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_UNDER = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)

LOG2_E = 1.4426950408889634
LN_2_HIGH, LN_2_LOW = 0.6931471803691238, 1.9082149292705877e-10
ROUNDER = 6755399441055744.0  # 1.5 · 2^52: adding it leaves the nearest integer in the low bits
EXP = (
    1 / 6227020800,
    1 / 479001600,
    1 / 39916800,
    1 / 3628800,
    1 / 362880,
    1 / 40320,
    1 / 5040,
    1 / 720,
    1 / 120,
    1 / 24,
    1 / 6,
    1 / 2,
    1.0,
    1.0,
)


class Lanes:
    """Arithmetic on vectors of one element type and width."""

    def __init__(self, builder: ir.IRBuilder, element: ir.Type, width: int) -> None:
        self.builder, self.element, self.width = builder, element, width
        self.type = lane_type(element, width)

    def constant(self, number: float) -> ir.Value:
        return splat(self.builder, ir.Constant(self.element, number), self.width)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fadd(a, b, flags=CONTRACT)

    def subtract(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fsub(a, b, flags=CONTRACT)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fmul(a, b, flags=CONTRACT)

    def divide(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fdiv(a, b)

    def clamp(self, a: ir.Value, bound: float) -> ir.Value:
        """Between −bound and bound; NaN stays NaN."""
        high, low = self.constant(bound), self.constant(-bound)
        a = self.builder.select(self.builder.fcmp_ordered(">", a, high), high, a)
        return self.builder.select(self.builder.fcmp_ordered("<", a, low), low, a)

    def polynomial(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """Horner's rule, highest power first."""
        result = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            result = multiply_add(self.builder, result, x, self.constant(coefficient))
        return result

    def tanh(self, x: ir.Value) -> ir.Value:
        if isinstance(self.element, ir.DoubleType):
            # 1 − 2 / (e^2x + 1): 1 to rounding from 20 on.
            double = self.exp(self.multiply(self.clamp(x, 20.0), self.constant(2.0)))
            part = self.divide(self.constant(2.0), self.add(double, self.constant(1.0)))
            return self.subtract(self.constant(1.0), part)
        inner = self.clamp(x, TANH_BOUND)
        square = self.multiply(inner, inner)
        over = self.multiply(inner, self.polynomial(square, TANH_OVER))
        return self.saturate(x, self.divide(over, self.polynomial(square, TANH_UNDER)), TANH_ONE)

    def saturate(self, x: ir.Value, result: ir.Value, bound: float) -> ir.Value:
        """`result`, but ±1 where x lies beyond ±bound: then the slope 1 − tanh² is exactly 0, and a c that
        has grown out of all measure passes no gradient on."""
        one, minus_one = self.constant(1.0), self.constant(-1.0)
        above = self.builder.fcmp_ordered(">", x, self.constant(bound))
        below = self.builder.fcmp_ordered("<", x, self.constant(-bound))
        return self.builder.select(above, one, self.builder.select(below, minus_one, result))

    def sigmoid(self, x: ir.Value) -> ir.Value:
        if isinstance(self.element, ir.DoubleType):
            power = self.exp(self.multiply(self.clamp(x, 700.0), self.constant(-1.0)))
            return self.divide(self.constant(1.0), self.add(power, self.constant(1.0)))
        half = self.constant(0.5)
        return multiply_add(self.builder, half, self.tanh(self.multiply(half, x)), half)

    def exp(self, x: ir.Value) -> ir.Value:
        """e^x in float64 for |x| ≤ 700: 2^k e^r, |r| ≤ ln 2 / 2, e^r by Taylor to 2e-16."""
        shifted = multiply_add(self.builder, x, self.constant(LOG2_E), self.constant(ROUNDER))
        k = self.subtract(shifted, self.constant(ROUNDER))
        r = multiply_add(self.builder, k, self.constant(-LN_2_HIGH), x)
        r = multiply_add(self.builder, k, self.constant(-LN_2_LOW), r)
        bits = lane_type(I64, self.width)
        exponent = self.builder.shl(
            self.builder.bitcast(shifted, bits), splat(self.builder, ir.Constant(I64, 52), self.width)
        )
        power = self.builder.bitcast(self.polynomial(r, EXP), bits)
        result = self.builder.bitcast(self.builder.add(power, exponent), x.type)
        return self.builder.select(self.builder.fcmp_unordered("uno", x, x), x, result)  # NaN stays NaN

    def rsqrt(self, x: ir.Value) -> ir.Value:
        root = self.builder.module.declare_intrinsic("llvm.sqrt", [x.type])
        return self.divide(self.constant(1.0), self.builder.call(root, [x]))

    def total(self, x: ir.Value) -> ir.Value:
        """The sum of the lanes, halves first so that it takes log(width) steps."""
        width = self.width
        while width > 1:
            width //= 2
            halves = [
                self.builder.shuffle_vector(
                    x,
                    x,
                    ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(s, s + width))),
                )
                for s in (0, width)
            ]
            x = self.add(*halves)
        if self.width == 1:
            return x
        return self.builder.extract_element(x, ir.Constant(ir.IntType(32), 0))
