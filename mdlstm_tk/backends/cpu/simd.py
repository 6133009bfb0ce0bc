"""Vectors in LLVM: pointers, loops over vectors, and elementwise functions.

Numba leaves it to LLVM to vectorise a loop. With a dozen arrays that may overlap, or 16 units per row, LLVM
does not. So the inner loops are written as vector instructions with llvmlite, which Numba depends on;
`mdlstm_tk.backends.cpu.intrinsics` and `codegen` make them callable from Numba.

Notation: a vector has `lanes` elements; float32 or float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config
from numba.core import cgutils

I64 = ir.IntType(64)
CONTRACT = ("contract",)  # a product and a sum may become one fused multiply-add; nothing else changes


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


def panel_width(itemsize: int) -> int:
    """NR, the number of columns of the right operand that `matmul` processes together."""
    return TILE_VECTORS * vector_length(itemsize)


def lane_counts(element: ir.Type) -> tuple[int, ...]:
    """The vector lengths in which a row is processed: full vectors first, the rest in ever shorter ones."""
    longest = vector_length(itemsize(element))
    return (longest, 4, 1) if longest > 4 else (longest, 1)


def itemsize(element: ir.Type) -> int:
    return 8 if isinstance(element, ir.DoubleType) else 4


def lane_type(element: ir.Type, lanes: int) -> ir.Type:
    return element if lanes == 1 else ir.VectorType(element, lanes)


def splat(builder: ir.IRBuilder, number: ir.Value, lanes: int) -> ir.Value:
    """A vector of `lanes` copies of a number."""
    if lanes == 1:
        return number
    empty = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))


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

    def at(self, *offsets: ir.Value | int) -> Pointer:
        """The pointer to the element that many elements further on."""
        value = self.value
        for offset in offsets:
            index = ir.Constant(I64, offset) if isinstance(offset, int) else offset
            value = self.builder.gep(value, [index], source_etype=self.element)
        return Pointer(self.builder, value, self.element)

    def row(self, stride: ir.Value, index: ir.Value | int) -> Pointer:
        """The pointer to row `index` of rows that lie `stride` elements apart."""
        index = ir.Constant(I64, index) if isinstance(index, int) else index
        return self.at(self.builder.mul(stride, index))

    def load(self, lanes: int = 1) -> ir.Value:
        """The elements from here on as a vector."""
        vector = lane_type(self.element, lanes)
        pointer = self.builder.bitcast(self.value, vector.as_pointer())
        return self.builder.load(pointer, align=itemsize(self.element), typ=vector)

    def store(self, vector: ir.Value) -> None:
        pointer = self.builder.bitcast(self.value, vector.type.as_pointer())
        self.builder.store(vector, pointer, align=itemsize(self.element))


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return builder.fadd(builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)


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


def counter(builder: ir.IRBuilder) -> ir.Value:
    """A zero in memory; LLVM turns it into a register."""
    position = cgutils.alloca_once(builder, I64)
    builder.store(ir.Constant(I64, 0), position)
    return position


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
    """Arithmetic on vectors with a given element type and number of lanes."""

    def __init__(self, builder: ir.IRBuilder, element: ir.Type, lanes: int) -> None:
        self.builder, self.element, self.lanes = builder, element, lanes
        self.type = lane_type(element, lanes)

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

    def clamp(self, a: ir.Value, bound: float) -> ir.Value:
        """a limited to [−bound, bound]; NaN stays NaN."""
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
            # 1 − 2 / (e^2x + 1), which rounds to 1 from x = 20 on.
            double = self.exp(self.multiply(self.clamp(x, 20.0), self.constant(2.0)))
            quotient = self.divide(self.constant(2.0), self.add(double, self.constant(1.0)))
            return self.subtract(self.constant(1.0), quotient)
        inner = self.clamp(x, TANH_BOUND)
        square = self.multiply(inner, inner)
        numerator = self.multiply(inner, self.polynomial(square, TANH_NUMERATOR))
        quotient = self.divide(numerator, self.polynomial(square, TANH_DENOMINATOR))
        return self.saturate(x, quotient, TANH_ONE)

    def saturate(self, x: ir.Value, result: ir.Value, bound: float) -> ir.Value:
        """`result`, but exactly ±1 where |x| > bound, so that the slope 1 − tanh² is exactly 0 there and a
        very large c passes no gradient on."""
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
        bits = lane_type(I64, self.lanes)
        exponent = self.builder.shl(
            self.builder.bitcast(shifted, bits), splat(self.builder, ir.Constant(I64, 52), self.lanes)
        )
        power = self.builder.bitcast(self.polynomial(r, EXP), bits)
        result = self.builder.bitcast(self.builder.add(power, exponent), x.type)
        return self.builder.select(self.builder.fcmp_unordered("uno", x, x), x, result)  # NaN stays NaN

    def rsqrt(self, x: ir.Value) -> ir.Value:
        root = self.builder.module.declare_intrinsic("llvm.sqrt", [x.type])
        return self.divide(self.constant(1.0), self.builder.call(root, [x]))

    def total(self, x: ir.Value) -> ir.Value:
        """The sum of the lanes, in log₂(lanes) steps."""
        lanes = self.lanes
        while lanes > 1:
            lanes //= 2
            halves = [
                self.builder.shuffle_vector(
                    x,
                    x,
                    ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(s, s + lanes))),
                )
                for s in (0, lanes)
            ]
            x = self.add(*halves)
        if self.lanes == 1:
            return x
        return self.builder.extract_element(x, ir.Constant(ir.IntType(32), 0))
