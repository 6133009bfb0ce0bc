"""The only code that depends on the cell: a C function that runs the cell's kernel on a block of rows.

A kernel of the sweep fills a table with a line for each row, which has the address of every slot of
`mdlstm_tk.cells.lowering`, and calls the function once per block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.simd import I64, Pointer, splat, vector_loop
from mdlstm_tk.backends.cpu.vectors import Vectors
from mdlstm_tk.cells.ir import Kernel, Value
from mdlstm_tk.cells.operations import OPERATIONS


class ForwardSlots(NamedTuple):
    """Words of a line of the table in forward: all rows of these slots lie one after another."""

    a: int
    parameter: int
    h: int
    state: int
    gates: int


class ForwardAxisSlots(NamedTuple):
    """Words for each axis, after those of `ForwardSlots`: the S states of an axis lie one after another."""

    h_prev: int
    state_prev: int


class BackwardSlots(NamedTuple):
    """The same in backward, where `gates` may be pre-activations."""

    gates: int
    parameter: int
    state: int
    dh: int
    da: int
    dparameter: int


class BackwardAxisSlots(NamedTuple):
    """Words for each axis, after those of `BackwardSlots`."""

    h_prev: int
    state_prev: int
    dh_next: int
    dh_read_next: int
    dstate_next: int
    dh_read_prev: int
    dstate_prev: int


class Line(NamedTuple):
    """A line of the table: `slots` and then, for each axis, `axis_slots`. The fields are 0, 1, …"""

    slots: tuple[int, ...]
    axis_slots: tuple[int, ...]

    def length(self, ndim: int) -> int:
        """The number of words."""
        return len(self.slots) + ndim * len(self.axis_slots)


FORWARD_SLOTS, FORWARD_AXIS_SLOTS = ForwardSlots(*range(5)), ForwardAxisSlots(*range(2))
BACKWARD_SLOTS, BACKWARD_AXIS_SLOTS = BackwardSlots(*range(6)), BackwardAxisSlots(*range(7))
FORWARD = Line(FORWARD_SLOTS, FORWARD_AXIS_SLOTS)
BACKWARD = Line(BACKWARD_SLOTS, BACKWARD_AXIS_SLOTS)


def block_function(kernel: Kernel, line: Line, ndim: int, states: int, zero: Any) -> Callable[..., None]:
    """A function for Numba to compile: (rows, units, scratch, table), all int64.

    Args:
        kernel: what is computed on each row.
        line: how the table is laid out.
        ndim: D.
        states: S.
        zero: 0 in the dtype.

    It takes scratch memory for `len(kernel.spilled)` rows of units.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def run(_: Any, arguments: Any, zero: Any) -> Any:
        def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            rows, units, scratch, table = (builder.extract_value(args[0], k) for k in range(4))
            element = context.get_data_type(zero)
            spill = Pointer(builder, builder.inttoptr(scratch, element.as_pointer()), element)
            lines = Pointer(builder, builder.inttoptr(table, I64.as_pointer()), I64)
            with vector_loop(builder, simd.counter(builder), rows, 1) as row:
                words = lines.row(ir.Constant(I64, line.length(ndim)), row)
                _RowBuilder(kernel, units, spill, words, line, states).build()
            return context.get_dummy_value()

        return types.void(arguments, zero), build

    def cell(rows, units, scratch, table):  # type: ignore[no-untyped-def]
        run((rows, units, scratch, table), zero)

    return cell


class _RowBuilder:
    """Builds the loops of a kernel: one per level, each in full vectors first, then in ever shorter ones.

    Args:
        kernel: what is computed.
        units: n.
        scratch: memory for the spilled values.
        words: the row's line of the table.
        line: how that is laid out.
        states: S.
    """

    def __init__(
        self, kernel: Kernel, units: ir.Value, scratch: Pointer, words: Pointer, line: Line, states: int
    ) -> None:
        self.builder, self.kernel, self.units = scratch.builder, kernel, units
        self.element, self.words, self.line, self.states = scratch.element, words, line, states
        used = [(value.slot, value.row) for value in kernel.values if value.op == "load"]
        used += [(store.slot, store.row) for store in kernel.stores]
        self.rows = {(slot, row): self._row(slot, row) for slot, row in used}
        self.spills = {id(value): scratch.row(units, index) for index, value in enumerate(kernel.spilled)}
        self.uniforms: dict[int, ir.Value] = {}  # scalars
        self.sums: dict[int, ir.Value] = {}  # by the id of a mean, where its sum is added up

    def _row(self, slot: str, row: int) -> Pointer:
        """The memory of a row of a slot."""
        if hasattr(self.line.slots, slot):
            word, index = getattr(self.line.slots, slot), row
        else:
            axis, index = divmod(row, self.states if "state" in slot else 1)
            word = len(self.line.slots) + axis * len(self.line.axis_slots)
            word += getattr(self.line.axis_slots, slot)
        pointer = self.builder.inttoptr(self.words.at(word).load(), self.element.as_pointer())
        return Pointer(self.builder, pointer, self.element).row(self.units, index)

    def build(self) -> None:
        count = self.builder.sitofp(self.units, self.element)
        scalar = Vectors(self.builder, self.element, 1)
        for level in range(self.kernel.levels):
            for value in self.kernel.values:
                if value.uniform and value.level == level:
                    self.uniforms[id(value)] = self._uniform(value, scalar, count)
                elif value.op == "mean" and value.level == level + 1:
                    self.sums[id(value)] = cgutils.alloca_once(self.builder, self.element)
                    self.builder.store(ir.Constant(self.element, 0.0), self.sums[id(value)])
            self._loops(level)

    def _uniform(self, value: Value, scalar: Vectors, count: ir.Value) -> ir.Value:
        if value.op == "mean":
            total = self.builder.load(self.sums[id(value)], typ=self.element)
            return self.builder.fdiv(total, count)
        if value.op == "constant":
            return ir.Constant(self.element, value.number)
        return OPERATIONS[value.op].llvm(scalar, *(self.uniforms[id(arg)] for arg in value.args))

    def _loops(self, level: int) -> None:
        position = simd.counter(self.builder)
        means = [value for value in self.kernel.values if value.op == "mean" and value.level == level + 1]
        for count in simd.lane_counts(self.element):
            vectors = Vectors(self.builder, self.element, count)
            sums = [cgutils.alloca_once(self.builder, vectors.type) for _ in means]
            for total in sums:
                self.builder.store(vectors.constant(0.0), total)
            with vector_loop(self.builder, position, self.units, count) as index:
                self._body(level, vectors, index, dict(zip(map(id, means), sums, strict=True)))
            for mean, total in zip(means, sums, strict=True):
                before = self.builder.load(self.sums[id(mean)], typ=self.element)
                added = vectors.total(self.builder.load(total, typ=vectors.type))
                self.builder.store(self.builder.fadd(before, added), self.sums[id(mean)])

    def _body(self, level: int, vectors: Vectors, index: ir.Value, sums: dict[int, ir.Value]) -> None:
        """Code of one vector of units at `level`. Each store follows its value as soon as possible."""
        builder, computed = self.builder, dict[int, ir.Value]()

        def get(value: Value) -> ir.Value:
            if id(value) not in computed:
                computed[id(value)] = compute(value)
                if id(value) in self.spills and value.level == level:
                    self.spills[id(value)].at(index).store(computed[id(value)])
            return computed[id(value)]

        def compute(value: Value) -> ir.Value:
            if value.uniform:
                return splat(builder, self.uniforms[id(value)], vectors.lanes)
            if value.op == "load":
                return self.rows[value.slot, value.row].at(index).load(vectors.lanes)
            if value.level < level:
                return self.spills[id(value)].at(index).load(vectors.lanes)
            return OPERATIONS[value.op].llvm(vectors, *(get(arg) for arg in value.args))

        for value in self.kernel.values:
            if value.level == level and not value.uniform and value.op != "load":
                get(value)
            if id(value) in sums:
                total = sums[id(value)]
                before = builder.load(total, typ=vectors.type)
                builder.store(vectors.add(before, get(value.args[0])), total)
        for store in self.kernel.stores:
            if store.value.level == level:
                target = self.rows[store.slot, store.row].at(index)
                result = get(store.value)
                target.store(vectors.add(target.load(vectors.lanes), result) if store.add else result)
