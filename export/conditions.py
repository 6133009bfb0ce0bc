"""Conditions that a forward asks of free extents, held to a lattice of grids.

torch records each condition, such as `x.shape[1] < 300`, and captures the branch that the traced grid
takes. A file takes that branch on every grid. So a condition must hold on all grids with extents from
`SMALL` on, all extents together, or the network is refused. Smaller grids, on which it does not hold, are
verified by number.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import sympy
import torch

from mdlstm_tk.io import Array

SMALL = 16  # below, extents are verified by number
MOST = 2**20
DENSE, LONG = 200, 4096  # of two extents: all pairs below, and long ones beside short ones
FEW = (16, 17, 18, 19, 20, 21, 24, 30, 31, 32, 33, 35, 48, 49, 64, 100, 255, 1000)  # of three and more


@dataclass(frozen=True)
class Conditions:
    """The conditions of a program on the free extents of x.

    Attributes:
        symbols: those of torch for the extents, by the axis of x; the batch is axis 0.
        asked: the conditions, each with the user's line, or "" if torch does not know it.
    """

    symbols: Mapping[int, Any]
    asked: Sequence[tuple[Any, str]]

    @classmethod
    def of(
        cls, program: torch.export.ExportedProgram, free_axes: Mapping[str, Sequence[int]]
    ) -> Conditions:
        """The conditions of a program with these free axes of its inputs, x first; those of further inputs
        are equal to those of x, axis by axis."""
        placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        shapes = [placeholders[name].meta["val"].shape for name in program.graph_signature.user_inputs]
        first, symbols, found = next(iter(free_axes.values())), {}, list[tuple[Any, str]]()
        for axis in first:
            symbols[axis] = expr = expr_of(shapes[0][axis])
            if not expr.is_Symbol:  # torch takes it for a constant
                symbols[axis] = sympy.Symbol(f"extent_{axis}", integer=True)
                found.append((sympy.Eq(symbols[axis], expr), ""))
        equal: dict[Any, Any] = {}
        for shape, axes in zip(shapes, free_axes.values(), strict=True):
            equal |= {expr_of(shape[a]): symbols[b] for a, b in zip(axes, first, strict=False)}
        environments = [e.node.shape_env for e in shapes[0] if isinstance(e, torch.SymInt)]
        for environment in environments[:1]:
            entries = chain.from_iterable(environment.deferred_runtime_asserts.values())
            found += [(environment.replace(entry.expr), _line_of(entry)) for entry in entries]
        for expr, bounds in program.range_constraints.items():
            if expr.is_Symbol:
                found.append((sympy.Ge(expr, bounds.lower), ""))
                if bounds.upper.is_number and bounds.upper < MOST:
                    found.append((sympy.Le(expr, bounds.upper), ""))
        own = {*symbols.values()}  # others are of values
        asked = ((sympy.sympify(expr).xreplace(equal), line) for expr, line in found)
        kept = (each for each in asked if each[0].free_symbols and each[0].free_symbols <= own)
        return cls(symbols, [*dict.fromkeys(kept)])

    def refused(self, least: Mapping[int, int], multiples: Mapping[int, int]) -> str:
        """The first condition that is false on some grid, in words; "" if there is none.

        Args:
            least, multiples: for each free axis of x, its least extent, and what extents are multiples of.
        """
        names = {symbol: sympy.Symbol(f"x.shape[{axis}]") for axis, symbol in self.symbols.items()}
        for expr, line in self.asked:
            axes = self._axes(expr)
            starts, units = [least[axis] for axis in axes], [multiples[axis] for axis in axes]
            for lattice in _lattices(expr, starts, units):
                if wrong := self._false(expr, lattice):
                    grid = ", ".join(
                        f"x.shape[{axis}] = {e}" for axis, e in zip(axes, wrong[0], strict=True)
                    )
                    at = f" ({line})" if line else ""
                    return f"{expr.xreplace(names)}, which is false for {grid}{at}"
        return ""

    def small(self, least: Mapping[int, int], multiples: Mapping[int, int]) -> list[dict[int, int]]:
        """Extents of axes, some below `SMALL`, for which a condition is false: for each condition and each
        choice of the small ones, the first and the last."""
        found = []
        for expr, _ in self.asked:
            axes = self._axes(expr)
            if axes == [0]:
                continue
            values = [
                [k for k in (*range(1, SMALL), *FEW[:12]) if k >= least[a] and k % multiples[a] == 0]
                for a in axes
            ]
            groups: dict[tuple[bool, ...], list[list[int]]] = {}
            for extents in self._false(expr, np.ix_(*map(np.array, values))):
                groups.setdefault(tuple(e < SMALL for e in extents), []).append(extents)
            for group in groups.values():
                found += [dict(zip(axes, extents, strict=True)) for extents in (group[0], group[-1])]
        return found

    def _axes(self, expr: Any) -> list[int]:
        return [axis for axis, symbol in self.symbols.items() if symbol in expr.free_symbols]

    def _false(self, expr: Any, lattice: Sequence[Array]) -> list[list[int]]:
        """The extents of the axes of a condition for which it is false, among arrays that broadcast; all of
        them if it has an operation that is not known here."""
        values = [part.astype(np.int64) for part in np.broadcast_arrays(*lattice)]
        holds: Any = False
        with np.errstate(all="ignore"):
            try:
                symbols = [self.symbols[axis] for axis in self._axes(expr)]
                holds = sympy.lambdify(symbols, expr, modules=[FUNCTIONS, "numpy"])(*values)
            except (NameError, TypeError, ValueError, AttributeError):
                pass
        wrong = ~np.broadcast_to(np.asarray(holds, bool), values[0].shape)
        extents: list[list[int]] = np.stack([part[wrong] for part in values], axis=1).tolist()
        return extents


def expr_of(extent: Any) -> Any:
    """An extent as torch computes it from its symbols, or a number."""
    return extent.node.expr if isinstance(extent, torch.SymInt) else sympy.Integer(int(extent))


def _line_of(entry: Any) -> str:
    """The user's line in the trace of a condition."""
    summary = entry.stack.summary() if entry.stack else []
    lines = [f for f in summary if "/torch/" not in f.filename and "/mdlstm_tk/" not in f.filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}: {lines[-1].line}" if lines else ""


def _lattices(expr: Any, starts: Sequence[int], multiples: Sequence[int]) -> Iterator[Sequence[Array]]:
    """Extents to evaluate a condition on, as arrays that broadcast: dense in one or two extents, near the
    condition's own numbers and their divisors, sparse in more."""
    numbers = {abs(int(n)) for n in expr.atoms(sympy.Integer) if 1 < abs(n) < MOST}
    near = {n + d for n in numbers for d in (-1, 0, 1, 16, 17, 18, 19)} | {2**k for k in range(8, 20)}
    near |= {n * k for n in numbers for k in (2, 3)}
    near |= {n // k for n in numbers for k in range(2, DENSE) if n % k == 0}
    near |= {n // k + d for n in numbers for k in (2, 3, 16, 17) for d in (0, 1)}

    def axis(index: int, values: Any) -> Array:
        start, multiple = starts[index], multiples[index]
        return np.array(sorted({v for v in values if start <= v < MOST and v % multiple == 0} or {start}))

    count = len(starts)
    if count == 1:
        yield [axis(0, {*range(1, LONG), *near})]
    elif count == 2:
        yield np.ix_(*(axis(k, {*range(1, DENSE), *near}) for k in range(2)))
        yield np.ix_(axis(0, range(1, LONG)), axis(1, range(1, 64)))
        yield np.ix_(axis(0, range(1, 64)), axis(1, range(1, LONG)))
    else:
        few = {*FEW, *sorted(near)[: 60 if count == 3 else 6], *(range(2, 40) if count == 3 else ())}
        yield np.ix_(*(axis(k, {*few, 2 * multiples[k], 3 * multiples[k]}) for k in range(count)))


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
