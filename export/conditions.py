"""Conditions that a forward asks of free extents, held to a lattice of grids.

torch records each condition, such as `x.shape[1] < 300`, and captures the branch that the traced grid
takes. A file takes that branch on every grid. So a condition must hold on all grids with extents from
`SMALL` on, all extents together, or the network is refused. Smaller grids, on which it does not hold, are
verified by number.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import sympy
import torch

from mdlstm_tk.io import Array

SMALL = 16  # below, extents are verified by number
MOST = 2**20
DENSE, LONG = 200, 4096  # of two extents: all pairs below, and long ones beside short ones
FEW = (16, 17, 18, 19, 20, 21, 24, 30, 31, 32, 33, 35, 48, 49, 64, 100, 255, 1000)  # of three and more


class Condition(NamedTuple):
    """A condition on extents of x, and the user's line that asks it, if torch knows it."""

    expr: Any
    line: str


class Symbols(NamedTuple):
    """The symbols of torch for the free extents: for each axis of x, the batch first, the expression of its
    extent."""

    axes: Mapping[int, Any]

    def names(self) -> dict[Any, str]:
        return {symbol: f"x.shape[{axis}]" for axis, symbol in self.axes.items()}


def symbols_of(program: torch.export.ExportedProgram, free_axes: Mapping[str, Sequence[int]]) -> Symbols:
    """The symbols of the free axes of x, which comes first."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [placeholders[name].meta["val"].shape for name in program.graph_signature.user_inputs]
    (axes, shape) = next(iter(free_axes.values())), shapes[0]
    return Symbols({axis: _expr(shape[axis]) for axis in axes})


def _expr(extent: Any) -> Any:
    return extent.node.expr if isinstance(extent, torch.SymInt) else sympy.Integer(extent)


def conditions_of(
    program: torch.export.ExportedProgram, free_axes: Mapping[str, Sequence[int]]
) -> list[Condition]:
    """The conditions on the free extents of x. Further inputs have equal extents, axis by axis."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [placeholders[name].meta["val"].shape for name in program.graph_signature.user_inputs]
    environment = next(
        (e.node.shape_env for shape in inputs for e in shape if isinstance(e, torch.SymInt)), None
    )
    if environment is None:
        return []
    first, *_ = free_axes.values()
    equal: dict[Any, Any] = {}
    for shape, axes in zip(inputs, free_axes.values(), strict=True):
        equal |= {_expr(shape[a]): _expr(inputs[0][b]) for a, b in zip(axes, first, strict=False)}
    found = [
        Condition(entry.expr, _line_of(entry))
        for entries in environment.deferred_runtime_asserts.values()
        for entry in entries
    ]
    for expr, bounds in program.range_constraints.items():
        if expr.is_Symbol:
            found.append(Condition(sympy.Ge(expr, bounds.lower), ""))
            if bounds.upper.is_number and bounds.upper < MOST:
                found.append(Condition(sympy.Le(expr, bounds.upper), ""))
    result = []
    for expr, line in found:
        expr = environment.replace(expr)
        expr = expr.xreplace(equal) if hasattr(expr, "xreplace") else sympy.sympify(expr)
        if expr.free_symbols and expr.free_symbols <= {*equal.values()}:  # else of values
            result.append(Condition(expr, line))
    return list(dict.fromkeys(result))


def _line_of(entry: Any) -> str:
    """The user's line in the trace of a condition."""
    summary = entry.stack.summary() if entry.stack else []
    lines = [f for f in summary if "/torch/" not in f.filename and "/mdlstm_tk/" not in f.filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}: {lines[-1].line}" if lines else ""


def refused_condition(
    conditions: Sequence[Condition],
    symbols: Symbols,
    multiples: Mapping[int, int],
    least: Mapping[int, int],
) -> str:
    """The first condition that is false on some grid, in words; "" if there is none.

    Args:
        conditions: of the forward.
        symbols: of the free extents.
        multiples, least: for each free axis of x.
    """
    names = symbols.names()
    for condition in conditions:
        own = [symbol for symbol in names if symbol in condition.expr.free_symbols]
        axes = [axis for symbol in own for axis, other in symbols.axes.items() if other == symbol]
        starts = [2 if axis == 0 else least[axis] for axis in axes]
        numbers = _numbers(condition.expr)
        for lattice in _lattices(starts, [multiples[axis] for axis in axes], numbers):
            wrong = np.flatnonzero(~_holds(condition.expr, own, lattice))
            if len(wrong):
                grid = ", ".join(
                    f"{names[symbol]} = {int(values.reshape(-1)[wrong[0]])}"
                    for symbol, values in zip(own, np.broadcast_arrays(*lattice), strict=True)
                )
                text = str(condition.expr.xreplace({s: sympy.Symbol(name) for s, name in names.items()}))
                return f"{text}, which is false for {grid}" + (
                    f" ({condition.line})" if condition.line else ""
                )
    return ""


def small_grids(
    conditions: Sequence[Condition],
    symbols: Symbols,
    multiples: Mapping[int, int],
    least: Mapping[int, int],
) -> list[dict[int, int]]:
    """Extents of axes, some below `SMALL`, for which a condition is false: for each condition and each
    choice of the small ones, the first and the last."""
    names, found = symbols.names(), []
    for condition in conditions:
        own = [symbol for symbol in names if symbol in condition.expr.free_symbols]
        axes = [axis for symbol in own for axis, other in symbols.axes.items() if other == symbol]
        if axes == [0]:
            continue
        values = [
            np.array(
                [
                    k
                    for k in (*range(1, SMALL), *FEW[:12])
                    if k >= (2 if a == 0 else least[a]) and k % multiples[a] == 0
                ]
            )
            for a in axes
        ]
        lattice = list(np.broadcast_arrays(*np.ix_(*values)))
        wrong = np.flatnonzero(~_holds(condition.expr, own, lattice))
        flat = [part.reshape(-1) for part in lattice]
        groups: dict[tuple[bool, ...], list[int]] = {}
        for k in wrong.tolist():
            groups.setdefault(tuple(bool(part[k] < SMALL) for part in flat), []).append(k)
        for members in groups.values():
            for k in {members[0], members[-1]}:
                found.append({axis: int(part[k]) for axis, part in zip(axes, flat, strict=True)})
    return found


def _numbers(expr: Any) -> set[int]:
    return {abs(int(n)) for n in expr.atoms(sympy.Integer) if 1 < abs(n) < MOST}


def _lattices(starts: Sequence[int], multiples: Sequence[int], numbers: set[int]) -> Iterator[list[Array]]:
    """Extents to evaluate a condition on, as arrays that broadcast: dense in one or two extents, near the
    condition's own numbers and their divisors, sparse in more."""
    near = {n + d for n in numbers for d in (-1, 0, 1, 16, 17, 18, 19)} | {
        n * k for n in numbers for k in (2, 3)
    }
    near |= {n // k for n in numbers for k in range(2, DENSE) if n % k == 0}
    near |= {n // k + d for n in numbers for k in (2, 3, 16, 17) for d in (0, 1)}
    near |= {2**k for k in range(8, 20)}

    def axis(index: int, values: Any) -> Array:
        start, multiple = starts[index], multiples[index]
        return np.array(sorted({v for v in values if start <= v < MOST and v % multiple == 0} or {start}))

    count = len(starts)
    if count == 1:
        yield [axis(0, {*range(1, LONG), *near})]
    elif count == 2:
        yield list(np.ix_(*(axis(k, {*range(1, DENSE), *near}) for k in range(2))))
        yield list(np.ix_(axis(0, range(1, LONG)), axis(1, range(1, 64))))
        yield list(np.ix_(axis(0, range(1, 64)), axis(1, range(1, LONG))))
    else:
        few = {*FEW, *sorted(near)[: 60 if count == 3 else 6], *(range(2, 40) if count == 3 else ())}
        yield list(np.ix_(*(axis(k, {*few, 2 * multiples[k], 3 * multiples[k]}) for k in range(count))))


def _holds(expr: Any, symbols: Sequence[Any], values: Sequence[Array]) -> Any:
    """Whether a condition holds, for extents that broadcast; nowhere if it has an operation that is not
    known here."""
    values = [each.astype(np.int64) for each in np.broadcast_arrays(*values)]
    with np.errstate(all="ignore"):
        try:
            function = sympy.lambdify(list(symbols), expr, modules=[FUNCTIONS, "numpy"])
            return np.broadcast_to(np.asarray(function(*values), bool), values[0].shape)
        except (NameError, TypeError, ValueError, AttributeError):
            return np.zeros(values[0].shape, bool)


def _reduced(function: Any) -> Any:
    return lambda *values: reduce(function, values)


FUNCTIONS: dict[str, Any] = {  # of torch, by their names in expressions
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": np.mod,
    "PythonMod": np.mod,
    "CeilDiv": lambda a, b: -(-a // b),
    "ModularIndexing": lambda a, b, c: a // b % c,
    "IntTrueDiv": np.true_divide,
    "FloatTrueDiv": np.true_divide,
    "ToFloat": lambda a: np.asarray(a, float),
    "TruncToInt": lambda a: np.trunc(a).astype(np.int64),
    "FloorToInt": lambda a: np.floor(a).astype(np.int64),
    "CeilToInt": lambda a: np.ceil(a).astype(np.int64),
    "RoundToInt": lambda a: np.round(a).astype(np.int64),
    "PowByNatural": np.power,
    "FloatPow": np.power,
    "Max": _reduced(np.maximum),
    "Min": _reduced(np.minimum),
    "Where": np.where,
    "Identity": lambda a: a,
}
