"""Cell equations recorded rather than computed, so that a kernel can be built from them.

`Value` stands for one number per unit of one cell, (n,). It has the operators and methods that
`mdlstm_tk.cells.equations` and `mdlstm_tk.cells.step` use on tensors, so those same lines, called with
values instead of tensors, leave behind a graph of what they would have computed.

    >>> a, b = Value.load("a", 0), Value.load("b", 0)
    >>> kernel = Kernel([Store("c", 0, (a * b).tanh())])

A mean over the units needs all of them before anything that uses it can start. So each value has
a *level*: the number of means that lie before it. A kernel is one loop over the units per level;
values that a later level needs again are spilled, and one without layer norm is a single loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, eq=False)
class Value:
    """A node of the graph.

    Attributes:
        op: "load", "constant", "add", "subtract", "multiply", "tanh", "sigmoid", "rsqrt" or "mean".
        args: the values it is computed from.
        slot: for a load, the array it comes from.
        row: for a load, which row of n of that array.
        number: for a constant, its value.
    """

    op: str
    args: tuple[Value, ...] = ()
    slot: str = ""
    row: int = 0
    number: float = 0.0
    level: int = field(init=False)
    uniform: bool = field(init=False)  # the same for all units

    def __post_init__(self) -> None:
        level = max((arg.level for arg in self.args), default=0)
        uniform = self.op != "load" and all(arg.uniform for arg in self.args)
        object.__setattr__(self, "level", level + (self.op == "mean"))
        object.__setattr__(self, "uniform", uniform or self.op == "mean")

    @staticmethod
    def load(slot: str, row: int) -> Value:
        return Value("load", slot=slot, row=row)

    @staticmethod
    def of(number: Value | float) -> Value:
        return number if isinstance(number, Value) else Value("constant", number=float(number))

    def __add__(self, other: Value | float) -> Value:
        return Value("add", (self, Value.of(other)))

    def __sub__(self, other: Value | float) -> Value:
        return Value("subtract", (self, Value.of(other)))

    def __rsub__(self, other: float) -> Value:
        return Value("subtract", (Value.of(other), self))

    def __mul__(self, other: Value | float) -> Value:
        return Value("multiply", (self, Value.of(other)))

    __radd__ = __add__
    __rmul__ = __mul__

    def square(self) -> Value:
        return self * self

    def tanh(self) -> Value:
        return Value("tanh", (self,))

    def sigmoid(self) -> Value:
        return Value("sigmoid", (self,))

    def rsqrt(self) -> Value:
        return Value("rsqrt", (self,))

    def mean(self, dim: int, keepdim: bool) -> Value:
        """The mean over the units: the only axis that a value has."""
        assert dim == -1 and keepdim
        return Value("mean", (self,))


def loads(slot: str, count: int) -> list[Value]:
    """The first `count` rows of an array."""
    return [Value.load(slot, row) for row in range(count)]


@dataclass(frozen=True)
class Store:
    """`value` is what row `row` of array `slot` becomes; or, if `add`, is added to it."""

    slot: str
    row: int
    value: Value
    add: bool = False


@dataclass(frozen=True)
class Kernel:
    """What is to be stored for one cell, and so all that is to be computed."""

    stores: Sequence[Store]

    @cached_property
    def values(self) -> list[Value]:
        """All values that are needed, each behind those it is computed from."""
        seen: dict[int, Value] = {}

        def visit(value: Value) -> Iterator[Value]:
            if id(value) not in seen:
                seen[id(value)] = value
                for arg in value.args:
                    yield from visit(arg)
                yield value

        return [value for store in self.stores for value in visit(store.value)]

    @cached_property
    def levels(self) -> int:
        """The number of loops over the units."""
        return 1 + max(store.value.level for store in self.stores)

    @cached_property
    def spilled(self) -> list[Value]:
        """The values that a later level needs again and cannot simply load again."""
        kept: dict[int, Value] = {}
        users = [(value.level, value.args) for value in self.values if value.op != "mean"]
        users += [(store.value.level, (store.value,)) for store in self.stores]
        for level, args in users:
            for arg in args:
                if arg.level < level and not arg.uniform and arg.op != "load":
                    kept[id(arg)] = arg
        return list(kept.values())

    @property
    def slots(self) -> list[str]:
        """The arrays it reads and writes."""
        read = [value.slot for value in self.values if value.op == "load"]
        return list(dict.fromkeys([*read, *(store.slot for store in self.stores)]))
