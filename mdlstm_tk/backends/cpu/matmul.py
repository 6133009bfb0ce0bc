"""A register-blocked matrix product for Numba.

It has no call overhead, works on blocks that are still in cache, and is as fast as BLAS or faster
(`mdlstm bench`).

Notation
    A (M, K), B (K, N), C (M, N)
    NR        columns of a panel of B, `simd.panel_width`
    tile      `TILE_ROWS` rows by `TILE_VECTORS` vectors of C, accumulated in registers
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.intrinsics import float_ptr
from mdlstm_tk.backends.cpu.simd import I64, Pointer, splat, vector_loop
from mdlstm_tk.backends.cpu.vectors import Vector

ZERO: Any = None  # 0 in the dtype; each compiled version has its own value


def matmul(  # type: ignore[no-untyped-def]
    a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate
):
    """C = A B, or C += A B. Compiled as a C function; a, b and c are addresses.

    Whole vectors are read and written, so B and C need columns up to the next multiple of the vector
    length.

    Args:
        a, a_row, a_step: element (i, k) of A is `a[i·a_row + k·a_step]`.
        b, b_panel, b_step: B comes in panels of NR columns: element (k, j) of panel p is
            `b[p·b_panel + k·b_step + j]`.
        depth: K.
        c, c_row: row i of C starts at `c[i·c_row]`.
        rows, columns: M, N.
        accumulate: 1 to add to C, 0 to overwrite it.
    """
    pointers = float_ptr(a, ZERO), float_ptr(b, ZERO), float_ptr(c, ZERO)
    _matmul(pointers, (a_row, a_step, b_panel, b_step, depth, c_row, rows, columns, accumulate))


@intrinsic  # type: ignore[untyped-decorator]
def _matmul(_: Any, pointers: Any, numbers: Any) -> Any:
    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element = context.get_data_type(pointers.dtype.dtype)
        a, b, c = (Pointer(builder, builder.extract_value(args[0], k), element) for k in range(3))
        a_row, a_step, b_panel, b_step, depth, c_row, rows, columns, accumulate = (
            builder.extract_value(args[1], k) for k in range(len(numbers))
        )
        adds = builder.icmp_signed("!=", accumulate, ir.Constant(I64, 0))
        lanes = simd.vector_length(simd.itemsize(element))
        vectors = builder.sdiv(builder.add(columns, ir.Constant(I64, lanes - 1)), ir.Constant(I64, lanes))
        column = simd.counter(builder)
        for tile_vectors in range(simd.TILE_VECTORS, 0, -1):
            with vector_loop(builder, column, vectors, tile_vectors) as first:
                panel = builder.sdiv(first, ir.Constant(I64, simd.TILE_VECTORS))
                b_columns = b.row(b_panel, panel)
                c_columns = c.row(ir.Constant(I64, lanes), first)
                row = simd.counter(builder)
                tile_rows = simd.TILE_ROWS
                while tile_rows >= 1:
                    with vector_loop(builder, row, rows, tile_rows) as top:
                        tile = _Tile(builder, tile_rows, tile_vectors, lanes)
                        left, target = a.row(a_row, top), c_columns.row(c_row, top)
                        tile.compute(left, a_row, a_step, b_columns, b_step, depth, target, c_row, adds)
                    tile_rows //= 2
        return context.get_dummy_value()

    return types.void(pointers, numbers), build


class _Tile:
    """A tile of C."""

    def __init__(self, builder: ir.IRBuilder, rows: int, vectors: int, lanes: int) -> None:
        self.builder, self.rows, self.vectors, self.lanes = builder, rows, vectors, lanes

    def compute(
        self,
        a: Pointer,
        a_row: ir.Value,
        a_step: ir.Value,
        b: Pointer,
        b_step: ir.Value,
        depth: ir.Value,
        c: Pointer,
        c_row: ir.Value,
        accumulate: ir.Value,
    ) -> None:
        builder, lanes = self.builder, self.lanes
        c_rows = [c.row(c_row, i) for i in range(self.rows)]
        targets = [row.at(j * lanes) for row in c_rows for j in range(self.vectors)]
        a_rows = [a.row(a_row, i) for i in range(self.rows)]
        zero = ir.Constant(ir.VectorType(a.element, lanes), None)

        entry, loop, done = builder.block, *(builder.append_basic_block(name) for name in ("k", "done"))
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        sums = [builder.phi(zero.type) for _ in targets]
        b_k = b.row(b_step, k)
        right = [Vector(builder, b_k.at(j * lanes).load(lanes)) for j in range(self.vectors)]
        a_offset = builder.mul(k, a_step)
        left = [Vector(builder, splat(builder, row.at(a_offset).load(), lanes)) for row in a_rows]
        products = [a_i * b_j for a_i in left for b_j in right]
        new_sums = [(x + Vector(builder, y)).value for x, y in zip(products, sums, strict=True)]
        k_next = builder.add(k, ir.Constant(I64, 1))
        k.add_incoming(ir.Constant(I64, 0), entry)
        k.add_incoming(k_next, loop)
        for phi, new in zip(sums, new_sums, strict=True):
            phi.add_incoming(zero, entry)
            phi.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, done)
        builder.position_at_end(done)
        with builder.if_else(accumulate) as (then, otherwise):
            with then:
                # C is added last: a sum that started from it would be rounded to its size at every step.
                for target, new in zip(targets, new_sums, strict=True):
                    target.store(builder.fadd(target.load(lanes), new))
            with otherwise:
                for target, new in zip(targets, new_sums, strict=True):
                    target.store(new)
