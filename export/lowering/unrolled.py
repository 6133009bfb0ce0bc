"""The unrolled form: every wavefront of a sweep written out, for one grid and any batch.

Each direction becomes a chain of nodes that does not depend on the other directions.

Notation: N batch, D grid axes, C input features, n hidden units, P positions, T wavefronts, K positions of
one wavefront.
"""

from __future__ import annotations

import numpy as np

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Step, Sweep, direction_label, flatten_x, valid_mask
from mdlstm_tk.wavefront import Indices, visiting_order, wavefronts


def write_unrolled(graph: Graph, sweep: Sweep) -> Value:
    """Add the nodes of a sweep, and return h (N, *grid, dirs, n)."""
    mask = None
    if sweep.sizes is not None:
        coordinates = np.indices(sweep.grid).reshape(len(sweep.grid), -1)  # (D, P)
        mask = valid_mask(graph, [graph.constant(axis) for axis in coordinates], sweep.sizes)  # (P, N, 1)
    x = flatten_x(graph, sweep, mask)  # (P, N, C)
    outputs = []
    for dir_idx, direction in enumerate(sweep.directions):
        with graph.scope(f"direction_{direction_label(direction)}"):
            outputs.append(_write_direction(graph, sweep, dir_idx, x, mask))
    h = graph("Transpose", graph.concat(outputs, axis=-1), perm=[1, 0, 2])  # (N, P, dirs·n)
    return graph.reshape(h, 0, *sweep.grid, len(outputs), sweep.units)


def _write_direction(graph: Graph, sweep: Sweep, dir_idx: int, x: Value, mask: Value | None) -> Value:
    """h (P, N, n) of one direction, given x (P, N, C) and mask (P, N, 1)."""
    front = wavefronts(sweep.grid)
    order = visiting_order(sweep.grid, sweep.directions[dir_idx])  # (P)
    order_value = graph.constant(order)
    counts = np.diff(front.starts).tolist()  # K of each wavefront
    xs = graph.split(graph("Gather", x, order_value, axis=0), counts, axis=0)  # T × (K, N, C)
    masks: list[Value] | list[None] = [None] * len(counts)
    if mask is not None:
        masks = graph.split(graph("Gather", mask, order_value, axis=0), counts, axis=0)  # T × (K, N, 1)
    step = Step(graph, sweep, dir_idx)
    zero_h, zero_c = step.initial_state(graph, sweep.x, graph.integers(1))  # (1, N, n)
    h, c = zero_h, zero_c
    recurrent = sweep.cell.recurrent
    outputs = []
    for t in range(len(counts)):
        with graph.scope(f"wavefront_{t}"):
            predecessors = front.previous(t)  # (D, K)
            prev_count = counts[t - 1] if t > 0 else 1
            prev_h = _predecessor_states(graph, h, zero_h, predecessors, prev_count) if recurrent else []
            prev_c = _predecessor_states(graph, c, zero_c, predecessors, prev_count)
            h, c = step(prev_h, prev_c, xs[t], masks[t])
            outputs.append(h)
    inverse_order = graph.constant(np.argsort(order))
    return graph("Gather", graph.concat(outputs, axis=0), inverse_order, axis=0)


def _predecessor_states(
    graph: Graph, state: Value, zero: Value, predecessors: Indices, prev_count: int
) -> list[Value]:
    """For each axis, the states (K, N, n) of the predecessors along it.

    In two dimensions the predecessors are consecutive rows, with at most one zero row before or after
    them, so a slice and a concatenation replace the gather.

    Args:
        graph: the graph to add nodes to.
        state: (prev_count, N, n), the states of the preceding wavefront.
        zero: (1, N, n), the state outside the grid.
        predecessors: (D, K), rows of `state`, −1 outside the grid.
        prev_count: number of positions of the preceding wavefront.
    """
    padded = None
    results = []
    for indices in predecessors:
        rows = np.where(indices < 0, prev_count, indices)  # row prev_count is zero
        candidate = rows.copy()
        candidate[0] = indices[0]  # row −1 is zero as well
        if (np.diff(candidate) == 1).all():
            start, end = int(candidate[0]), int(candidate[-1]) + 1
            results.append(_zero_padded_rows(graph, state, zero, start, end, prev_count))
        else:
            padded = padded or graph.concat([state, zero], axis=0)
            results.append(graph("Gather", padded, graph.constant(rows), axis=0))
    return results


def _zero_padded_rows(graph: Graph, state: Value, zero: Value, start: int, end: int, count: int) -> Value:
    """Rows start … end − 1 of a state (count, N, n), where rows −1 and count are zero."""
    first, last = max(start, 0), min(end, count)
    parts = []
    if start < 0:
        parts.append(zero)
    if first < last:
        is_whole = (first, last) == (0, count)
        parts.append(
            state if is_whole else graph.slice_rows(state, graph.integers(first), graph.integers(last))
        )
    if end > count:
        parts.append(zero)
    return graph.concat(parts, axis=0)
