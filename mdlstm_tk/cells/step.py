"""One step of a cell, its kernel and that of its gradient.

Every backend and the ONNX export compute what `record_step` records: peepholes, layer norm and activations
around the cell's equations. Notation: D axes, G gates, S states beside h, n hidden units.

The slots of a kernel are the arrays it reads and writes at one position, rows of n numbers each:

    a            pre-activations W x + Σ_d U_d h_d + b, G rows
    h_prev       h one step back along each axis, D rows
    state_prev   the other states there, D·S rows: those of axis 0 first
    parameter    the rows of all parameters in `CELL_PARAMETERS` that are there
    gates        saved by forward for backward: the activated gates, with layer norm the pre-activations
    h, state     new states, 1 and S rows
    dh           gradient of h from the layer's output
    dh_next      gradient of h from the gates of the successor along each axis, D rows
    dh_read_next gradient of h from the equations of the successors, D rows, if equations read h
    dstate_next  gradient of the states from the successors, D·S rows
    da, dh_read_prev, dstate_prev, dparameter   gradients of a, h_prev, state_prev and parameter
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

from mdlstm_tk.cells.cell import BUILT_IN_CELLS, Cell, get_cell, total
from mdlstm_tk.cells.graph import OPERATIONS, Graph, Kernel, Store, Value, gradients
from mdlstm_tk.errors import InputError

Pass = Literal["forward", "backward", "recompute"]
Normalize = Callable[[Value, Value, Value], Value]  # of a value, its scale and its shift

CELL_PARAMETERS: dict[str, Callable[[Cell, int], int]] = {
    "peephole": lambda cell, ndim: 2 * ndim + 1,
    "norm_weight": lambda cell, ndim: cell.norm_rows(ndim),
    "norm_bias": lambda cell, ndim: cell.norm_rows(ndim),
}
"""The parameters of a cell beside its weights and bias, and the number of rows of each, (rows, n).

peephole      weights from c_d to the input gate (D rows), from c_d to forget gate d (D rows), and from the
              new c to the output gate
norm_weight   scale of each gate, then of the value before the output activation
norm_bias     shift, in the same order
"""


class Step(NamedTuple):
    """A recorded step: the new h, the new states in the cell's order, the G activated gates, and the loads
    that it reads: pre-activations, the D previous states by name, "h" among them, and the rows of
    parameters by name."""

    h: Value
    states: list[Value]
    gates: list[Value]
    a: list[Value]
    previous: Mapping[str, list[Value]]
    parameters: Mapping[str, list[Value]]


def record_step(
    cell: Cell,
    ndim: int,
    present: Sequence[str] = (),
    normalize: Normalize | None = None,
    kind: Pass = "forward",
) -> Step:
    """Record the step of a cell.

    Args:
        cell: the cell.
        ndim: D.
        present: the names in `CELL_PARAMETERS` of the parameters that are there.
        normalize: how layer norm is recorded, if not in means.
        kind: the pass it is for. What forward has saved is a load of slot "gates".
    """
    graph, definitions = Graph(), cell.gates(ndim)
    has_norm = "norm_weight" in present
    reads_saved = kind == "backward" and not has_norm
    slot = "a" if kind == "forward" or reads_saved else "gates"
    a = [graph.load(slot, k) for k in range(len(definitions))]
    previous = {"h": [graph.load("h_prev", d) for d in range(ndim)]}
    for s, name in enumerate(cell.states):
        previous[name] = [graph.load("state_prev", d * len(cell.states) + s) for d in range(ndim)]
    parameters: dict[str, list[Value]] = {}
    for name in (name for name in CELL_PARAMETERS if name in present):
        first = sum(map(len, parameters.values()))
        rows = range(first, first + CELL_PARAMETERS[name](cell, ndim))
        parameters[name] = [graph.load("parameter", row) for row in rows]

    def normalized(x: Value, k: int) -> Value:
        if not has_norm:
            return x
        weight, bias = parameters["norm_weight"][k], parameters["norm_bias"][k]
        return graph.normalize(x) * weight + bias if normalize is None else normalize(x, weight, bias)

    def activated(x: Value, k: int) -> Value:
        activation, x = definitions[k].activation, normalized(x, k)
        if not reads_saved:
            return x if activation is None else graph.apply(activation, x)
        y = graph.load("gates", k)
        y.pullback = (
            x,
            lambda dy: dy if activation is None else OPERATIONS[activation].gradient(dy, y, x)[0],
        )
        return y

    pre_activations, output = list(a), None
    if "peephole" in present:
        peephole = parameters["peephole"]
        output = len(a) - 1  # the gates are i, f_1, …, f_D, g, o
        for d, c_d in enumerate(previous["c"]):
            pre_activations[0] += peephole[d] * c_d
            pre_activations[1 + d] += peephole[ndim + d] * c_d
    gates = [x if k == output else activated(x, k) for k, x in enumerate(pre_activations)]

    def output_gate(gate: Value, c: Value) -> Value:  # with peepholes it sees the new c
        if output is None:
            return gate
        gates[output] = activated(gate + peephole[2 * ndim] * c, output)
        return gates[output]

    functions = (lambda x: normalized(x, len(definitions)).tanh(), output_gate)[: cell.functions]
    copies = {name: list(rows) for name, rows in previous.items()}  # which equations may change
    h, new = cell.equations(list(gates), copies, *functions)
    results = [graph.constant(value) for value in (h, *(new[name] for name in cell.states))]
    return Step(results[0], results[1:], gates, a, previous, parameters)


@cache
def _kernels(cell: Cell, ndim: int, present: tuple[str, ...]) -> dict[Pass, Kernel]:
    """All kernels, recorded together: what equations read from outside may change between two passes."""
    forward = record_step(cell, ndim, present)
    saved = forward.a if "norm_weight" in present else forward.gates
    slots = {"h": [forward.h], "state": forward.states, "gates": saved}
    kernels: dict[Pass, Kernel] = {"forward": _kernel(slots)}
    reads_h = any(value.slot == "h_prev" for value in kernels["forward"].values)
    kinds: tuple[Pass, ...] = ("backward", "recompute")
    for kind in kinds:
        kernels[kind] = _gradient(record_step(cell, ndim, present, kind=kind), ndim, reads_h)
    return kernels


def pass_kernel(kind: Pass, cell: Cell, ndim: int, present: tuple[str, ...] = ()) -> Kernel:
    """The kernel of one position: "forward"; "backward", with the gates that forward saved; or "recompute",
    which is "backward" where the slot `gates` holds pre-activations. `present` names the parameters in
    `CELL_PARAMETERS` that are there."""
    return _kernels(cell, ndim, present)[kind]


def _gradient(step: Step, ndim: int, reads_h: bool) -> Kernel:
    graph, states = step.h.graph, len(step.states)
    incoming = [graph.load("dh", 0)]
    for slot in ("dh_next", "dh_read_next") if reads_h else ("dh_next",):
        incoming += [graph.load(slot, d) for d in range(ndim)]
    seeds = [(step.h, total(incoming))]
    for s, value in enumerate(step.states):
        following = [graph.load("dstate_next", d * states + s) for d in range(ndim)]
        seeds.append((value, total(following)))
    names = [name for name in step.previous if name != "h"]
    inputs = {
        "da": step.a,
        "dh_read_prev": step.previous["h"] if reads_h else [],
        "dstate_prev": [step.previous[name][d] for d in range(ndim) for name in names],
        "dparameter": [row for rows in step.parameters.values() for row in rows],
    }
    found = iter(gradients(seeds, [value for values in inputs.values() for value in values]))
    return _kernel({slot: [next(found) for _ in values] for slot, values in inputs.items()})


def _kernel(slots: Mapping[str, Sequence[Value]]) -> Kernel:
    return Kernel(
        [Store(slot, k, value) for slot, values in slots.items() for k, value in enumerate(values)]
    )


@cache
def reads_hidden(cell: Cell, ndim: int) -> bool:
    """Tell whether the equations read h of the predecessors."""
    return any(value.slot == "h_prev" for value in pass_kernel("forward", cell, ndim).values)


@cache
def graph_name(cell: Cell, ndim: int, present: tuple[str, ...]) -> str:
    """The name of a cell in a captured graph, which may run in another process: "graves", or "mine@" and a
    digest of the equations if it can be defined again."""
    if cell.name in BUILT_IN_CELLS:
        return cell.name
    definition = f"{cell.recurrent}\n{pass_kernel('forward', cell, ndim, present).text}"
    return f"{cell.name}@{hashlib.sha256(definition.encode()).hexdigest()[:12]}"


def cell_of_graph(name: str, ndim: int, present: tuple[str, ...]) -> Cell:
    """The cell that `graph_name` names. A name without a digest stands for any equations.

    Raises:
        InputError: there is no such cell, or it has other equations now.
    """
    cell = get_cell(name.partition("@")[0])
    if "@" in name and graph_name(cell, ndim, present) != name:
        raise InputError(
            f"cell '{cell.name}' was defined again, with other equations, after this graph was captured; "
            "capture it again"
        )
    return cell
