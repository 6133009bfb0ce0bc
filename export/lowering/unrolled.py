"""A sweep written out step by step for one grid, in standard ONNX ops.

The batch stays free. Each direction is a chain of its own.
"""

from __future__ import annotations

import numpy as np

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Step, Sweep, inside, rows_of_x, signs
from mdlstm_tk.wavefront import Indices, visiting_order, wavefronts


def write_unrolled(graph: Graph, sweep: Sweep) -> Value:
    """Add the sweep's nodes; returns h (N, *grid, dirs, n)."""
    x = rows_of_x(graph, sweep)
    mask = None
    if sweep.sizes is not None:
        axes = np.indices(sweep.grid).reshape(len(sweep.grid), -1)
        mask = inside(graph, [graph.constant(axis) for axis in axes], sweep.sizes)
    outputs = []
    for k, direction in enumerate(sweep.directions):
        with graph.scope(f"direction_{signs(direction)}"):
            outputs.append(_write_direction(graph, sweep, k, x, mask))
    h = graph("Transpose", graph.concat(outputs, axis=-1), perm=[1, 0, 2])  # (N, P, dirs·n)
    return graph.reshape(h, 0, *sweep.grid, len(outputs), sweep.units)


def _write_direction(graph: Graph, sweep: Sweep, k: int, x: Value, mask: Value | None) -> Value:
    """h (P, N, n) of direction k, given x (P, N, C)."""
    front = wavefronts(sweep.grid)
    order = visiting_order(sweep.grid, sweep.directions[k])
    here = graph.constant(order)
    counts = np.diff(front.starts).tolist()
    xs = graph.split(graph("Gather", x, here, axis=0), counts, axis=0)
    masks: list[Value] | list[None] = [None] * len(counts)
    if mask is not None:
        masks = graph.split(graph("Gather", mask, here, axis=0), counts, axis=0)
    step = Step(graph, sweep, k)
    zero_h, zero_c = step.zeros(graph, sweep.x, graph.integers(1))
    h, c = zero_h, zero_c
    outputs = []
    for t in range(len(counts)):
        with graph.scope(f"wavefront_{t}"):
            places = front.predecessors(t)  # (D, K), −1 where there is none
            before = counts[t - 1] if t > 0 else 1
            above_h = _shifted(graph, h, zero_h, places, before)
            above_c = _shifted(graph, c, zero_c, places, before)
            h, c = step(above_h, above_c, xs[t], masks[t])
            outputs.append(h)
    return graph("Gather", graph.concat(outputs, axis=0), graph.constant(np.argsort(order)), axis=0)


def _shifted(graph: Graph, state: Value, zero: Value, places: Indices, count: int) -> list[Value]:
    """For each axis, the states (K, N, n) that lie one step back, given those of the `count` positions of
    the wavefront before. In two dimensions these are runs of rows, with at most a zero before or behind."""
    padded = None
    results = []
    for row in places:
        rows = np.where(row < 0, count, row)
        rows[0] = row[0]
        if (np.diff(rows) == 1).all():
            results.append(_run(graph, state, zero, int(rows[0]), int(rows[-1]) + 1, count))
            continue
        padded = padded or graph.concat([state, zero], axis=0)
        results.append(graph("Gather", padded, graph.constant(np.where(row < 0, count, row)), axis=0))
    return results


def _run(graph: Graph, state: Value, zero: Value, start: int, end: int, count: int) -> Value:
    """Rows start … end − 1 of a state with zeros at −1 and at count."""
    first, last = max(start, 0), min(end, count)
    parts = []
    if start < 0:
        parts.append(zero)
    if first < last:
        whole = (first, last) == (0, count)
        parts.append(state if whole else graph.cut(state, graph.integers(first), graph.integers(last)))
    if end > count:
        parts.append(zero)
    return graph.concat(parts, axis=0)
