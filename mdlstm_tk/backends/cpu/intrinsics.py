"""Functions that the kernels call from Numba and that are written in LLVM.

Arrays come as addresses and become Numba's `CPointer`: unlike arrays, pointers cost no reference counting
in inner loops.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.simd import I64, Pointer, splat, vector_loop


@intrinsic  # type: ignore[untyped-decorator]
def as_float_ptr(_: Any, address: Any, dtype_tag: Any) -> Any:
    """The address as a pointer to numbers of the type of `dtype_tag`."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype_tag)(types.int64, dtype_tag), build


@intrinsic  # type: ignore[untyped-decorator]
def as_int_ptr(_: Any, address: Any) -> Any:
    """The address as a pointer to int64."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def as_int32_ptr(_: Any, address: Any) -> Any:
    """The address as a pointer to int32."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def ptr_add(_: Any, base: Any, offset: Any) -> Any:
    """The pointer `offset` elements after `base`."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return Pointer(builder, args[0], context.get_data_type(base.dtype)).at(args[1]).value

    return base(base, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def ptr_to_int(_: Any, pointer: Any) -> Any:
    """The address that a pointer holds."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.ptrtoint(args[0], I64)

    return types.int64(pointer), build


@intrinsic  # type: ignore[untyped-decorator]
def copy(_: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy `count` numbers."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element, position = context.get_data_type(target.dtype), simd.counter(builder)
        to, origin = Pointer(builder, args[0], element), Pointer(builder, args[1], element)
        for lanes in simd.lane_counts(element):
            with vector_loop(builder, position, args[2], lanes) as index:
                to.at(index).store(origin.at(index).load(lanes))
        return context.get_dummy_value()

    return types.void(target, source, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def add(_: Any, target: Any, source: Any, count: Any) -> Any:
    """Add `count` numbers at `source` to those at `target`."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element, position = context.get_data_type(target.dtype), simd.counter(builder)
        to, origin = Pointer(builder, args[0], element), Pointer(builder, args[1], element)
        for lanes in simd.lane_counts(element):
            with vector_loop(builder, position, args[2], lanes) as index:
                to.at(index).store(builder.fadd(to.at(index).load(lanes), origin.at(index).load(lanes)))
        return context.get_dummy_value()

    return types.void(target, source, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def clear(_: Any, target: Any, count: Any) -> Any:
    """Set `count` numbers to 0."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element, position = context.get_data_type(target.dtype), simd.counter(builder)
        to = Pointer(builder, args[0], element)
        for lanes in simd.lane_counts(element):
            with vector_loop(builder, position, args[1], lanes) as index:
                to.at(index).store(splat(builder, ir.Constant(element, 0.0), lanes))
        return context.get_dummy_value()

    return types.void(target, types.int64), build


def load_arguments(count: int) -> Any:
    """A function for Numba: the first `count` int64 at a pointer, as a tuple."""

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack(_: Any, pointer: Any) -> Any:
        result = types.UniTuple(types.int64, count)

        def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            words = Pointer(builder, args[0], I64)
            return context.make_tuple(builder, result, [words.at(index).load() for index in range(count)])

        return result(pointer), build

    return unpack


@intrinsic  # type: ignore[untyped-decorator]
def call_address(_: Any, address: Any) -> Any:
    """Call the C function `int f(void)` at an address."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), [])

    return types.int32(address), build


@intrinsic  # type: ignore[untyped-decorator]
def atomic_fetch_add(_: Any, counter: Any) -> Any:
    """Add 1 to the int64 at `counter` and return its value before; earlier writes become visible to
    others."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", args[0], ir.Constant(I64, 1), "seq_cst")

    return types.int64(counter), build


@intrinsic  # type: ignore[untyped-decorator]
def _atomic_load(_: Any, counter: Any) -> Any:
    """The int64 at `counter`, and with it what others wrote before they added to it."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load_atomic(args[0], "acquire", 8, typ=I64)

    return types.int64(counter), build


@intrinsic  # type: ignore[untyped-decorator]
def _pause(_: Any) -> Any:
    """Tell the core that this is a spin loop, where its instruction set has a way to say so."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        if platform.machine().lower() in ("x86_64", "amd64"):
            void = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=void), [])
        return context.get_dummy_value()

    return types.void(), build


if os.name == "posix":
    _yield_cpu = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit(cache=True)  # type: ignore[untyped-decorator]
    def _yield_cpu() -> int:
        return 0


SPINS = 4096  # some microseconds, which is about how far the threads of a wavefront drift apart


@njit(inline="always")  # type: ignore[untyped-decorator]
def barrier_wait(counter: Any, arrivals: int) -> None:
    """Arrive at a barrier, and leave it after `arrivals` threads in total have arrived.

    The counter only grows, so the k-th barrier of m threads waits for k·m. A thread that waits for long
    yields its core: another thread may need it in order to arrive.
    """
    atomic_fetch_add(counter)
    spins = 0
    while _atomic_load(counter) < arrivals:
        spins += 1
        _pause()
        if spins > SPINS:
            _yield_cpu()
