"""What the fused kernels call from Numba that is vector code inside.

`matmul`       a register-blocked matrix product. It has no call overhead, works on blocks that are
               still in cache, and is as fast as BLAS or faster (mdlstm bench).
`copy`, `clear` a row, in vectors.
`wait_for`     the barrier between two wavefronts.
`arguments`    those of a kernel, from memory.

Pointers are Numba's `CPointer`: unlike arrays they cost no reference counting in inner loops.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.simd import I64, load, shifted, splat, store, stride


def _cast(builder: ir.IRBuilder, address: ir.Value, element: ir.Type) -> ir.Value:
    return builder.inttoptr(address, element.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def as_floats(_: Any, address: Any, zero: Any) -> Any:
    """The pointer to that address, to numbers of the type of `zero`."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _cast(builder, args[0], context.get_data_type(zero))

    return types.CPointer(zero)(types.int64, zero), build


@intrinsic  # type: ignore[untyped-decorator]
def as_integers(_: Any, address: Any) -> Any:
    """The pointer to that address, to int64."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _cast(builder, args[0], I64)

    return types.CPointer(types.int64)(types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def as_bytes(_: Any, address: Any) -> Any:
    """The pointer to that address, to uint8."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _cast(builder, args[0], ir.IntType(8))

    return types.CPointer(types.uint8)(types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def moved(_: Any, base: Any, offset: Any) -> Any:
    """The pointer `offset` numbers behind `base`."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return shifted(builder, *args)

    return base(base, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def address(_: Any, pointer: Any) -> Any:
    """Where it points."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.ptrtoint(args[0], I64)

    return types.int64(pointer), build


@intrinsic  # type: ignore[untyped-decorator]
def copy(_: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy `count` numbers."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        target, source, count = args
        position = simd.counter(builder)
        for width in simd.widths(target.type.pointee):
            with stride(builder, position, count, width) as at:
                store(
                    builder,
                    load(builder, shifted(builder, source, at), width),
                    shifted(builder, target, at),
                )
        return context.get_dummy_value()

    return types.void(target, source, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def clear(_: Any, target: Any, count: Any) -> Any:
    """Make `count` numbers 0."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        target, count = args
        element, position = target.type.pointee, simd.counter(builder)
        for width in simd.widths(element):
            with stride(builder, position, count, width) as at:
                store(
                    builder, splat(builder, ir.Constant(element, 0.0), width), shifted(builder, target, at)
                )
        return context.get_dummy_value()

    return types.void(target, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def matmul(
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
    """C = A B, or C += A B: A (rows, depth), B (depth, columns), C (rows, columns).

    A's element (i, k) is `a[i·a_row + k·a_step]`. B comes in panels of `simd.panel_width` columns:
    element (k, j) of panel p is `b[p·b_panel + k·b_step + j]`. Row i of C starts at `c[i·c_row]`.
    Whole vectors are read and written, so B and C need columns up to the next multiple of them.
    """
    element = a.dtype
    signature = types.void(
        a, types.int64, types.int64, b, types.int64, types.int64, types.int64, c, types.int64,
        types.int64, types.int64, types.boolean,
    )  # fmt: skip

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate = args
        length = simd.vector_length(element.bitwidth // 8)
        vectors = builder.sdiv(builder.add(columns, ir.Constant(I64, length - 1)), ir.Constant(I64, length))
        column = simd.counter(builder)
        for wide in range(simd.TILE_VECTORS, 0, -1):
            with stride(builder, column, vectors, wide) as first:
                panel = builder.sdiv(first, ir.Constant(I64, simd.TILE_VECTORS))
                b_here = shifted(builder, b, builder.mul(panel, b_panel))
                c_here = shifted(builder, c, builder.mul(first, ir.Constant(I64, length)))
                row = simd.counter(builder)
                high = simd.TILE_ROWS
                while high >= 1:
                    with stride(builder, row, rows, high) as top:
                        a_tile = shifted(builder, a, builder.mul(top, a_row))
                        c_tile = shifted(builder, c_here, builder.mul(top, c_row))
                        tile = _Tile(builder, high, wide, length)
                        tile.compute(
                            a_tile, a_row, a_step, b_here, b_step, depth, c_tile, c_row, accumulate
                        )
                    high //= 2
        return context.get_dummy_value()

    return signature, build


class _Tile:
    """`high` rows by `wide` vectors of a product, accumulated in registers."""

    def __init__(self, builder: ir.IRBuilder, high: int, wide: int, length: int) -> None:
        self.builder, self.high, self.wide, self.length = builder, high, wide, length

    def places(self, c: ir.Value, c_row: ir.Value) -> list[ir.Value]:
        """Pointers to the tile's vectors."""
        rows = [
            shifted(self.builder, c, self.builder.mul(c_row, ir.Constant(I64, i))) for i in range(self.high)
        ]
        return [shifted(self.builder, row, j * self.length) for row in rows for j in range(self.wide)]

    def compute(
        self,
        a: ir.Value,
        a_row: ir.Value,
        a_step: ir.Value,
        b: ir.Value,
        b_step: ir.Value,
        depth: ir.Value,
        c: ir.Value,
        c_row: ir.Value,
        accumulate: ir.Value,
    ) -> None:
        builder, places = self.builder, self.places(c, c_row)
        vector = ir.VectorType(c.type.pointee, self.length)
        a_rows = [shifted(builder, a, builder.mul(a_row, ir.Constant(I64, i))) for i in range(self.high)]
        before = builder.block
        with builder.if_then(accumulate):
            old = [load(builder, place, self.length) for place in places]
            loaded = builder.block
        start = [builder.phi(vector) for _ in places]
        for phi, value in zip(start, old, strict=True):
            phi.add_incoming(ir.Constant(vector, None), before)
            phi.add_incoming(value, loaded)

        entry, loop, done = builder.block, *(builder.append_basic_block(name) for name in ("k", "done"))
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        sums = [builder.phi(vector) for _ in places]
        b_here = shifted(builder, b, builder.mul(k, b_step))
        right = [
            load(builder, shifted(builder, b_here, j * self.length), self.length) for j in range(self.wide)
        ]
        a_here = builder.mul(k, a_step)
        news = []
        for i, a_base in enumerate(a_rows):
            left = splat(builder, builder.load(shifted(builder, a_base, a_here)), self.length)
            for j in range(self.wide):
                news.append(simd.multiply_add(builder, left, right[j], sums[i * self.wide + j]))
        k_after = builder.add(k, ir.Constant(I64, 1))
        k.add_incoming(ir.Constant(I64, 0), entry)
        k.add_incoming(k_after, loop)
        for phi, first, new in zip(sums, start, news, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", k_after, depth), loop, done)
        builder.position_at_end(done)
        for new, place in zip(news, places, strict=True):
            store(builder, new, place)


def arguments(count: int) -> Any:
    """A function for Numba: the first `count` int64 that a pointer points at, as a tuple."""

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack(_: Any, pointer: Any) -> Any:
        result = types.UniTuple(types.int64, count)

        def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            values = [builder.load(shifted(builder, args[0], place)) for place in range(count)]
            return context.make_tuple(builder, result, values)

        return result(pointer), build

    return unpack


@intrinsic  # type: ignore[untyped-decorator]
def call(_: Any, address: Any) -> Any:
    """What the C function `int f(void)` at that address returns."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), [])

    return types.int32(address), build


@intrinsic  # type: ignore[untyped-decorator]
def count_up(_: Any, counter: Any) -> Any:
    """Add one to the int64 that `counter` points at, and let others see what was written before; what it
    was."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", args[0], ir.Constant(I64, 1), "seq_cst")

    return types.int64(counter), build


@intrinsic  # type: ignore[untyped-decorator]
def _arrived(_: Any, counter: Any) -> Any:
    """The int64 that `counter` points at, and what others wrote before they added to it."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load_atomic(args[0], "acquire", 8)

    return types.int64(counter), build


if os.name == "posix":
    _give_way = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit(cache=True)  # type: ignore[untyped-decorator]
    def _give_way() -> int:
        return 0


SPINS = 4096  # some microseconds: about as long as a wavefront's threads differ


@njit(inline="always")  # type: ignore[untyped-decorator]
def wait_for(counter: Any, arrivals: int) -> None:
    """Arrive at a barrier, and leave it once `arrivals` threads in all have.

    The counter only ever grows, so the k-th barrier of m threads waits for k·m. A thread that
    waits for long lets others run: one of them may need this core to arrive.
    """
    count_up(counter)
    spins = 0
    while _arrived(counter) < arrivals:
        spins += 1
        if spins > SPINS:
            _give_way()
