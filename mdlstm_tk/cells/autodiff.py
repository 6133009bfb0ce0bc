"""Reverse-mode differentiation of recorded equations (`mdlstm_tk.cells.ir`).

The gradient is a graph of the same operations as the equations. It is simplified while it is built: equal
values become one value, and means are pulled apart so that as few loops over the units as possible depend
on one another. What the equations themselves compute keeps NaN and infinity: 0·x, 0/x and x − x are 0 in
adjoints alone, where they come from terms that are not there.

Adjoints are kept per unit, also those of values that are the same for all units: the true adjoint of such a
value is the sum of its entry over the units. So the adjoint of x in m = mean(x) is the mean of that of m.

Source: Griewank and Walther, Evaluating Derivatives, 2nd edition, 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from mdlstm_tk.cells.ir import Value, topological_order, unfinished, unit_mean
from mdlstm_tk.cells.operations import OPERATIONS


def differentiate(
    seeds: Sequence[tuple[Value, Value]],
    inputs: Sequence[Value],
    replacements: Sequence[tuple[Value, Value]],
) -> list[Value | None]:
    """The gradients of the inputs, from those of the results.

    Args:
        seeds: pairs of a result and its gradient.
        inputs: loads that the results are computed from.
        replacements: pairs of a value and what to read instead of computing it again, such as an activated
            gate and a load of it, if the forward pass saved it.

    Returns:
        The gradient of each input, None where no result depends on it.
    """
    graph = SimplifiedGraph(replacements)
    adjoints: dict[Value, Value] = {}

    def accumulate(value: Value, gradient: Value) -> None:
        if value.op != "constant":
            before = adjoints.get(value)
            adjoints[value] = graph.simplify(gradient if before is None else before + gradient, True)

    for result, gradient in seeds:
        accumulate(result, gradient)
    for value in reversed(topological_order([result for result, _ in seeds])):
        if value not in adjoints or not value.args:
            continue
        dy = adjoints[value]
        if value.op == "mean":
            accumulate(value.args[0], unit_mean(dy))
            continue
        y, *args = (graph.simplify(v) for v in (value, *value.args))
        for arg, gradient in zip(value.args, OPERATIONS[value.op].gradient(dy, y, *args), strict=True):
            accumulate(arg, gradient)
    return [adjoints.get(value) for value in inputs]


class SimplifiedGraph:
    """Builds values of which no two are equal.

    Args:
        replacements: pairs of a value and what to use in its place.
    """

    def __init__(self, replacements: Sequence[tuple[Value, Value]] = ()) -> None:
        self._values: dict[tuple[object, ...], Value] = {}  # by operation and arguments
        self._order: dict[Value, int] = {}  # in which values were built
        self._simplified: dict[Value, Value] = {}  # by values from anywhere
        self._means: dict[Value, Value] = {}  # by this graph's values
        self._is_adjoint = False
        for value, replacement in replacements:
            self._simplified[value] = self.simplify(replacement)

    def simplify(self, value: Value, is_adjoint: bool = False) -> Value:
        """The value that equals `value`, which may come from anywhere.

        Args:
            value: to simplify.
            is_adjoint: whether 0·x, 0/x and x − x are 0, which they are not where x is NaN or infinite.
        """
        self._is_adjoint = is_adjoint
        for part in unfinished([value], self._simplified, lambda part: part.args):
            args = [self._simplified[arg] for arg in part.args]
            self._simplified[part] = self._build(part.op, *args) if args else self._leaf(part)
        return self._simplified[value]

    def _constant(self, number: float) -> Value:
        return self._leaf(Value.wrap(number))

    def _build(self, op: str, *args: Value) -> Value:
        """The value `op(*args)` of this graph's values, in its simplest form."""
        if op == "mean":
            return self._mean(args[0])
        if op in ("add", "subtract", "multiply", "divide"):
            return self._arithmetic(op, *args)
        if op == "sign" and args[0].op == "constant":
            return self._constant(float((args[0].number > 0) - (args[0].number < 0)))
        return self._intern(op, *args)

    def _arithmetic(self, op: str, a: Value, b: Value) -> Value:
        if a.op == b.op == "constant" and not (op == "divide" and b.number == 0):
            return self._constant(OPERATIONS[op].compute(a.number, b.number))
        if op == "multiply":
            return self._product(a, b)
        if op == "divide":
            return self._quotient(a, b)
        if op == "add" and _is(a, 0.0):
            return b
        if _is(b, 0.0):
            return a
        if (negated := _negated(b)) is not None:  # a ± (0 − y) = a ∓ y
            return self._build("subtract" if op == "add" else "add", a, negated)
        if op == "add" and (negated := _negated(a)) is not None:
            return self._build("subtract", b, negated)
        if self._is_adjoint and op == "subtract" and a is b:
            return self._constant(0.0)
        return self._intern(op, a, b)

    def _product(self, a: Value, b: Value) -> Value:
        if self._is_adjoint and (_is(a, 0.0) or _is(b, 0.0)):
            return self._constant(0.0)
        if _is(a, 1.0):
            return b
        if _is(b, 1.0):
            return a
        for factor, other in ((a, b), (b, a)):
            if (negated := _negated(factor)) is not None:
                return self._build("subtract", self._constant(0.0), self._build("multiply", negated, other))
        return self._intern("multiply", a, b)

    def _quotient(self, a: Value, b: Value) -> Value:
        if _is(b, 1.0) or (self._is_adjoint and _is(a, 0.0)):
            return a
        if (negated := _negated(a)) is not None:
            return self._build("subtract", self._constant(0.0), self._build("divide", negated, b))
        return self._intern("divide", a, b)

    def _mean(self, value: Value) -> Value:
        """The mean is linear, and that of a value which is the same for all units is the value."""
        for part in unfinished([value], self._means, _averaged):
            means = [self._means[arg] for arg in _averaged(part)]
            if part.uniform:
                self._means[part] = part
            elif not means:
                self._means[part] = self._intern("mean", part)
            elif part.op == "multiply":
                factor = part.args[part.args[0] is _averaged(part)[0]]
                self._means[part] = self._build("multiply", *means, factor)
            else:
                self._means[part] = self._build(part.op, *means)
        return self._means[value]

    def _leaf(self, value: Value) -> Value:
        return self._keep((value.op, value.slot, value.row, value.number), value)

    def _intern(self, op: str, *args: Value) -> Value:
        if op in ("add", "multiply", "maximum", "minimum"):
            args = tuple(sorted(args, key=lambda arg: self._order[arg]))
        key = (op, *args)
        return self._values[key] if key in self._values else self._keep(key, Value(op, args))

    def _keep(self, key: tuple[object, ...], value: Value) -> Value:
        if key not in self._values:
            self._values[key] = value
            self._order[value] = len(self._order)
            self._simplified[value] = value
        return self._values[key]


def _averaged(value: Value) -> Sequence[Value]:
    """The values whose means make up the mean of a value; none if that is not linear in them."""
    if value.uniform or value.op not in ("add", "subtract", "multiply"):
        return ()
    if value.op == "multiply":
        return [arg for arg, factor in zip(value.args, value.args[::-1], strict=True) if factor.uniform]
    return value.args


def _negated(value: Value) -> Value | None:
    """y if the value is 0 − y."""
    return value.args[1] if value.op == "subtract" and _is(value.args[0], 0.0) else None


def _is(value: Value, number: float) -> bool:
    return value.op == "constant" and value.number == number
