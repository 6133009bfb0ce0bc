"""From the recorded equations of a cell (`trace.Kernel`) to vector code that Numba can call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.simd import I64, Lanes, load, shifted, splat, store, stride
from mdlstm_tk.cells.ir import Kernel, Value


def row_kernel(kernel: Kernel, slots: tuple[str, ...]) -> Callable[..., None]:
    """A function for Numba that runs `kernel` on one cell.

    It takes the number of units, scratch for `len(kernel.spilled)` rows of them, and for each of `slots` a
    pointer to the first of its rows, or to a table of int64: where each of them lies.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def run(_: Any, units: Any, scratch: Any, bases: Any) -> Any:
        def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            pointers = cgutils.unpack_tuple(builder, args[2], len(slots))
            bases = dict(zip(slots, pointers, strict=True))
            _Rows(builder, kernel, args[0], args[1], bases).build()
            return context.get_dummy_value()

        return types.void(types.int64, scratch, bases), build

    return run  # type: ignore[no-any-return]


class _Rows:
    """Builds the loops of a `Kernel`: one per level, each in vectors, then in ever smaller ones."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        kernel: Kernel,
        units: ir.Value,
        scratch: ir.Value,
        bases: dict[str, ir.Value],
    ) -> None:
        self.builder, self.kernel, self.units = builder, kernel, units
        self.element = scratch.type.pointee
        used = [(value.slot, value.row) for value in kernel.values if value.op == "load"]
        used += [(entry.slot, entry.row) for entry in kernel.stores]
        self.rows = {(slot, row): self._row(bases[slot], row) for slot, row in used}
        self.spills = {
            id(value): shifted(builder, scratch, builder.mul(units, ir.Constant(I64, place)))
            for place, value in enumerate(kernel.spilled)
        }
        self.uniforms: dict[int, ir.Value] = {}  # scalars
        self.means: dict[int, ir.Value] = {}  # where their sums are gathered

    def build(self) -> None:
        count = self.builder.sitofp(self.units, self.element)
        scalar = Lanes(self.builder, self.element, 1)
        for level in range(self.kernel.levels):
            for value in self.kernel.values:
                if value.uniform and value.level == level:
                    self.uniforms[id(value)] = self._uniform(value, scalar, count)
                elif value.op == "mean" and value.level == level + 1:
                    self.means[id(value)] = cgutils.alloca_once(self.builder, self.element)
                    self.builder.store(ir.Constant(self.element, 0.0), self.means[id(value)])
            self._loops(level)

    def _uniform(self, value: Value, scalar: Lanes, count: ir.Value) -> ir.Value:
        if value.op == "mean":
            return self.builder.fdiv(self.builder.load(self.means[id(value)]), count)
        if value.op == "constant":
            return ir.Constant(self.element, value.number)
        return getattr(scalar, value.op)(*(self.uniforms[id(arg)] for arg in value.args))

    def _loops(self, level: int) -> None:
        position = simd.counter(self.builder)
        for width in simd.widths(self.element):
            lanes = Lanes(self.builder, self.element, width)
            means = [v for v in self.kernel.values if v.op == "mean" and v.level == level + 1]
            sums = [cgutils.alloca_once(self.builder, lanes.type) for _ in means]
            for total in sums:
                self.builder.store(lanes.constant(0.0), total)
            with stride(self.builder, position, self.units, width) as at:
                self._body(level, lanes, at, dict(zip(map(id, means), sums, strict=True)))
            for mean, total in zip(means, sums, strict=True):
                so_far = self.builder.load(self.means[id(mean)])
                together = self.builder.fadd(so_far, lanes.total(self.builder.load(total)))
                self.builder.store(together, self.means[id(mean)])

    def _body(self, level: int, lanes: Lanes, at: ir.Value, sums: dict[int, ir.Value]) -> None:
        """What one vector of units needs at `level`: stores as soon as their value is there."""
        builder, known = self.builder, dict[int, ir.Value]()

        def get(value: Value) -> ir.Value:
            if id(value) not in known:
                known[id(value)] = compute(value)
                if id(value) in self.spills and value.level == level:
                    store(builder, known[id(value)], shifted(builder, self.spills[id(value)], at))
            return known[id(value)]

        def compute(value: Value) -> ir.Value:
            if value.uniform:
                return splat(builder, self.uniforms[id(value)], lanes.width)
            if value.op == "load":
                return load(builder, self._place(value.slot, value.row, at), lanes.width)
            if value.level < level:
                return load(builder, shifted(builder, self.spills[id(value)], at), lanes.width)
            return getattr(lanes, value.op)(*(get(arg) for arg in value.args))

        for value in self.kernel.values:
            if value.level == level and not value.uniform and value.op != "load":
                get(value)
            if id(value) in sums:
                total = sums[id(value)]
                builder.store(lanes.add(builder.load(total), get(value.args[0])), total)
        for entry in self.kernel.stores:
            if entry.value.level == level:
                place = self._place(entry.slot, entry.row, at)
                result = get(entry.value)
                if entry.add:
                    result = lanes.add(load(builder, place, lanes.width), result)
                store(builder, result, place)

    def _row(self, base: ir.Value, row: int) -> ir.Value:
        """Where it starts."""
        if base.type.pointee == I64:
            address = self.builder.load(shifted(self.builder, base, row))
            return self.builder.inttoptr(address, self.element.as_pointer())
        return shifted(self.builder, base, self.builder.mul(self.units, ir.Constant(I64, row)))

    def _place(self, slot: str, row: int, at: ir.Value) -> ir.Value:
        return shifted(self.builder, self.rows[slot, row], at)
