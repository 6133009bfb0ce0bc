"""The intermediate representation of a cell: its equations as a graph, from which every backend is made.

A `Value` stands for n numbers, one per hidden unit, at one position of the grid. It has the operators and
methods of the table in `operations`, so equations that are called with values record what they compute.

    >>> a, b = Value.load("a", 0), Value.load("b", 0)
    >>> kernel = Kernel([Store("c", 0, (a * b).tanh())])

Beside the operations of the table there is `unit_mean`, which layer norm needs and equations cannot use. It
needs all units before anything that uses it can start. So each value has a *level*: the number of means
that must be finished before it. A kernel is one loop over the units per level; values that a later level
reads again are spilled to scratch memory. Without layer norm a kernel is a single loop.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Real
from typing import Any, NoReturn

from mdlstm_tk._util.text import counted
from mdlstm_tk.cells.operations import OPERATIONS, supported
from mdlstm_tk.errors import InputError


@dataclass(frozen=True, eq=False)
class Value:
    """A node of the graph. Two values are equal only if they are the same object.

    Attributes:
        op: "load", "constant", "mean", or a name in `OPERATIONS`.
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
        other: Any = number
        if not isinstance(other, Real):  # which numbers of NumPy are, too
            raise InputError(f"a cell computes with values and numbers, got {type(number).__name__}")
        return Value("constant", number=float(number))

    def __add__(self, other: Value | float) -> Value:
        return record("add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return record("subtract", self, other)

    def __rsub__(self, other: float) -> Value:
        return record("subtract", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return record("multiply", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return record("divide", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return record("divide", other, self)

    def __neg__(self) -> Value:
        return record("subtract", 0.0, self)

    def __abs__(self) -> Value:
        return record("abs", self)

    def __bool__(self) -> NoReturn:
        raise InputError(f"a cell cannot branch on a value; its equations may use {supported()}")

    def __eq__(self, other: object) -> NoReturn:  # Python's own is false, whatever the numbers are
        self.__bool__()

    __hash__ = object.__hash__
    __radd__ = __add__
    __rmul__ = __mul__

    def __getattr__(self, name: str) -> Callable[..., Value]:
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(record, name, self)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Value:
        """Record `torch.exp(x)` as `x.exp()`.

        Raises:
            InputError: the function gets options that a recorded operation does not have.
        """
        given = [k for k, value in (kwargs or {}).items() if value is not None and value is not False]
        if given:
            raise InputError(f"'{function.__name__}' in a cell takes no {', '.join(given)}; leave it out")
        return record(function.__name__, *args)


def record(op: str, *args: Value | float) -> Value:
    """The result of an operation.

    Raises:
        InputError: there is no such operation, or it takes other arguments.
    """
    if op not in OPERATIONS:
        raise InputError(f"unknown operation '{op}' in a cell; supported are {supported()}")
    count = OPERATIONS[op].gradient.__code__.co_argcount - 2
    if len(args) != count:
        raise InputError(f"operation '{op}' in a cell takes {counted(count, 'argument')}, got {len(args)}")
    return Value(op, tuple(map(Value.wrap, args)))


def unit_mean(value: Value) -> Value:
    """The mean over the units."""
    return Value("mean", (value,))


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
    """All that is stored at one position, and so all that has to be computed for it."""

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
        uses = [(value.level, value.args) for value in self.values if value.op != "mean"]
        uses += [(store.value.level, (store.value,)) for store in self.stores]
        later = (arg for level, args in uses for arg in args if arg.level < level)
        return list(dict.fromkeys(arg for arg in later if not arg.uniform and arg.op != "load"))

    @cached_property
    def text(self) -> str:
        """The kernel written out, one line per value and store; equal kernels have equal texts."""
        names: dict[Value, str] = {}
        lines = []
        for index, value in enumerate(self.values):
            args = ", ".join(names[arg] for arg in value.args)
            leaf = f"{value.slot}[{value.row}]" if value.op == "load" else repr(value.number)
            names[value] = f"v{index}"
            lines.append(f"v{index} = {value.op}({args if value.args else leaf})")
        for store in self.stores:
            lines.append(f"{store.slot}[{store.row}] {'+' * store.add}= {names[store.value]}")
        return "\n".join(lines)


def topological_order(roots: Sequence[Value]) -> list[Value]:
    """The roots and all they are computed from, each value after its arguments."""
    order: dict[Value, None] = {}
    for value in unfinished(roots, order, lambda value: value.args):
        order[value] = None
    return list(order)


def unfinished(
    roots: Sequence[Value], done: Container[Value], needs: Callable[[Value], Sequence[Value]]
) -> Iterator[Value]:
    """The roots and all they need, each value after those that it needs itself. The caller adds each to
    `done` before it takes the next one. There is no recursion, since equations may have any length."""
    stack = list(reversed(roots))
    while stack:
        missing = [value for value in needs(stack[-1]) if value not in done]
        if stack[-1] in done:
            stack.pop()
        elif missing:
            stack += reversed(missing)
        else:
            yield stack.pop()
