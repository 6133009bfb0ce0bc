"""Functions that kernels call from Numba and that are written in LLVM.

Arrays come as addresses and become Numba's `CPointer`: unlike arrays, pointers cost no reference counting
in inner loops. Kernels are C functions of int64, which any thread may call without Python's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.simd import I64, Pointer, vector_loop

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}  # of all that Numba compiles
CACHE_LINE = 64  # bytes
INT32, INT64 = np.int32(0), np.int64(0)  # as types for `pointer_to`


def jit(function: Callable[..., Any]) -> Any:
    """Compile for Numba as a part of the function that calls it."""
    return njit(**OPTIONS)(function)


def record_loader(record: type[tuple[int, ...]]) -> Any:
    """A function for Numba: the NamedTuple of int64 that lies at an address."""

    @intrinsic  # type: ignore[untyped-decorator]
    def load(_: Any, address: Any) -> Any:
        fields: Sequence[str] = record._fields  # type: ignore[attr-defined]
        result = types.NamedUniTuple(types.int64, len(fields), record)

        def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            words = Pointer(builder, builder.inttoptr(args[0], I64.as_pointer()), I64)
            values = [words.at(index).load().value for index in range(len(fields))]
            return context.make_tuple(builder, result, values)

        return result(types.int64), build

    return load


@intrinsic  # type: ignore[untyped-decorator]
def pointer_to(_: Any, zero: Any, address: Any) -> Any:
    """The address as a pointer to numbers of the type of `zero`."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return types.CPointer(zero)(zero, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def address_of(_: Any, pointer: Any) -> Any:
    """The address that a pointer holds."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.ptrtoint(args[0], I64)

    return types.int64(pointer), build


@intrinsic  # type: ignore[untyped-decorator]
def ptr_add(_: Any, base: Any, offset: Any) -> Any:
    """The pointer `offset` elements after `base`."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return Pointer(builder, args[0], context.get_data_type(base.dtype)).at(args[1]).value

    return base(base, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def call(_: Any, address: Any, arguments: Any) -> Any:
    """Call the C function at an address, which takes int64 and returns nothing."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        function = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
        words = [builder.extract_value(args[1], index) for index in range(len(arguments))]
        builder.call(builder.inttoptr(args[0], function.as_pointer()), words)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), build


@jit
def copy(target, source, count):  # type: ignore[no-untyped-def]
    """Copy `count` numbers."""
    for k in range(count):
        target[k] = source[k]


@jit
def add(target, source, count):  # type: ignore[no-untyped-def]
    """Add `count` numbers at `source` to those at `target`."""
    for k in range(count):
        target[k] += source[k]


@jit
def clear(target, count):  # type: ignore[no-untyped-def]
    """Set `count` numbers to 0."""
    for k in range(count):
        target[k] = 0


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_: Any, source: Any, count: Any) -> Any:
    """Begin to load `count` numbers into the cache."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element, byte = context.get_data_type(source.dtype), ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        instruction = builder.module.declare_intrinsic("llvm.prefetch.p0i8", fnty=function)
        step = CACHE_LINE // simd.itemsize(element)
        with vector_loop(builder, simd.counter(builder), args[1], step) as index:
            pointer = builder.bitcast(Pointer(builder, args[0], element).at(index).value, byte)
            # Read, into the second level: a block is more than the first holds. Data, not instructions.
            builder.call(instruction, [pointer, *(ir.Constant(word, value) for value in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(source, types.int64), build
