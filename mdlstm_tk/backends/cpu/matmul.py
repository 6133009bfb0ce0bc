"""A register-blocked matrix product for Numba.

It has no call overhead, works on blocks that are still in cache, and is as fast as BLAS or faster
(`benchmarks/bench.py`).

    A (M, K), B (K, N), C (M, N)
    tile      `TILE_ROWS` rows by `TILE_VECTORS` vectors of C, accumulated in registers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.intrinsics import pointer_to
from mdlstm_tk.backends.cpu.simd import I64, Pointer, Vector, vector_loop

ZERO: Any = None  # 0 in the dtype; each compiled version has its own value


def matmul(  # type: ignore[no-untyped-def]
    a, a_row, a_step, b, b_row, depth, c, c_row, rows, columns, accumulate
):
    """C = A B, or C += A B. Compiled as a C function; a, b and c are addresses.

    Whole vectors are read and written, so B and C need columns up to the next multiple of the vector
    length.

    Args:
        a, a_row, a_step: element (i, k) of A is `a[i·a_row + k·a_step]`.
        b, b_row: row k of B starts at `b[k·b_row]`.
        depth: K.
        c, c_row: row i of C starts at `c[i·c_row]`.
        rows, columns: M, N.
        accumulate: 1 to add to C, 0 to overwrite it.
    """
    pointers = pointer_to(ZERO, a), pointer_to(ZERO, b), pointer_to(ZERO, c)
    _matmul(pointers, (a_row, a_step, b_row, depth, c_row, rows, columns, accumulate))


@intrinsic  # type: ignore[untyped-decorator]
def _matmul(_: Any, pointers: Any, numbers: Any) -> Any:
    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element = context.get_data_type(pointers.dtype.dtype)
        a, b, c = (Pointer(builder, builder.extract_value(args[0], k), element) for k in range(3))
        a_row, a_step, b_row, depth, c_row, rows, columns, accumulate = (
            builder.extract_value(args[1], k) for k in range(len(numbers))
        )
        adds = builder.icmp_signed("!=", accumulate, ir.Constant(I64, 0))
        lanes = simd.vector_length(simd.itemsize(element))
        vectors = builder.sdiv(builder.add(columns, ir.Constant(I64, lanes - 1)), ir.Constant(I64, lanes))
        column = simd.counter(builder)
        for tile_vectors in range(simd.TILE_VECTORS, 0, -1):
            with vector_loop(builder, column, vectors, tile_vectors) as first:
                b_columns, c_columns = (m.row(ir.Constant(I64, lanes), first) for m in (b, c))
                right = [b_columns.at(j * lanes) for j in range(tile_vectors)]
                row = simd.counter(builder)
                tile_rows = simd.TILE_ROWS
                while tile_rows >= 1:
                    with vector_loop(builder, row, rows, tile_rows) as top:
                        a_top, c_top = a.row(a_row, top), c_columns.row(c_row, top)
                        left = [a_top.row(a_row, i) for i in range(tile_rows)]
                        c_rows = [c_top.row(c_row, i) for i in range(tile_rows)]
                        targets = [c_i.at(j * lanes) for c_i in c_rows for j in range(tile_vectors)]
                        _tile((left, a_step), (right, b_row), depth, targets, adds, lanes)
                    tile_rows //= 2
        return context.get_dummy_value()

    return types.void(pointers, numbers), build


Strided = tuple[Sequence[Pointer], ir.Value]  # where rows, or columns, begin, and from one k to the next


def _tile(
    a: Strided, b: Strided, depth: ir.Value, targets: Sequence[Pointer], accumulate: ir.Value, lanes: int
) -> None:
    """Code of one tile of C, whose vectors are at `targets`, row after row."""
    (a_rows, a_step), (b_columns, b_step) = a, b
    builder = targets[0].builder
    zero = ir.Constant(ir.VectorType(targets[0].element, lanes), None)

    entry, loop, done = builder.block, *(builder.append_basic_block(name) for name in ("k", "done"))
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(I64)
    sums = [builder.phi(zero.type) for _ in targets]
    right = [column.row(b_step, k).load(lanes) for column in b_columns]
    left = [row.row(a_step, k).load().splat(lanes) for row in a_rows]
    products = [a_i * b_j for a_i in left for b_j in right]
    new_sums = [x + Vector(builder, y) for x, y in zip(products, sums, strict=True)]
    k_next = builder.add(k, ir.Constant(I64, 1))
    k.add_incoming(ir.Constant(I64, 0), entry)
    k.add_incoming(k_next, loop)
    for phi, new in zip(sums, new_sums, strict=True):
        phi.add_incoming(zero, entry)
        phi.add_incoming(new.value, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, done)
    builder.position_at_end(done)
    with builder.if_else(accumulate) as (then, otherwise):
        with then:
            # C is added last: a sum that started from it would be rounded to its size at every step.
            for target, new in zip(targets, new_sums, strict=True):
                target.store(target.load(lanes) + new)
        with otherwise:
            for target, new in zip(targets, new_sums, strict=True):
                target.store(new)
