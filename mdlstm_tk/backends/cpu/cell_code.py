"""The only code that depends on the cell: a C function that runs the cell's kernel on a block of rows.

A kernel of the sweep fills a table with a line for each row, which holds the addresses of the slots of
`mdlstm_tk.cells.step`, and calls the function once per block.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.simd import I64, Pointer, Vector, vector_loop
from mdlstm_tk.cells.graph import OPERATIONS, Kernel, Value

# Indices of words in a line of the table, those that forward uses first. A word is the address of the first
# row of a slot, whose other rows follow.
Slots = namedtuple("Slots", "parameter state gates a h dh da dparameter")
# The same for each axis, after the words of `Slots`. The S states of an axis follow each other.
AxisSlots = namedtuple(
    "AxisSlots", "h_prev state_prev dh_next dh_read_next dstate_next dh_read_prev dstate_prev"
)
SLOT, AXIS = Slots(*range(8)), AxisSlots(*range(7))


def words_per_line(ndim: int) -> int:
    """The number of words of a line."""
    return len(SLOT) + ndim * len(AXIS)


def block_function(kernel: Kernel, ndim: int, states: int, zero: Any) -> Callable[..., None]:
    """A function for Numba to compile: (rows, units, scratch, table), all int64.

    Args:
        kernel: what is computed on each row.
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
                words = lines.row(ir.Constant(I64, words_per_line(ndim)), row)
                _RowBuilder(kernel, units, spill, words, states).build()
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
        states: S.
    """

    def __init__(
        self, kernel: Kernel, units: ir.Value, scratch: Pointer, words: Pointer, states: int
    ) -> None:
        self.builder, self.kernel, self.units = scratch.builder, kernel, units
        self.element, self.words, self.states = scratch.element, words, states
        used = [(value.slot, value.row) for value in kernel.values if value.op == "load"]
        used += [(store.slot, store.row) for store in kernel.stores]
        self.rows = {(slot, row): self._row(slot, row) for slot, row in used}
        self.spills = {value: scratch.row(units, index) for index, value in enumerate(kernel.spilled)}
        self.uniforms: dict[Value, Vector] = {}  # of one lane
        self.sums: dict[Value, Pointer] = {}  # by a mean, where its sum is added up

    def _row(self, slot: str, row: int) -> Pointer:
        """The memory of a row of a slot."""
        if slot in SLOT._fields:
            word, index = getattr(SLOT, slot), row
        else:
            axis, index = divmod(row, self.states if "state" in slot else 1)
            word = words_per_line(axis) + getattr(AXIS, slot)
        pointer = self.builder.inttoptr(self.words.at(word).load().value, self.element.as_pointer())
        return Pointer(self.builder, pointer, self.element).row(self.units, index)

    def build(self) -> None:
        count = Vector(self.builder, self.builder.sitofp(self.units, self.element))
        for level in range(self.kernel.levels):
            for value in self.kernel.values:
                if value.uniform and value.level == level:
                    self.uniforms[value] = self._uniform(value, count)
                elif value.op == "mean" and value.level == level + 1:
                    self.sums[value] = simd.zeros(self.builder, self.element)
            self._loops(level)

    def _uniform(self, value: Value, count: Vector) -> Vector:
        if value.op == "mean":
            return self.sums[value].load() / count
        if value.op == "constant":
            return count.like(value.number)
        return OPERATIONS[value.op].compute(*(self.uniforms[arg] for arg in value.args))  # type: ignore[no-any-return]

    def _loops(self, level: int) -> None:
        position = simd.counter(self.builder)
        means = [value for value in self.kernel.values if value.op == "mean" and value.level == level + 1]
        for lanes in simd.lane_counts(self.element):
            sums = {mean: simd.zeros(self.builder, self.element, lanes) for mean in means}
            with vector_loop(self.builder, position, self.units, lanes) as index:
                self._body(level, lanes, index, sums)
            for mean, total in sums.items():
                self.sums[mean].store(self.sums[mean].load() + total.load(lanes).total())

    def _body(self, level: int, lanes: int, index: ir.Value, sums: dict[Value, Pointer]) -> None:
        """Code of one vector of units at `level`. Each store follows its value as soon as possible."""
        computed: dict[Value, Vector] = {}

        def get(value: Value) -> Vector:
            if value not in computed:
                computed[value] = compute(value)
                if value in self.spills and value.level == level:
                    self.spills[value].at(index).store(computed[value])
            return computed[value]

        def compute(value: Value) -> Vector:
            if value.uniform:
                return self.uniforms[value].splat(lanes)
            if value.op == "load":
                return self.rows[value.slot, value.row].at(index).load(lanes)
            if value.level < level:
                return self.spills[value].at(index).load(lanes)
            return OPERATIONS[value.op].compute(*(get(arg) for arg in value.args))  # type: ignore[no-any-return]

        for value in self.kernel.values:
            if value.level == level and not value.uniform and value.op != "load":
                get(value)
            if value in sums:
                total = sums[value]
                total.store(total.load(lanes) + get(value.args[0]))
        for store in self.kernel.stores:
            if store.value.level == level:
                target = self.rows[store.slot, store.row].at(index)
                result = get(store.value)
                target.store(target.load(lanes) + result if store.slot == "dparameter" else result)
