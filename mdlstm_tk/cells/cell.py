"""The definition of a cell, and the registry of cells.

    >>> from mdlstm_tk import MDLSTM, Gate, register_cell
    >>> @register_cell("coupled", gates=[Gate("f", start=1.0), Gate("z", "tanh"), Gate("o")])
    ... def coupled(gates, states, output_activation):
    ...     f, z, o = gates
    ...     mean = sum(states["c"]) * (1 / len(states["c"]))
    ...     c = z + f * (mean - z)
    ...     return o * output_activation(c), {"c": c}
    >>> layer = MDLSTM(3, 16, cell="coupled")

From these lines come the float64 reference, the compiled CPU and GPU kernels, their gradients and the nodes
of an ONNX export.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from math import isfinite
from operator import add
from typing import Any, Literal, TypeVar

from mdlstm_tk._util.checks import checked, fit_argument
from mdlstm_tk._util.text import counted
from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.cells.ir import Value, loads, topological_order
from mdlstm_tk.cells.operations import supported
from mdlstm_tk.errors import InputError

GateActivation = Literal["sigmoid", "tanh"]
Role = Literal["input", "forget", "output", "leak"]
Gates = Callable[[int], "tuple[Gate, ...]"]
Equations = Callable[..., tuple[Value, Mapping[str, Value]]]
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
E = TypeVar("E", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Gate:
    """A gate of a cell: n units that see x and h of the predecessors.

    Attributes:
        name: a name for error messages.
        activation: "sigmoid", "tanh", or None: the equations get the pre-activation itself.
        start: the value that its bias starts at; gates with tanh start at U(±1/√n) instead.
        role: its purpose, where that matters outside the equations. Networks with a short memory start
            gates with "forget" nearly closed and those with "leak" nearly open. Peepholes need "input", one
            "forget" for each axis and "output".
    """

    name: str
    activation: GateActivation | None = "sigmoid"
    start: float = 0.0
    role: Role | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise InputError(f"a gate's name must be an identifier, got {self.name!r}")
        fit_argument("activation", self.activation, GateActivation | None)
        fit_argument("role", self.role, Role | None)
        if not isfinite(fit_argument("start", self.start, float)):
            raise InputError(f"start must be a finite number, got {self.start!r}")


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell with G gates of n units.

    Attributes:
        name: what `MDLSTM(cell=...)` calls it.
        gates: from D to the gates, in the order of the parameters' rows.
        equations: see `register_cell`.
        states: the names of its states beside h.
        recurrent: whether gates see h of the predecessors. If not, there is no recurrent product.
        functions: how many functions the equations take after gates and states.
    """

    name: str
    gates: Gates
    equations: Equations
    states: tuple[str, ...]
    recurrent: bool
    functions: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: another process has the cell that is registered there."""
        return get_cell, (self.name,)

    def __deepcopy__(self, memo: Any) -> Cell:
        return self

    @property
    def peephole(self) -> bool:
        """True if the cell can have peepholes."""
        return self.functions == 2

    def gate_index(self, role: Role, ndim: int) -> list[int]:
        """The numbers of the gates with a role."""
        return [k for k, gate in enumerate(self.gates(ndim)) if gate.role == role]

    def norm_rows(self, ndim: int) -> int:
        """The number of values that layer norm normalises: the gates, and that before the output
        activation if the equations have one."""
        return len(self.gates(ndim)) + (self.functions > 0)


BUILT_IN_CELLS = ("graves", "mean", "stable", "leaky", "slstm")
"""The names of the cells that come with the package, whatever is registered later."""

_cells: dict[str, Cell] = {}


@checked
def register_cell(
    name: str,
    *,
    gates: Sequence[Gate] | Callable[[int], Sequence[Gate]],
    states: Sequence[str] = ("c",),
    recurrent: bool = True,
) -> Callable[[E], E]:
    """Define a cell, so that `MDLSTM(cell=name)` and everything else can use it.

    Decorates the forward equations, a function of

    - gates: the activated gates in the given order, (…, n) each; with layer norm each is normalised before
      its activation,
    - states: by name, "h" among them, the D states one step back along each axis, 0 outside the grid,
      (…, n) each,
    - output_activation, which may be left out: tanh, with layer norm a normalisation before it,

    which returns h and the new states by name. They may use `+ - * /`, numbers, and the functions in
    `mdlstm_tk.cells`, which are also methods: `exp`, `log`, `sqrt`, `sign`, `maximum`, `minimum`, `tanh`,
    `sigmoid`, `relu` and `softplus`; and Python's `abs`. torch's functions of these names do the same.

    Args:
        name: the name of the cell. A cell that was registered under it before is replaced.
        gates: the gates, or a function from D to them.
        states: the names of the states beside h.
        recurrent: whether the gates see h of the predecessors; if not, the layer has no `weight_hh`, and
            sweeps skip the recurrent product.

    Equations that take a fourth argument, output_gate, can have peepholes: (o, c) → o, which adds what the
    gate with role "output" sees of the new c, and activates it. They call it once, and use o nowhere else.

    Raises:
        InputError: a cell that comes with the package has that name, or the equations do not fit the gates
            and states, leave a gate unused, or use an operation that is not supported or a number that is
            not finite.
    """

    def register(equations: E) -> E:
        if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
            raise InputError(f"a cell's name must be letters, digits, '-' and '_', got {name!r}")
        if name in BUILT_IN_CELLS and name in _cells:
            raise InputError(f"cell '{name}' comes with the package; choose another name")
        names = tuple(states)
        if "h" in names or len(set(names)) < len(names) or not all(map(str.isidentifier, names)):
            raise InputError(
                f"cell '{name}': states must be distinct names other than 'h', got {', '.join(names)}"
            )
        try:
            signature: Any = inspect.signature(equations)
            takes = [p.kind in _POSITIONAL and p.default is p.empty for p in signature.parameters.values()]
        except (TypeError, ValueError):  # no function, or one that does not say what it takes
            signature, takes = equations, []
        functions = len(takes) - 2
        if functions not in (0, 1, 2) or not all(takes):
            raise InputError(
                f"cell '{name}': equations must be a function of gates, states and perhaps "
                f"output_activation, without defaults, got {signature}"
            )
        cell = Cell(name, _gates_function(gates), equations, names, recurrent, functions)
        check_cell(cell, 2)
        _cells[name] = cell
        return equations

    return register


def cell_names() -> list[str]:
    """The names of all cells that are defined, those that come with the package first."""
    return list(_cells)


def get_cell(name: str) -> Cell:
    """The cell called `name`.

    Raises:
        InputError: there is no such cell.
    """
    if name in _cells:
        return _cells[name]
    raise InputError(not_registered("cell", name, _cells))


@cache
def check_cell(cell: Cell, ndim: int) -> None:
    """Check that the equations can be recorded for D = `ndim` axes.

    Raises:
        InputError: they do not fit the gates or states, leave a gate unused, or use an unsupported
            operation.
    """
    place = f"cell '{cell.name}' with {ndim} {'axis' if ndim == 1 else 'axes'}"
    try:
        definitions = cell.gates(ndim)
    except Exception as error:
        raise InputError(
            f"{place}: gates must be a list of Gate objects or a function from the number of axes to one, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if not definitions or not all(isinstance(gate, Gate) for gate in definitions):
        kinds = ", ".join(type(gate).__name__ for gate in definitions) or "none"
        raise InputError(f"{place}: gates must be Gate objects, such as Gate('f', start=1.0), got {kinds}")
    names = [gate.name for gate in definitions]
    if len(set(names)) < len(names):
        raise InputError(f"{place}: gates must have distinct names, got {', '.join(names)}")
    if cell.peephole:
        roles = [len(cell.gate_index(role, ndim)) for role in ("input", "forget", "output")]
        if roles != [1, ndim, 1] or "c" not in cell.states:
            raise InputError(
                f"{place}: peepholes need a state c and gates with the roles input, forget for each axis, "
                "and output"
            )
    gates = loads("gates", len(names))
    states = {name: loads(name, ndim) for name in ("h", *cell.states)}
    gated: list[Value] = []

    def output_gate(gate: Value, c: Value) -> Value:
        gated.append(gate)
        return Value.load("output", 0)

    functions = (lambda value: value.tanh(), output_gate)[: cell.functions]
    try:
        results = cell.equations(list(gates), states, *functions)
    except InputError as error:
        raise InputError(f"{place}: ", error) from None
    except Exception as error:
        raise InputError(
            f"{place}: its equations fail with {counted(len(names), 'gate')} ({', '.join(names)}) and "
            f"{counted(len(states), 'state')} ({', '.join(states)}) along each axis: "
            f"{type(error).__name__}: {error}; equations may use numbers and {supported()}"
        ) from error
    used = set(topological_order(_check_results(results, cell, place)))
    if not all(isfinite(value.number) for value in used):
        raise InputError(f"{place}: its equations use a number that is not finite")
    if cell.peephole:
        (output,) = cell.gate_index("output", ndim)
        if len(gated) != 1 or gated[0] is not gates[output] or gates[output] in used:
            raise InputError(
                f"{place}: its equations must call output_gate({names[output]}, c) once, and use gate "
                f"{names[output]} nowhere else, since only that activates it"
            )
        used |= {gates[output]}
    unused = [name for name, gate in zip(names, gates, strict=True) if gate not in used]
    if unused:
        raise InputError(
            f"{place}: its equations do not use gate {', '.join(unused)}; remove it from gates"
        )


def _check_results(results: Any, cell: Cell, place: str) -> list[Value]:
    """h and the new states that equations return."""
    expected = ", ".join(f'"{name}": …' for name in cell.states)
    if not isinstance(results, tuple) or len(results) != 2 or not isinstance(results[1], Mapping):
        raise InputError(f"{place}: its equations must return h, {{{expected}}}")
    h, states = results
    if set(states) != set(cell.states):
        raise InputError(
            f"{place}: its equations must return the states {', '.join(cell.states) or 'none'}, "
            f"got {', '.join(map(str, states)) or 'none'}"
        )
    values = [h, *(states[name] for name in cell.states)]
    if not all(isinstance(value, Value) for value in values):
        raise InputError(f"{place}: its equations must compute h and states from gates and states")
    return values


def total(terms: Sequence[T]) -> T:
    """The sum, without the `0 +` that the builtin starts from (a node in an exported graph)."""
    return reduce(add, terms)


def _gates_function(gates: Sequence[Gate] | Callable[[int], Sequence[Gate]]) -> Gates:
    if callable(gates):
        return cache(lambda ndim: tuple(gates(ndim)))
    fixed = tuple(gates)
    return lambda ndim: fixed
