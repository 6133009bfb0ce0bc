"""From the graph of a cell (`mdlstm_tk.cells.ir`) to vector code that Numba can call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.simd import I64, Lanes, Pointer, splat, vector_loop
from mdlstm_tk.cells.ir import Kernel, Value


def cell_function(kernel: Kernel, slots: tuple[str, ...]) -> Callable[..., None]:
    """A function for Numba that runs `kernel` on one row (position, sample).

    It takes the number of units, scratch memory for `len(kernel.spilled)` rows of them, and for each of
    `slots` a pointer: to its first row, or to a table of int64 with the address of each row.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def run(_: Any, units: Any, scratch: Any, bases: Any) -> Any:
        def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            values = cgutils.unpack_tuple(builder, args[2], len(slots))
            pointers = {
                slot: Pointer(builder, value, context.get_data_type(base.dtype))
                for slot, value, base in zip(slots, values, bases, strict=True)
            }
            element = context.get_data_type(scratch.dtype)
            _LoopBuilder(kernel, args[0], Pointer(builder, args[1], element), pointers).build()
            return context.get_dummy_value()

        return types.void(types.int64, scratch, bases), build

    return run  # type: ignore[no-any-return]


class _LoopBuilder:
    """Builds the loops of a kernel: one per level, each in full vectors first, then in ever shorter ones.

    Args:
        kernel: what is computed.
        units: n.
        scratch: memory for the spilled values.
        slots: for each slot its rows, or a table of their addresses.
    """

    def __init__(
        self, kernel: Kernel, units: ir.Value, scratch: Pointer, slots: dict[str, Pointer]
    ) -> None:
        self.builder, self.kernel, self.units = scratch.builder, kernel, units
        self.element = scratch.element
        used = [(value.slot, value.row) for value in kernel.values if value.op == "load"]
        used += [(store.slot, store.row) for store in kernel.stores]
        self.rows = {(slot, row): self._row(slots[slot], row) for slot, row in used}
        self.spills = {id(value): scratch.row(units, index) for index, value in enumerate(kernel.spilled)}
        self.uniforms: dict[int, ir.Value] = {}  # scalars
        self.sums: dict[int, ir.Value] = {}  # by the id of a mean, where its sum is added up

    def build(self) -> None:
        count = self.builder.sitofp(self.units, self.element)
        scalar = Lanes(self.builder, self.element, 1)
        for level in range(self.kernel.levels):
            for value in self.kernel.values:
                if value.uniform and value.level == level:
                    self.uniforms[id(value)] = self._uniform(value, scalar, count)
                elif value.op == "mean" and value.level == level + 1:
                    self.sums[id(value)] = cgutils.alloca_once(self.builder, self.element)
                    self.builder.store(ir.Constant(self.element, 0.0), self.sums[id(value)])
            self._loops(level)

    def _uniform(self, value: Value, scalar: Lanes, count: ir.Value) -> ir.Value:
        if value.op == "mean":
            total = self.builder.load(self.sums[id(value)], typ=self.element)
            return self.builder.fdiv(total, count)
        if value.op == "constant":
            return ir.Constant(self.element, value.number)
        return getattr(scalar, value.op)(*(self.uniforms[id(arg)] for arg in value.args))

    def _loops(self, level: int) -> None:
        position = simd.counter(self.builder)
        means = [value for value in self.kernel.values if value.op == "mean" and value.level == level + 1]
        for count in simd.lane_counts(self.element):
            lanes = Lanes(self.builder, self.element, count)
            sums = [cgutils.alloca_once(self.builder, lanes.type) for _ in means]
            for total in sums:
                self.builder.store(lanes.constant(0.0), total)
            with vector_loop(self.builder, position, self.units, count) as index:
                self._body(level, lanes, index, dict(zip(map(id, means), sums, strict=True)))
            for mean, total in zip(means, sums, strict=True):
                before = self.builder.load(self.sums[id(mean)], typ=self.element)
                added = lanes.total(self.builder.load(total, typ=lanes.type))
                self.builder.store(self.builder.fadd(before, added), self.sums[id(mean)])

    def _body(self, level: int, lanes: Lanes, index: ir.Value, sums: dict[int, ir.Value]) -> None:
        """What one vector of units needs at `level`. Each store follows its value as soon as possible."""
        builder, computed = self.builder, dict[int, ir.Value]()

        def get(value: Value) -> ir.Value:
            if id(value) not in computed:
                computed[id(value)] = compute(value)
                if id(value) in self.spills and value.level == level:
                    self.spills[id(value)].at(index).store(computed[id(value)])
            return computed[id(value)]

        def compute(value: Value) -> ir.Value:
            if value.uniform:
                return splat(builder, self.uniforms[id(value)], lanes.lanes)
            if value.op == "load":
                return self.rows[value.slot, value.row].at(index).load(lanes.lanes)
            if value.level < level:
                return self.spills[id(value)].at(index).load(lanes.lanes)
            return getattr(lanes, value.op)(*(get(arg) for arg in value.args))

        for value in self.kernel.values:
            if value.level == level and not value.uniform and value.op != "load":
                get(value)
            if id(value) in sums:
                total = sums[id(value)]
                before = builder.load(total, typ=lanes.type)
                builder.store(lanes.add(before, get(value.args[0])), total)
        for store in self.kernel.stores:
            if store.value.level == level:
                target = self.rows[store.slot, store.row].at(index)
                result = get(store.value)
                target.store(lanes.add(target.load(lanes.lanes), result) if store.add else result)

    def _row(self, base: Pointer, row: int) -> Pointer:
        """The row of a slot, which is given by its rows or by a table of their addresses."""
        if base.element == I64:
            address = base.at(row).load()
            pointer = self.builder.inttoptr(address, self.element.as_pointer())
            return Pointer(self.builder, pointer, self.element)
        return base.row(self.units, row)
