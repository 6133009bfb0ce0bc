"""The intermediate representation of a cell: its equations as a graph, from which kernels are generated.

A `Value` stands for n numbers, one per hidden unit, at one position of the grid. It has the operators and
methods that the equations use on tensors, so the same functions, called with values instead of tensors,
build the graph of what they would have computed.

    >>> a, b = Value.load("a", 0), Value.load("b", 0)
    >>> kernel = Kernel([Store("c", 0, (a * b).tanh())])

The operations are add, subtract, multiply, tanh, sigmoid, rsqrt and the mean over the units (which layer
norm needs); `mdlstm_tk.cells.autodiff` differentiates them.

A mean needs all units before anything that uses it can start. So each value has a *level*: the number of
means that must be finished before it. A kernel is one loop over the units per level; values that a later
level reads again are spilled to scratch memory. Without layer norm a kernel is a single loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mdlstm_tk.errors import InputError

SUPPORTED = "+, -, *, tanh() and sigmoid()"


@dataclass(frozen=True, eq=False)
class Value:
    """A node of the graph.

    Attributes:
        op: "load", "constant", "add", "subtract", "multiply", "tanh", "sigmoid", "rsqrt" or "mean".
        args: the values it is computed from.
        slot: for a load, the array it reads.
        row: for a load, the row of n numbers in that array.
        number: for a constant, its value.
        level: the number of means that must be finished before it, see above.
        uniform: whether it is the same number for all units.
    """

    op: str
    args: tuple[Value, ...] = ()
    slot: str = ""
    row: int = 0
    number: float = 0.0
    level: int = field(init=False)
    uniform: bool = field(init=False)

    def __post_init__(self) -> None:
        level = max((arg.level for arg in self.args), default=0)
        uniform = self.op != "load" and all(arg.uniform for arg in self.args)
        object.__setattr__(self, "level", level + (self.op == "mean"))
        object.__setattr__(self, "uniform", uniform or self.op == "mean")

    @staticmethod
    def load(slot: str, row: int) -> Value:
        return Value("load", slot=slot, row=row)

    @staticmethod
    def wrap(number: Value | float) -> Value:
        """`number` as a constant, unless it is a value already.

        Raises:
            InputError: it is neither a value nor a number.
        """
        if isinstance(number, Value):
            return number
        if not isinstance(number, int | float):
            raise InputError(f"a cell computes with values and numbers, got {type(number).__name__}")
        return Value("constant", number=float(number))

    def __add__(self, other: Value | float) -> Value:
        return Value("add", (self, Value.wrap(other)))

    def __sub__(self, other: Value | float) -> Value:
        return Value("subtract", (self, Value.wrap(other)))

    def __rsub__(self, other: float) -> Value:
        return Value("subtract", (Value.wrap(other), self))

    def __mul__(self, other: Value | float) -> Value:
        return Value("multiply", (self, Value.wrap(other)))

    def __neg__(self) -> Value:
        return Value("multiply", (Value.wrap(-1.0), self))

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

    def mean(self, dim: int = -1, keepdim: bool = True) -> Value:
        """The mean over the units, the only axis that a value has."""
        assert dim == -1
        assert keepdim
        return Value("mean", (self,))

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(f"unknown operation '{name}' in a cell; supported are {SUPPORTED}")


def _unsupported(symbol: str) -> object:
    def refuse(self: Value, *_: object) -> Value:
        raise InputError(f"unknown operation '{symbol}' in a cell; supported are {SUPPORTED}")

    return refuse


_UNSUPPORTED = {"truediv": "/", "rtruediv": "/", "pow": "**", "matmul": "@", "floordiv": "//", "mod": "%"}
_UNSUPPORTED |= {
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "ge": ">=",
    "bool": "bool()",
    "getitem": "[]",
    "abs": "abs()",
}
for _name, _symbol in _UNSUPPORTED.items():
    setattr(Value, f"__{_name}__", _unsupported(_symbol))


def loads(slot: str, count: int) -> list[Value]:
    """The first `count` rows of an array."""
    return [Value.load(slot, row) for row in range(count)]


@dataclass(frozen=True)
class Store:
    """Write `value` to row `row` of array `slot`; if `add`, add it to what the row holds."""

    slot: str
    row: int
    value: Value
    add: bool = False


@dataclass(frozen=True)
class Kernel:
    """What is stored at one position, and so all that has to be computed for it."""

    stores: Sequence[Store]

    @cached_property
    def values(self) -> list[Value]:
        """All values that are needed, each after those it is computed from."""
        return topological_order([store.value for store in self.stores])

    @cached_property
    def levels(self) -> int:
        """The number of loops over the units."""
        return 1 + max(store.value.level for store in self.stores)

    @cached_property
    def spilled(self) -> list[Value]:
        """The values that a later level reads again and that are not simply loaded again."""
        spilled: dict[int, Value] = {}
        uses = [(value.level, value.args) for value in self.values if value.op != "mean"]
        uses += [(store.value.level, (store.value,)) for store in self.stores]
        for level, args in uses:
            for arg in args:
                if arg.level < level and not arg.uniform and arg.op != "load":
                    spilled[id(arg)] = arg
        return list(spilled.values())

    @cached_property
    def text(self) -> str:
        """The kernel written out, one line per value and store; equal kernels have equal texts."""
        names: dict[int, str] = {}
        lines = []
        for index, value in enumerate(self.values):
            args = ", ".join(names[id(arg)] for arg in value.args)
            leaf = f"{value.slot}[{value.row}]" if value.op == "load" else repr(value.number)
            names[id(value)] = f"v{index}"
            lines.append(f"v{index} = {value.op}({args if value.args else leaf})")
        for store in self.stores:
            lines.append(f"{store.slot}[{store.row}] {'+' * store.add}= {names[id(store.value)]}")
        return "\n".join(lines)


def topological_order(roots: Sequence[Value]) -> list[Value]:
    """The roots and all they are computed from, each value after its arguments."""
    seen: set[int] = set()

    def visit(value: Value) -> Iterator[Value]:
        if id(value) not in seen:
            seen.add(id(value))
            for arg in value.args:
                yield from visit(arg)
            yield value

    return [value for root in roots for value in visit(root)]
