"""A sweep with initial and final states, every wavefront written out, for one grid.

Faces are as in `mdlstm_tk.backends.faces`: (N, F, dirs, n), face after face.

Notation: N batch, n hidden units, P positions, T wavefronts, K positions of one wavefront, F lines of all
faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np

from mdlstm_tk.backends.faces import line_counts
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Step, Sweep, direction_label, flatten_x
from mdlstm_tk.wavefront import Direction, Indices, visiting_order, wavefronts

Results = tuple[Value, Value, Value]  # h of all positions, and h and c of the final states


def write_state_unrolled(graph: Graph, sweep: Sweep, h_first: Value, c_first: Value) -> Results:
    """Add the nodes of a sweep, and return h (N, *grid, dirs, n) and the final h and c (N, F, dirs, n).

    Args:
        graph: the graph to add nodes to.
        sweep: the sweep, without `sizes`.
        h_first: (N, F, dirs, n), the initial h, in the dtype of the weights.
        c_first: (N, F, dirs, n), the initial c.
    """
    x = flatten_x(graph, sweep, None)  # (P, N, C)
    of_directions = []
    for k, direction in enumerate(sweep.directions):
        with graph.scope(f"direction_{direction_label(direction)}"):
            faces = [
                graph("Transpose", graph("Gather", first, graph.scalar(k), axis=2), perm=[1, 0, 2])
                for first in (h_first, c_first)
            ]  # (F, N, n)
            of_directions.append(_write_direction(graph, sweep.of_direction(k), x, *faces))
    dirs_and_units = len(sweep.directions), sweep.units
    h, h_last, c_last = (
        graph("Transpose", graph.concat(parts, axis=-1), perm=[1, 0, 2])  # (N, P or F, dirs·n)
        for parts in zip(*of_directions, strict=True)
    )
    return (
        graph.reshape(h, 0, *sweep.grid, *dirs_and_units),
        graph.reshape(h_last, 0, -1, *dirs_and_units),
        graph.reshape(c_last, 0, -1, *dirs_and_units),
    )


def _write_direction(graph: Graph, sweep: Sweep, x: Value, h_first: Value, c_first: Value) -> Results:
    """h (P, N, n), and the final h and c (F, N, n)."""
    grid, (direction,) = sweep.grid, sweep.directions
    front, order = wavefronts(grid), visiting_order(grid, direction)
    counts = np.diff(front.starts).tolist()  # K of each wavefront
    xs = graph.split(graph("Gather", x, graph.constant(order), axis=0), counts, axis=0)  # T × (K, N, C)
    step, lines = Step(graph, sweep), _lines_of_positions(grid)[:, order]
    h, c = h_first, c_first
    of_h, of_c = [], []
    for t, x_here in enumerate(xs):
        with graph.scope(f"wavefront_{t}"):
            predecessors, entering = front.previous(t), lines[:, front.slice(t)]
            prev_h, prev_c = (
                [_rows(graph, state, face, *axis) for axis in zip(predecessors, entering, strict=True)]
                for state, face in ((h, h_first), (c, c_first))
            )
            h, c = step(prev_h if sweep.cell.recurrent else [], prev_c, x_here)
        of_h.append(h)
        of_c.append(c)
    visits = np.argsort(order)  # of each flat position
    ends = graph.constant(visits[_leaving(grid, direction)])
    all_h = graph.concat(of_h, axis=0)
    return (
        graph("Gather", all_h, graph.constant(visits), axis=0),
        graph("Gather", all_h, ends, axis=0),
        graph("Gather", graph.concat(of_c, axis=0), ends, axis=0),
    )


def _rows(graph: Graph, state: Value, face: Value, rows: Indices, lines: Indices) -> Value:
    """The states (K, N, n) of the predecessors along one axis.

    Args:
        graph: the graph to add nodes to.
        state: the states of the wavefront before.
        face: (F, N, n).
        rows: (K,) of `state`, or −1 where a position is entered from the face.
        lines: (K,) the rows of `face` for these positions.
    """
    outside = rows < 0
    cuts = np.flatnonzero(np.diff(outside)) + 1  # between positions of the grid and of the face
    parts = []
    for start, end in pairwise([0, *cuts.tolist(), len(rows)]):
        source, table = (face, lines) if outside[start] else (state, rows)
        parts.append(_selected(graph, source, table[start:end]))
    return graph.concat(parts, axis=0)


def _selected(graph: Graph, source: Value, table: Indices) -> Value:
    """Rows of the first axis; ONNX Runtime copies consecutive ones faster."""
    first, end = int(table[0]), int(table[-1]) + 1
    if np.array_equal(table, np.arange(first, end)):
        return graph.slice_rows(source, graph.integers(first), graph.integers(end))
    return graph("Gather", source, graph.constant(table.astype(np.int64)), axis=0)


def _lines_of_positions(grid: Sequence[int]) -> Indices:
    """(D, P) for each axis the line, among those of all faces, that a flat position lies on."""
    first, tables = 0, []
    positions = np.arange(prod(grid))
    for d, count in enumerate(line_counts(grid)):
        stride = prod(grid[d + 1 :])
        tables.append(first + positions // (grid[d] * stride) * stride + positions % stride)
        first += count
    return np.stack(tables)


def _leaving(grid: Sequence[int], direction: Direction) -> Indices:
    """(F,) the flat position at which each line leaves the grid."""
    positions = np.arange(prod(grid)).reshape(grid)
    faces = [positions.take(-1 if sign > 0 else 0, axis=d) for d, sign in enumerate(direction)]
    return np.concatenate([face.reshape(-1) for face in faces])
