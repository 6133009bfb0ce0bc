"""A register-blocked matrix product for Numba, and the weights of a sweep as it reads them.

It has no call overhead, works on blocks that are still in cache, and is as fast as BLAS or faster
(`benchmarks/bench.py`).

Notation as in `mdlstm_tk.backends.cpu.kernels`: w_cat is (U_1 | … | U_D | W | b)ᵀ, (K, G·n), and
    A (M, K), B (K, N), C (M, N)
    NR        columns of a panel of B, `simd.panel_width`
    tile      `TILE_ROWS` rows by `TILE_VECTORS` vectors of C, accumulated in registers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.intrinsics import add, clear, copy, pointer_to, ptr_add
from mdlstm_tk.backends.cpu.records import load_arrays, load_layout
from mdlstm_tk.backends.cpu.simd import I64, Pointer, Vector, vector_loop

ZERO: Any = None  # 0 in the dtype; each compiled version has its own value
RUN = 16  # numbers that are packed one after another: a cache line of float32


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
    pointers = pointer_to(ZERO, a), pointer_to(ZERO, b), pointer_to(ZERO, c)
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
                right = [b_columns.at(j * lanes) for j in range(tile_vectors)]
                row = simd.counter(builder)
                tile_rows = simd.TILE_ROWS
                while tile_rows >= 1:
                    with vector_loop(builder, row, rows, tile_rows) as top:
                        a_top, c_top = a.row(a_row, top), c_columns.row(c_row, top)
                        left = [a_top.row(a_row, i) for i in range(tile_rows)]
                        c_rows = [c_top.row(c_row, i) for i in range(tile_rows)]
                        targets = [c_i.at(j * lanes) for c_i in c_rows for j in range(tile_vectors)]
                        _tile((left, a_step), (right, b_step), depth, targets, adds, lanes)
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


def pack(arrays_address, layout_address):  # type: ignore[no-untyped-def]
    """Write w_cat in panels to `Arrays.weights`. The arguments are addresses of `Arrays` and `Layout`."""
    arrays, layout = load_arrays(arrays_address), load_layout(layout_address)
    panel, gate_dim, channels = layout.panel, layout.gate_dim, layout.channels
    units = layout.units
    target, b = pointer_to(ZERO, arrays.weights), pointer_to(ZERO, arrays.bias)
    # The weights of h along each axis, then those of x, are rows for the columns of w_cat.
    parts = layout.ndim + 1 if layout.recurrent else 1
    for direction in range(layout.dirs):
        for first in range(0, gate_dim, panel):
            count = min(panel, gate_dim - first)
            if count < panel:
                clear(target, layout.depth * panel)
            for part in range(parts):
                if part < parts - 1:
                    length, row = units, (direction * layout.ndim + part) * gate_dim + first
                    source = ptr_add(pointer_to(ZERO, arrays.weight_hh), row * length)
                else:
                    length, row = channels, direction * gate_dim + first
                    source = ptr_add(pointer_to(ZERO, arrays.weight_ih), row * length)
                for begin in range(0, length, RUN):
                    for j in range(count):
                        for k in range(begin, min(begin + RUN, length)):
                            target[k * panel + j] = source[j * length + k]
                target = ptr_add(target, length * panel)
            for j in range(count):
                target[j] = b[direction * gate_dim + first + j] if arrays.bias else ZERO
            target = ptr_add(target, panel)


def pack_transposed(arrays_address, layout_address):  # type: ignore[no-untyped-def]
    """Write the first `Layout.columns` columns of w_catᵀ, which leave out b, to `Arrays.weights_t`."""
    arrays, layout = load_arrays(arrays_address), load_layout(layout_address)
    panel, gate_dim, channels = layout.panel, layout.gate_dim, layout.channels
    hidden_dim, units = layout.hidden_dim, layout.units
    target = pointer_to(ZERO, arrays.weights_t)
    w_hh, w_ih = pointer_to(ZERO, arrays.weight_hh), pointer_to(ZERO, arrays.weight_ih)
    for direction in range(layout.dirs):
        for first in range(0, layout.columns, panel):
            for k in range(gate_dim):
                j = 0
                while j < panel:  # runs of columns that are contiguous in the weights, too
                    column, to = first + j, ptr_add(target, j)
                    count = panel - j
                    if column < hidden_dim:
                        d, unit = divmod(column, units)
                        count = min(count, units - unit)
                        row = (direction * layout.ndim + d) * gate_dim + k
                        copy(to, ptr_add(w_hh, row * units + unit), count)
                    elif column < layout.columns:
                        count = min(count, layout.columns - column)
                        row = direction * gate_dim + k
                        copy(to, ptr_add(w_ih, row * channels + column - hidden_dim), count)
                    else:
                        clear(to, count)
                    j += count
                target = ptr_add(target, panel)


def unpack(arrays_address, layout_address):  # type: ignore[no-untyped-def]
    """Write the gradients of weights and parameters from their sums, all of a direction together."""
    arrays, layout = load_arrays(arrays_address), load_layout(layout_address)
    gate_dim, channels, units = layout.gate_dim, layout.channels, layout.units
    sums, of_all = pointer_to(ZERO, arrays.sums), layout.dirs * layout.sums_size
    for index in range(1, layout.sum_count):
        add(sums, ptr_add(sums, index * of_all), of_all)
    bias, parameters = pointer_to(ZERO, arrays.dbias), pointer_to(ZERO, arrays.dparameters)
    parts = layout.ndim + 1 if layout.recurrent else 1  # as in `pack`
    for direction in range(layout.dirs):
        source = ptr_add(sums, direction * layout.sums_size)
        for part in range(parts):
            if part < parts - 1:
                length, row = units, (direction * layout.ndim + part) * gate_dim
                target = ptr_add(pointer_to(ZERO, arrays.dweight_hh), row * length)
            else:
                length, row = channels, direction * gate_dim
                target = ptr_add(pointer_to(ZERO, arrays.dweight_ih), row * length)
            for first in range(0, gate_dim, RUN):
                for k in range(length):
                    for j in range(first, min(first + RUN, gate_dim)):
                        target[j * length + k] = source[k * layout.padded + j]
            source = ptr_add(source, length * layout.padded)
        if arrays.dbias:
            copy(ptr_add(bias, direction * gate_dim), source, gate_dim)
        source = ptr_add(source, layout.padded)
        copy(ptr_add(parameters, direction * layout.parameter_count), source, layout.parameter_count)
