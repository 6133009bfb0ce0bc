"""The definition of a cell, and the registry of cells.

    >>> from mdlstm_tk import MDLSTM, Gate, register_cell
    >>> @register_cell("coupled", gates=[Gate("f", start=1.0), Gate("z", "tanh"), Gate("o")])
    ... def coupled(gates, states, output_activation):
    ...     f, z, o = gates
    ...     mean = sum(states["c"]) * (1 / len(states["c"]))
    ...     c = z + f * (mean - z)
    ...     return o * output_activation(c), {"c": c}
    >>> layer = MDLSTM(3, 16, cell="coupled")

From these lines come the compiled CPU and GPU kernels, their gradients and the nodes of an ONNX export.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import add
from typing import Any, Literal, TypeVar

from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.cells.graph import Value
from mdlstm_tk.errors import InputError

GateActivation = Literal["sigmoid", "tanh"]
Role = Literal["forget", "leak"]
Gates = Callable[[int], "tuple[Gate, ...]"]
Equations = Callable[..., tuple[Value, Mapping[str, Value]]]
E = TypeVar("E", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Gate:
    """A gate of a cell: n units that see x and h of the predecessors.

    Attributes:
        name: a name for people.
        activation: "sigmoid", "tanh", or None: the equations get the pre-activation itself.
        start: the value that its bias starts at; gates with tanh start at U(±1/√n) instead.
        role: networks with a short memory start gates with "forget" nearly closed and those with "leak"
            nearly open.
    """

    name: str
    activation: GateActivation | None = "sigmoid"
    start: float = 0.0
    role: Role | None = None

    def __post_init__(self) -> None:
        if self.activation not in (None, "sigmoid", "tanh"):
            raise InputError(f"activation must be 'sigmoid', 'tanh' or None, got {self.activation!r}")


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell with G gates of n units. It is pickled by its name.

    Attributes:
        name: what `MDLSTM(cell=...)` calls it.
        gates: from D to the gates, in the order of the parameters' rows.
        equations: see `register_cell`.
        states: the names of its states beside h.
        recurrent: whether gates see h of the predecessors. If not, there is no recurrent product.
        functions: how many functions the equations take after gates and states; the second one, of graves
            alone, is that of `record_step`.
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

    def __deepcopy__(self, memo: object) -> Cell:
        return self  # not the one that has its name now

    @property
    def peephole(self) -> bool:
        """True if the cell can have peepholes."""
        return self.functions == 2

    def norm_rows(self, ndim: int) -> int:
        """The number of values that layer norm normalises: the gates, and that before the output
        activation if the equations have one."""
        return len(self.gates(ndim)) + (self.functions > 0)


BUILT_IN_CELLS = ("graves", "mean", "stable", "leaky", "slstm")
"""The names of the cells that come with the package, whatever is registered later."""

_cells: dict[str, Cell] = {}


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

    which returns h and the new states by name. They may use `+ - * /`, numbers, Python's `abs`, and the
    methods `exp`, `log`, `sqrt`, `sign`, `maximum`, `minimum`, `tanh`, `sigmoid`, `relu` and `softplus`, or
    torch's functions of these names. Where two arguments of `maximum` are equal, each gets half of the
    gradient.

    Args:
        name: the name of the cell. A cell that was registered under it before is replaced; layers that
            exist keep theirs.
        gates: the gates, or a function from D to them.
        states: the names of the states beside h.
        recurrent: whether the gates see h of the predecessors; if not, the layer has no `weight_hh`, and
            sweeps skip the recurrent product.

    Raises:
        InputError: a cell that comes with the package has that name, a name cannot be one, or the equations
            take another number of arguments. What they raise themselves propagates.
    """
    from mdlstm_tk.cells.step import record_step

    def register(equations: E) -> E:
        if name in BUILT_IN_CELLS and name in _cells:
            raise InputError(f"cell '{name}' comes with the package; choose another name")
        names = tuple(states)
        if not name.replace("-", "_").isidentifier() or len({"h", *names}) <= len(names):
            raise InputError(
                f"a cell has a name of letters, digits, '-' and '_', and distinct states other than h, "
                f"got {name!r} with {', '.join(names)}"
            )
        functions = len(inspect.signature(equations).parameters) - 2
        if not 0 <= functions <= (2 if name in BUILT_IN_CELLS else 1):
            raise InputError(f"cell '{name}': equations take gates, states, and maybe output_activation")
        of_axes = cache(lambda ndim: tuple(gates(ndim) if callable(gates) else gates))
        cell = Cell(name, of_axes, equations, names, recurrent, functions)
        record_step(cell, 2)
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


def total(terms: Sequence[T]) -> T:
    """The sum, without the `0 +` that the builtin starts from."""
    return reduce(add, terms)
