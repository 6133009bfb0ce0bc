"""The equations of a cell as a graph, from which every backend is made, and its gradient.

A `Value` stands for n numbers, one per hidden unit, at one position of the grid. It has the operators and
methods of `OPERATIONS`, so equations that are called with values record what they compute. Equal values of
a `Graph` are one object.

    >>> graph = Graph()
    >>> a, b = graph.load("a", 0), graph.load("b", 0)
    >>> kernel = Kernel([Store("c", 0, (a * b).tanh())])

Beside the operations of the table there is the mean over the units, which layer norm needs and equations
cannot use. It needs all units before anything that uses it can start. So each value has a *level*: the
number of means that must be finished before it. A kernel is one loop over the units per level; values that
a later level reads again are spilled to scratch memory. Without layer norm a kernel is a single loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, NoReturn

from mdlstm_tk.errors import InputError

LAYER_NORM_EPS = 1e-5


class Operation(NamedTuple):
    """An elementwise operation.

    Attributes:
        compute: of tensors, and of `mdlstm_tk.backends.cpu.simd.Vector`, which has torch's methods.
        gradient: (dy, y, *arguments) → the gradient of each argument, in recorded values. Where there is no
            derivative it is torch's: half for each of two equal arguments of `maximum`, 0 for `relu` at 0.
        triton: an expression in which {0}, {1} stand for the arguments; functions without `tl.` are those
            of `mdlstm_tk.backends.cuda.kernels`.
        onnx: the operator.
    """

    compute: Callable[..., Any]
    gradient: Callable[..., tuple[Any, ...]]
    triton: str
    onnx: str

    @property
    def arity(self) -> int:
        """The number of arguments."""
        return self.gradient.__code__.co_argcount - 2


def _shares(dy: Value, a: Value, b: Value) -> tuple[Value, Value]:
    """dy where a > b, and dy where a < b; half of it each where they are equal."""
    share = 0.5 * (a - b).sign()
    return dy * (0.5 + share), dy * (0.5 - share)


# fmt: off
OPERATIONS: dict[str, Operation] = {
    "add": Operation(lambda a, b: a + b, lambda dy, y, a, b: (dy, dy), "{0} + {1}", "Add"),
    "subtract": Operation(lambda a, b: a - b, lambda dy, y, a, b: (dy, -dy), "{0} - {1}", "Sub"),
    "multiply": Operation(lambda a, b: a * b, lambda dy, y, a, b: (dy * b, dy * a), "{0} * {1}", "Mul"),
    "divide": Operation(lambda a, b: a / b, lambda dy, y, a, b: (dy / b, -(dy * y / b)),
                        "{0} / {1}", "Div"),
    "exp": Operation(lambda x: x.exp(), lambda dy, y, x: (dy * y,), "exp({0})", "Exp"),
    "log": Operation(lambda x: x.log(), lambda dy, y, x: (dy / x,), "tl.log({0})", "Log"),
    "sqrt": Operation(lambda x: x.sqrt(), lambda dy, y, x: (dy * 0.5 / y,), "sqrt({0})", "Sqrt"),
    "abs": Operation(lambda x: x.abs(), lambda dy, y, x: (dy * x.sign(),), "tl.abs({0})", "Abs"),
    "sign": Operation(lambda x: x.sign(), lambda dy, y, x: (None,),
                      "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, 0.0))", "Sign"),
    "maximum": Operation(lambda a, b: a.maximum(b), lambda dy, y, a, b: _shares(dy, a, b),
                         "tl.maximum({0}, {1}, tl.PropagateNan.ALL)", "Max"),
    "minimum": Operation(lambda a, b: a.minimum(b), lambda dy, y, a, b: _shares(dy, b, a),
                         "tl.minimum({0}, {1}, tl.PropagateNan.ALL)", "Min"),
    "tanh": Operation(lambda x: x.tanh(), lambda dy, y, x: (dy * (1.0 - y * y),), "tanh({0})", "Tanh"),
    "sigmoid": Operation(lambda x: x.sigmoid(), lambda dy, y, x: (dy * (y * (1.0 - y)),),
                         "sigmoid({0})", "Sigmoid"),
    "relu": Operation(lambda x: x.relu(), lambda dy, y, x: (dy * y.sign(),),
                      "tl.maximum({0}, 0.0, tl.PropagateNan.ALL)", "Relu"),
    # log(1 + exp(x)); torch's own function is linear from x = 20 on
    "softplus": Operation(lambda x: x.logaddexp(x.new_zeros(())), lambda dy, y, x: (dy * x.sigmoid(),),
                          "softplus({0})", "Softplus"),
}
# fmt: on


def _operator(op: str, is_reflected: bool = False) -> Callable[[Value, Value | float], Value]:
    def operator(self: Value, other: Value | float) -> Value:
        return self.graph.apply(op, *((other, self) if is_reflected else (self, other)))

    return operator


@dataclass(eq=False)
class Value:
    """A node of a graph, which `Graph.make` creates. Two values are equal only if they are the same."""

    graph: Graph
    op: str  # "load", "constant", "mean", or a name in `OPERATIONS`
    args: tuple[Value, ...]  # the values it is computed from
    slot: str  # of a load: the array it reads,
    row: int  # and the row of n numbers there
    number: float  # of a constant
    serial: int  # the number of values that were made before it
    level: int  # the number of means that must be finished before it, see above
    uniform: bool  # whether it is the same number for all units
    # In place of `args` and `op`: a value, and the function from the gradient to that of the value.
    pullback: tuple[Value, Callable[[Value], Value]] | None = None

    __add__ = __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("subtract"), _operator("subtract", is_reflected=True)
    __mul__ = __rmul__ = _operator("multiply")
    __truediv__, __rtruediv__ = _operator("divide"), _operator("divide", is_reflected=True)

    def __neg__(self) -> Value:
        return self.graph.apply("subtract", 0.0, self)

    def __abs__(self) -> Value:
        return self.graph.apply("abs", self)

    def __bool__(self) -> NoReturn:
        raise InputError("a cell cannot branch on a value")

    def __eq__(self, other: object) -> NoReturn:  # Python's own is false, whatever the numbers are
        self.__bool__()

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Callable[..., Value]:
        if name not in OPERATIONS:
            raise AttributeError(f"a cell cannot compute '{name}', only {', '.join(OPERATIONS)}")
        return partial(self.graph.apply, name, self)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Value:
        """Record `torch.exp(x)` as `x.exp()`. Options of torch's function would be lost."""
        if any(value is not None and value is not False for value in (kwargs or {}).values()):
            raise TypeError(f"'{function.__name__}' takes no options in a cell, got {kwargs}")
        graph = next(arg.graph for arg in args if isinstance(arg, Value))
        return graph.apply(function.__name__, *args)


class Graph:
    """Makes values, and keeps each of them once."""

    def __init__(self) -> None:
        self._values: dict[tuple[object, ...], Value] = {}

    def make(
        self, op: str, args: Sequence[Value] = (), slot: str = "", row: int = 0, number: float = 0.0
    ) -> Value:
        """The value with these attributes."""
        if op in ("add", "multiply", "maximum", "minimum"):
            args = sorted(args, key=lambda arg: arg.serial)
        key = (op, *map(id, args), slot, row, str(number))  # 0.0 == −0.0
        if key not in self._values:
            level = max((arg.level for arg in args), default=0) + (op == "mean")
            uniform = op == "mean" or (op != "load" and all(arg.uniform for arg in args))
            numbers = number, len(self._values), level, uniform
            self._values[key] = Value(self, op, tuple(args), slot, row, *numbers)
        return self._values[key]

    def load(self, slot: str, row: int) -> Value:
        """A row of an array."""
        return self.make("load", slot=slot, row=row)

    def constant(self, number: Value | float) -> Value:
        """A number as a value, unless it is a value already."""
        return number if isinstance(number, Value) else self.make("constant", number=float(number))

    def apply(self, op: str, *arguments: Value | float) -> Value:
        """The result of an operation, in its simplest form. Nothing that may be NaN is left out.

        Raises:
            TypeError: there is no such operation, or it takes another number of arguments.
        """
        if op not in OPERATIONS or len(arguments) != OPERATIONS[op].arity:
            known = ", ".join(OPERATIONS)
            raise TypeError(f"a cell cannot compute '{op}' of {len(arguments)} arguments, only {known}")
        args = [self.constant(argument) for argument in arguments]
        if op in ("add", "multiply") and args[0].op == "constant":
            args.reverse()
        if len(args) == 2 and args[1].op == "constant":
            neutral = {"add": 0.0, "subtract": 0.0, "multiply": 1.0, "divide": 1.0}.get(op)
            if args[1].number == neutral:
                return args[0]
        if op in ("add", "subtract") and args[1].op == "subtract":
            zero, negated = args[1].args
            if zero.op == "constant" and zero.number == 0:  # a ± (0 − y) = a ∓ y
                return self.apply("subtract" if op == "add" else "add", args[0], negated)
        return self.make(op, args)

    def mean(self, value: Value) -> Value:
        """The mean over the units."""
        return value if value.uniform else self.make("mean", [value])

    def normalize(self, x: Value) -> Value:
        """Layer norm over the units without scale and shift, with the biased variance. Its gradient takes
        two means: dx = (dy − mean(dy) − y mean(dy y)) / σ."""
        centered = x - self.mean(x)
        rstd = 1.0 / (self.mean(centered * centered) + LAYER_NORM_EPS).sqrt()
        y = centered * rstd
        y.pullback = x, lambda dy: rstd * (dy - self.mean(dy) - y * self.mean(dy * y))
        return y


def topological_order(
    roots: Sequence[Value], needs: Callable[[Value], Sequence[Value]] = lambda value: value.args
) -> list[Value]:
    """The roots and all they need, each value after those that it needs itself. There is no recursion,
    since equations may have any length."""
    order: dict[Value, None] = {}
    stack = list(reversed(roots))
    while stack:
        missing = [value for value in needs(stack[-1]) if value not in order]
        if missing and stack[-1] not in order:
            stack += reversed(missing)
        else:
            order.setdefault(stack.pop())
    return list(order)


def gradients(seeds: Sequence[tuple[Value, Value]], inputs: Sequence[Value]) -> list[Value]:
    """The gradients of the inputs, from pairs of a result and its gradient; 0 where no result depends on an
    input. (Griewank and Walther, Evaluating Derivatives, 2nd edition, 2008, chapter 3.)"""
    adjoints: dict[Value, Value] = {}

    def accumulate(value: Value, gradient: Value | None) -> None:
        if gradient is not None and value.op != "constant":
            adjoints[value] = adjoints[value] + gradient if value in adjoints else gradient

    def sources(value: Value) -> Sequence[Value]:
        return value.args if value.pullback is None else [value.pullback[0]]

    for result, gradient in seeds:
        accumulate(result, gradient)
    for value in reversed(topological_order([result for result, _ in seeds], sources)):
        if value not in adjoints:
            continue
        dy, args = adjoints[value], sources(value)
        if value.pullback is not None:
            accumulate(args[0], value.pullback[1](dy))
        elif args:
            for arg, gradient in zip(args, OPERATIONS[value.op].gradient(dy, value, *args), strict=True):
                accumulate(arg, gradient)
    zero = seeds[0][0].graph.constant(0.0)
    return [adjoints.get(value, zero) for value in inputs]


class Store(NamedTuple):
    """Write a value to a row of an array; gradients of parameters, `dparameter`, are added to it."""

    slot: str
    row: int
    value: Value


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
        lines += [f"{store.slot}[{store.row}] = {names[store.value]}" for store in self.stores]
        return "\n".join(lines)
