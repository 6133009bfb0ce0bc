"""A register-blocked matrix product for Numba.

It has no call overhead, works on blocks that are still in cache, and is as fast as BLAS or faster
(`mdlstm bench`).

Notation
    A (M, K), B (K, N), C (M, N)
    NR        columns of a panel of B, `simd.panel_width`
    tile      `tile_rows` rows by `tile_vectors` vectors of C, accumulated in registers
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.jit import jit
from mdlstm_tk.backends.cpu.simd import I64, Pointer, splat, vector_loop


@intrinsic  # type: ignore[untyped-decorator]
def _matmul(
    _: Any,
    a: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_panel: Any,
    b_step: Any,
    depth: Any,
    c: Any,
    c_row: Any,
    rows: Any,
    columns: Any,
    accumulate: Any,
) -> Any:
    signature = types.void(
        a, types.int64, types.int64, b, types.int64, types.int64, types.int64, c, types.int64,
        types.int64, types.int64, types.boolean,
    )  # fmt: skip

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element = context.get_data_type(a.dtype)
        a_ptr, b_ptr, c_ptr = (Pointer(builder, args[index], element) for index in (0, 3, 7))
        a_row, a_step, b_panel, b_step, depth, c_row, rows, columns, accumulate = (
            args[index] for index in (1, 2, 4, 5, 6, 8, 9, 10, 11)
        )
        lanes = simd.vector_length(simd.itemsize(element))
        vectors = builder.sdiv(builder.add(columns, ir.Constant(I64, lanes - 1)), ir.Constant(I64, lanes))
        column = simd.counter(builder)
        for tile_vectors in range(simd.TILE_VECTORS, 0, -1):
            with vector_loop(builder, column, vectors, tile_vectors) as first:
                panel = builder.sdiv(first, ir.Constant(I64, simd.TILE_VECTORS))
                b_columns = b_ptr.row(b_panel, panel)
                c_columns = c_ptr.row(ir.Constant(I64, lanes), first)
                row = simd.counter(builder)
                tile_rows = simd.TILE_ROWS
                while tile_rows >= 1:
                    with vector_loop(builder, row, rows, tile_rows) as top:
                        tile = _Tile(builder, tile_rows, tile_vectors, lanes)
                        tile.compute(
                            a_ptr.row(a_row, top), a_row, a_step, b_columns, b_step, depth,
                            c_columns.row(c_row, top), c_row, accumulate,
                        )  # fmt: skip
                    tile_rows //= 2
        return context.get_dummy_value()

    return signature, build


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
        right = [b_k.at(j * lanes).load(lanes) for j in range(self.vectors)]
        a_offset = builder.mul(k, a_step)
        new_sums = []
        for i, row in enumerate(a_rows):
            left = splat(builder, row.at(a_offset).load(), lanes)
            for j in range(self.vectors):
                new_sums.append(simd.multiply_add(builder, left, right[j], sums[i * self.vectors + j]))
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


@jit
def matmul(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate):  # type: ignore[no-untyped-def]
    """C = A B, or C += A B if `accumulate`, as a function, so that it is compiled once.

    A's element (i, k) is `a[i·a_row + k·a_step]`. B comes in panels of NR columns: element (k, j) of panel
    p is `b[p·b_panel + k·b_step + j]`. Row i of C starts at `c[i·c_row]`. Whole vectors are read and
    written, so B and C need columns up to the next multiple of the vector length.
    """
    _matmul(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate)
