"""From a cell to kernels: the graph of one step, and that of its gradient.

The slots of a kernel are the arrays it reads and writes at one position, rows of n numbers each:

    a            pre-activations, G rows
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
from collections.abc import Sequence
from functools import cache
from typing import Literal

from mdlstm_tk.cells.autodiff import SimplifiedGraph, differentiate
from mdlstm_tk.cells.cell import BUILT_IN_CELLS, Cell, get_cell, total
from mdlstm_tk.cells.ir import Kernel, Store, Value, loads
from mdlstm_tk.cells.step import recorded_step
from mdlstm_tk.errors import InputError

Pass = Literal["forward", "backward", "recompute"]


@cache
def pass_kernel(pass_kind: Pass, cell: Cell, ndim: int, present: tuple[str, ...] = ()) -> Kernel:
    """The kernel of one position.

    Args:
        pass_kind: "forward"; "backward", with the gates that forward saved; or "recompute", which is
            "backward" where the slot `gates` holds pre-activations.
        cell: the cell.
        ndim: D.
        present: the names in `CELL_PARAMETERS` of the parameters that are there.
    """
    layer_norm, step = "norm_weight" in present, recorded_step(cell, ndim, present)
    if pass_kind == "forward":
        simplify = SimplifiedGraph().simplify
        stores = [Store("h", 0, simplify(step.h)), *_stores("state", [simplify(s) for s in step.states])]
        saved = step.a if layer_norm else step.gates
        return Kernel([*stores, *_stores("gates", [simplify(value) for value in saved])])

    states = len(cell.states)
    replacements = [(value, Value.load("gates", k)) for k, value in enumerate(step.a)]
    replacements += [(value, Value.load("state", s)) for s, value in enumerate(step.states)]
    if pass_kind == "backward" and not layer_norm:
        replacements += [(gate, Value.load("gates", k)) for k, gate in enumerate(step.gates)]
    reads_h = reads_hidden(cell, ndim)
    incoming = [Value.load("dh", 0), *loads("dh_next", ndim)]
    incoming += loads("dh_read_next", ndim) if reads_h else []
    seeds = [(step.h, total(incoming))]
    for s, value in enumerate(step.states):
        seeds.append((value, total([Value.load("dstate_next", d * states + s) for d in range(ndim)])))
    h_prev = list(step.previous["h"]) if reads_h else []
    state_prev = [step.previous[name][d] for d in range(ndim) for name in cell.states]
    parameters = [row for rows in step.parameters.values() for row in rows]
    gradients = iter(differentiate(seeds, [*step.a, *h_prev, *state_prev, *parameters], replacements))
    stores = _stores("da", [next(gradients) for _ in step.a])
    stores += _stores("dh_read_prev", [next(gradients) for _ in h_prev])
    stores += _stores("dstate_prev", [next(gradients) for _ in state_prev])
    stores += _stores("dparameter", [next(gradients) for _ in parameters], add=True)
    return Kernel(stores)


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


def _stores(slot: str, values: Sequence[Value | None], add: bool = False) -> list[Store]:
    zero = Value.wrap(0.0)
    return [Store(slot, row, zero if value is None else value, add) for row, value in enumerate(values)]
