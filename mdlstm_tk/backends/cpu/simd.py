"""Vectors in LLVM: the machine's registers, pointers, and loops over vectors.

Numba leaves it to LLVM to vectorise a loop. With a dozen arrays that may overlap, or 16 units per row, LLVM
does not. So the inner loops are written as vector instructions with llvmlite, which Numba depends on.

Notation: a vector has `lanes` elements; float32 or float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config
from numba.core import cgutils

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
