"""What a cell is, and the registry of cells.

    >>> from mdlstm_tk import MDLSTM, register_cell
    >>> @register_cell("coupled", gates=("f", "g", "o"), start={"f": 1.0})
    ... def coupled(gates, c, output_activation):
    ...     f, g, o = gates
    ...     kept = sum(c) * (1 / len(c))
    ...     c_new = g + f * (kept - g)
    ...     return o * output_activation(c_new), c_new
    >>> layer = MDLSTM(3, 16, cell="coupled")

From these lines come the float64 reference, the compiled CPU and GPU kernels, their gradients and the nodes
of an ONNX export.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mdlstm_tk._util.user_code import import_file, split_reference
from mdlstm_tk.cells.ir import Value as RecordedValue
from mdlstm_tk.cells.ir import loads, topological_order
from mdlstm_tk.errors import InputError

Value = Any  # a torch tensor, a value of `mdlstm_tk.cells.ir`, or a value in an ONNX graph
Values = Sequence[Value]
Activation = Callable[[Value], Value]
OutputGate = Callable[[Value, Value], Value]
Equations = Callable[..., tuple[Value, Value]]
E = TypeVar("E", bound=Equations)

LAYER_NORM_EPS = 1e-5
TANH_GATE = "g"

_cells: dict[str, Cell] = {}


@dataclass(frozen=True)
class Cell:
    """A recurrent cell with G gates of n units.

    Attributes:
        name: what `MDLSTM(cell=...)` calls it.
        gates: from D to the names of the gates, in the order of the parameters' rows. The gate named "g" is
            activated by tanh, all others by sigmoid.
        equations: (gates, c, output_activation) → (h, c_new), see `register_cell`.
        start: from a gate's name and D to the value that its bias starts at.
        peephole: whether the equations take a fourth argument, (output gate, c_new) → output gate, and the
            cell can have peepholes: from c[d] to gate 0 and to gate 1 + d, from c_new to the last gate.
        recurrent: whether gates see h of the predecessors. If not, there is no recurrent product.
    """

    name: str
    gates: Callable[[int], tuple[str, ...]]
    equations: Equations
    start: Callable[[str, int], float]
    peephole: bool = False
    recurrent: bool = True

    def step(
        self, gates: Values, c: Values, output_activation: Activation, apply_output_gate: OutputGate
    ) -> tuple[Value, Value]:
        """h and c_new from activated gates and the cell states one step back along each axis."""
        if self.peephole:
            return self.equations(gates, c, output_activation, apply_output_gate)
        return self.equations(gates, c, output_activation)


def register_cell(
    name: str,
    *,
    gates: Sequence[str] | Callable[[int], Sequence[str]],
    start: Mapping[str, float] | Callable[[str, int], float] | None = None,
    recurrent: bool = True,
    peephole: bool = False,
) -> Callable[[E], E]:
    """Define a cell, so that `MDLSTM(cell=name)` and everything else can use it.

    Decorates the forward equations, a function of

    - gates: the activated gates in the given order, (…, n) each; "g" is activated by tanh, all others by
      sigmoid, and with layer norm each is normalised before,
    - c: the D cell states one step back along each axis, 0 outside the grid, (…, n) each,
    - output_activation: tanh, with layer norm a normalisation before it,

    which returns (h, c_new). They may use `+`, `-`, `*`, numbers, and `.tanh()` and `.sigmoid()` of values.

    Args:
        name: a name that no other cell has.
        gates: the names of the gates, or a function from D to them.
        start: start values of the biases, by gate or as a function of the gate's name and D; 0 if not
            given.
        recurrent: whether the gates see h of the predecessors; if not, the layer has no `weight_hh`, and
            sweeps skip the recurrent product.
        peephole: whether the equations take a fourth argument, see `Cell`.

    Raises:
        InputError: the name is taken, or the equations do not fit the gates, leave a gate unused, or use an
            operation that is not supported.
    """

    def register(equations: E) -> E:
        if name in _cells:
            raise InputError(f"cell '{name}' is defined already; choose another name")
        if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
            raise InputError(f"a cell's name must be letters, digits, '-' and '_', got '{name}'")
        cell = Cell(name, _gate_names(gates), equations, _start_values(start), peephole, recurrent)
        check_cell(cell, 2)
        _cells[name] = cell
        return equations

    return register


def cell_names() -> list[str]:
    """The names of all cells that are defined, those that come with the package first."""
    return list(_cells)


def get_cell(name: str) -> Cell:
    """The cell called `name`. For "file.py:name", run the file, which must define the cell.

    Raises:
        InputError: there is no such cell, or the file cannot be run.
    """
    cell = _cells.get(name)
    if cell is not None:
        return cell
    file, inner = split_reference(name)
    if file is None:
        guesses = difflib.get_close_matches(name, _cells, n=1)
        hint = f"; did you mean '{guesses[0]}'?" if guesses else ""
        raise InputError(f"cell must be one of {', '.join(_cells)} or file.py:name, got {name!r}{hint}")
    return _from_file(file, inner)


def _from_file(file: Path, name: str) -> Cell:
    import_file(file)
    if name not in _cells:
        raise InputError(
            f"{file} defines no cell '{name}'; decorate its equations with @register_cell('{name}', …)"
        )
    return _cells[name]


@cache
def check_cell(cell: Cell, ndim: int) -> None:
    """Check that the equations can be recorded for D = `ndim` axes.

    Raises:
        InputError: they do not fit the gates, leave a gate unused, or use an unsupported operation.
    """
    names = cell.gates(ndim)
    place = f"cell '{cell.name}' with {ndim} {'axis' if ndim == 1 else 'axes'}"
    if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise InputError(f"{place}: gates must have distinct names, got {', '.join(names) or 'none'}")
    gates, c = loads("gates", len(names)), loads("c", ndim)
    try:
        results = cell.step(list(gates), list(c), RecordedValue.tanh, lambda gate, _: gate)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except Exception as error:
        raise InputError(
            f"{place}: its equations fail with {len(names)} gates ({', '.join(names)}) and {ndim} states: "
            f"{type(error).__name__}: {error}; equations may use +, -, *, numbers, and .tanh() and "
            ".sigmoid() of values"
        ) from error
    if (
        not isinstance(results, tuple)
        or len(results) != 2
        or not all(isinstance(r, RecordedValue) for r in results)
    ):
        raise InputError(f"{place}: its equations must return (h, c_new)")
    used = set(map(id, topological_order(results)))
    unused = [name for name, gate in zip(names, gates, strict=True) if id(gate) not in used]
    if unused:
        raise InputError(
            f"{place}: its equations do not use gate {', '.join(unused)}; remove it from gates"
        )


def total(terms: Values) -> Value:
    """The sum, without the `0 +` that the builtin starts from (a node in an exported graph)."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def _gate_names(gates: Sequence[str] | Callable[[int], Sequence[str]]) -> Callable[[int], tuple[str, ...]]:
    if callable(gates):
        return cache(lambda ndim: tuple(gates(ndim)))
    fixed = tuple(gates)
    return lambda ndim: fixed


def _start_values(
    start: Mapping[str, float] | Callable[[str, int], float] | None,
) -> Callable[[str, int], float]:
    if callable(start):
        return start
    values = dict(start or {})
    return lambda gate, ndim: values.get(gate, 0.0)
