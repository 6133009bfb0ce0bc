"""A sweep with initial and final states as one ONNX Scan over its wavefronts, for any grid.

Faces are as in `mdlstm_tk.backends.faces`: (N, F, dirs, n), face after face. On two axes a face is never
copied to the positions of the grid: the two rows of a state that lie outside the grid are the rows of the
faces at which the next wavefront enters, and each iteration is given those two. On three and more axes,
each iteration gets the faces at all positions of its wavefront, which takes more memory.

Notation: N batch, D grid axes, C input features, n hidden units, P positions, T wavefronts, K positions of
one wavefront, K_max positions of the largest wavefront, S rows of a state, F lines of all faces, F_d lines
of face d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Rows, Step, Sweep, direction_label, flatten_x
from mdlstm_tk.export.lowering.tables import ScanTables, computed_tables
from mdlstm_tk.wavefront import Direction

INDEX = np.dtype(np.int64)
Results = tuple[Value, Value, Value]  # h of all positions, and h and c of the final states


def write_state_scan(graph: Graph, sweep: Sweep, h_first: Value, c_first: Value) -> Results:
    """Add the nodes of a sweep, and return h (N, *grid, dirs, n) and the final h and c (N, F, dirs, n).

    Args:
        graph: the graph to add nodes to.
        sweep: the sweep, without `sizes`.
        h_first: (N, F, dirs, n), the initial h, in the dtype of the weights.
        c_first: (N, F, dirs, n), the initial c.
    """
    lines = _Lines(graph, sweep)
    x = flatten_x(graph, sweep, None)  # (P, N, C)
    write = {1: _write_1d, 2: _write_2d}.get(len(sweep.grid), _write_nd)
    of_directions = []
    for k, direction in enumerate(sweep.directions):
        with graph.scope(f"direction_{direction_label(direction)}"):
            one = sweep.of_direction(k)
            faces = [
                lines.split(graph("Gather", first, graph.scalar(k), axis=2)) for first in (h_first, c_first)
            ]
            of_directions.append(write(graph, one, computed_tables(graph, one), lines, x, *faces))
    h, h_last, c_last = (
        graph("Transpose", graph.concat(parts, axis=-1), perm=[1, 0, 2])  # (N, P or F, dirs·n)
        for parts in zip(*of_directions, strict=True)
    )
    dirs_and_units = len(sweep.directions), sweep.units
    shape = graph.concat(
        [graph("Shape", sweep.x, start=0, end=-1), graph.integers(*dirs_and_units)], axis=0
    )
    return (
        graph("Reshape", h, shape),
        graph.reshape(h_last, 0, -1, *dirs_and_units),
        graph.reshape(c_last, 0, -1, *dirs_and_units),
    )


class _Lines:
    """The lines of a grid, as tables in the graph that are computed from the shape of x (N, *grid, C)."""

    def __init__(self, graph: Graph, sweep: Sweep) -> None:
        self.graph = graph
        self.ndim = len(sweep.grid)
        self.grid = graph("Shape", sweep.x, start=1, end=1 + self.ndim)  # (D,)
        self.extents = [graph("Shape", sweep.x, start=1 + d, end=2 + d) for d in range(self.ndim)]  # (1,)
        one = graph.integers(1)
        self.counts: list[Value] = []  # F_d of each axis, (1,)
        for d in range(self.ndim):
            count = one
            for axis, extent in enumerate(self.extents):
                count = count if axis == d else count * extent
            self.counts.append(count)

    def split(self, face: Value) -> list[Value]:
        """(N, F, n) → for each axis (F_d, N, n)."""
        graph = self.graph
        rows = graph("Transpose", face, perm=[1, 0, 2])
        if self.ndim == 1:
            return [rows]
        return graph.add_node("Split", self.ndim, rows, graph.concat(self.counts, axis=0), axis=0)

    def of_positions(self, d: int) -> Value:
        """(P,) the line along axis d that each flat position lies on."""
        graph = self.graph
        extents = [graph.integers(1) if axis == d else extent for axis, extent in enumerate(self.extents)]
        lines = graph("Reshape", _arange(graph, self.counts[d]), graph.concat(extents, axis=0))
        return graph.reshape(graph("Expand", lines, self.grid), -1)

    def ends(self, direction: Direction) -> Value:
        """(F,) the flat position at which each line leaves the grid."""
        graph = self.graph
        count = self.extents[0]
        for extent in self.extents[1:]:
            count = count * extent
        positions = graph("Reshape", _arange(graph, count), self.grid)
        faces = []
        for d, sign in enumerate(direction):
            start = self.extents[d] - graph.integers(1) if sign > 0 else graph.integers(0)
            face = graph("Slice", positions, start, start + graph.integers(1), graph.integers(d))
            faces.append(graph.reshape(face, -1))
        return graph.concat(faces, axis=0)


class _Loop:
    """A Scan under construction: its body, and the values outside that enter it.

    Args:
        graph: the graph around the Scan.
        sweep: the sweep, in one direction.
        rows: S, or None if it is computed.
    """

    def __init__(self, graph: Graph, sweep: Sweep, rows: int | None) -> None:
        self.graph, self.body = graph, graph.body()
        self.step = Step(self.body, sweep)
        self.state_shape = (rows, None, sweep.units)  # (S, N, n)
        self.h = self.body.input("h", self.step.dtype, *self.state_shape)
        self.c = self.body.input("c", STATE_DTYPE, *self.state_shape)
        self.scanned: list[Value] = []

    def scan(self, name: str, values: Value, dtype: np.dtype[Any], *shape: int | None) -> Value:
        """The part of `values` (T, *shape) that an iteration gets."""
        self.scanned.append(values)
        return self.body.input(name, dtype, *shape)

    def run(
        self,
        initial: Sequence[Value],
        states: Sequence[Value],
        outputs: Sequence[tuple[Value, np.dtype[Any], Sequence[int | None]]],
    ) -> list[Value]:
        """Close the body, and return the final h and c and the stacked outputs.

        Args:
            initial: h and c before the first iteration, (S, N, n) each.
            states: h and c after an iteration.
            outputs: of an iteration, each with its dtype and shape.
        """
        dtypes = (self.step.dtype, STATE_DTYPE)
        carried = [(s, dtype, self.state_shape) for s, dtype in zip(states, dtypes, strict=True)]
        return self.graph.add_node(
            "Scan",
            2 + len(outputs),
            *initial,
            *self.scanned,
            body=self.body.proto("step", [*carried, *outputs]),
            num_scan_inputs=len(self.scanned),
        )


def _write_1d(
    graph: Graph,
    sweep: Sweep,
    tables: ScanTables,
    lines: _Lines,
    x: Value,
    h_first: Sequence[Value],
    c_first: Sequence[Value],
) -> Results:
    """On one axis the initial and the final states are those of the loop."""
    loop = _Loop(graph, sweep, 1)
    body, step = loop.body, loop.step
    ordered = graph("Gather", x, tables.orders, axis=0)  # (T, 1, N, C)
    x_here = loop.scan("x", ordered, step.dtype, 1, None, step.features)
    h, c = step([loop.h] if sweep.cell.recurrent else [], [loop.c], x_here)
    output = body("Identity", h)
    h_last, c_last, stacked = loop.run(
        [*h_first, *c_first], [h, c], [(output, step.dtype, loop.state_shape)]
    )
    inverse = tables.orders  # (T, 1): a reflection is its own inverse
    rows = graph.reshape(inverse, -1)
    return graph("Gather", _merge_first_axes(graph, stacked), rows, axis=0), h_last, c_last


def _write_2d(
    graph: Graph,
    sweep: Sweep,
    tables: ScanTables,
    lines: _Lines,
    x: Value,
    h_first: Sequence[Value],
    c_first: Sequence[Value],
) -> Results:
    """The state before wavefront t has the row of face 0 at which t enters, the K rows of the wavefront
    before, and the row of face 1. These are the rows that are zero in a sweep without states."""
    direction, (height, width) = sweep.directions[0], lines.extents
    loop = _Loop(graph, sweep, None)
    body, step = loop.body, loop.step
    one = graph.integers(1)
    count = loop.scan("count", tables.counts, INDEX, 1)  # K
    pads = loop.scan("pads", graph("Pad", tables.missing - one, graph.integers(0, 3, 0, 2)), INDEX, 6)
    prev_h: list[Value] = []  # D × (K, N, n)
    prev_c: list[Value] = []
    for d, (first, end) in enumerate(tables.predecessors):
        start, stop = loop.scan(f"first_{d}", first, INDEX, 1), loop.scan(f"end_{d}", end, INDEX, 1)
        for state, found in ((loop.h, prev_h), (loop.c, prev_c)):
            if state is loop.c or sweep.cell.recurrent:
                found.append(body.slice_rows(state, start, stop))
    ordered = graph("Gather", x, tables.orders, axis=0)  # (T, K_max, N, C)
    x_rows = loop.scan("x", ordered, step.dtype, None, None, step.features)
    h, c = step(prev_h, prev_c, body.slice_rows(x_rows, body.integers(0), count))

    # Line k of face 0, which has a line for each column, enters at wavefront k; so does line k of face 1.
    times = _arange(graph, height + width)  # 0 … T
    initial, states = [], []
    for name, new, faces, dtype in (("h", h, h_first, step.dtype), ("c", c, c_first, STATE_DTYPE)):
        entering = []
        for d, face in enumerate(faces):
            extent, sign = lines.extents[1 - d], direction[1 - d]
            line = _mirrored(graph, graph("Min", times, extent - one), sign, extent)
            entering.append(graph("Gather", face, graph("Unsqueeze", line, one), axis=0))  # (T+1, 1, N, n)
        rows = []
        for d, values in enumerate(entering):
            later = graph.slice_rows(values, one, graph.integers(2**31 - 1))
            rows.append(loop.scan(f"{name}_face_{d}", later, dtype, 1, None, sweep.units))
        states.append(body("Pad", body.concat([rows[0], new, rows[1]], axis=0), pads))  # (S, N, n)
        at_first = [graph("Gather", values, graph.scalar(0), axis=0) for values in entering]
        missing = graph("Pad", tables.state_rows - graph.integers(2), graph.integers(3, 2))
        initial.append(graph("Pad", graph.concat(at_first, axis=0), missing))
    ends = body("Gather", c, body.integers(0, -1), axis=0)
    *_, stacked_h, stacked_c = loop.run(
        initial,
        states,
        [
            (body("Identity", states[0]), step.dtype, loop.state_shape),
            (ends, STATE_DTYPE, (2, None, sweep.units)),
        ],
    )
    output_rows = graph("Squeeze", tables.output_rows, one)  # (P,)
    y = graph("Gather", _merge_first_axes(graph, stacked_h), output_rows, axis=0)
    # Line k of face 0 leaves with the last position of wavefront H − 1 + k, line k of face 1 with the first
    # one of W − 1 + k.
    leaving = []
    for d, is_last in enumerate((1, 0)):
        extent, sign = lines.extents[1 - d], direction[1 - d]
        k = _mirrored(graph, _arange(graph, extent), sign, extent)
        leaving.append((k + lines.extents[d] - one) * graph.integers(2) + graph.integers(is_last))
    c_last = graph("Gather", _merge_first_axes(graph, stacked_c), graph.concat(leaving, axis=0), axis=0)
    return y, graph("Gather", y, lines.ends(direction), axis=0), c_last


def _write_nd(
    graph: Graph,
    sweep: Sweep,
    tables: ScanTables,
    lines: _Lines,
    x: Value,
    h_first: Sequence[Value],
    c_first: Sequence[Value],
) -> Results:
    """Each position gets the states of the faces along all axes, and takes them where it has no
    predecessor."""
    order = tables.orders  # (T, K_max)
    loop = _Loop(graph, sweep, None)
    body, step = loop.body, loop.step
    count = loop.scan("count", tables.counts, INDEX, 1)
    after = graph("Pad", tables.missing, graph.integers(0, 3, 0, 2))  # (T, 6)
    pads = loop.scan("pads", after + graph.integers(1, 0, 0, 0, 0, 0), INDEX, 6)

    def first_rows(name: str, values: Value, dtype: np.dtype[Any], *shape: int | None) -> Value:
        return body.slice_rows(loop.scan(name, values, dtype, None, *shape), body.integers(0), count)

    prev_h: list[Value] = []  # D × (K, N, n)
    prev_c: list[Value] = []
    for d, (table,) in enumerate(tables.predecessors):
        rows = first_rows(f"rows_{d}", table, INDEX)
        outside = body("Unsqueeze", body("Equal", rows, body.integers(0)), body.integers(1, 2))  # (K, 1, 1)
        line = graph("Gather", lines.of_positions(d), order)  # (T, K_max)
        for name, state, faces, dtype, found in (
            ("h", loop.h, h_first, step.dtype, prev_h),
            ("c", loop.c, c_first, STATE_DTYPE, prev_c),
        ):
            if name == "c" or sweep.cell.recurrent:
                values = graph("Gather", faces[d], line, axis=0)  # (T, K_max, N, n)
                face = first_rows(f"{name}_face_{d}", values, dtype, None, sweep.units)
                found.append(body("Where", outside, face, body("Gather", state, rows, axis=0)))
    x_rows = graph("Gather", x, order, axis=0)
    h, c = step(prev_h, prev_c, first_rows("x", x_rows, step.dtype, None, step.features))
    states = [body("Pad", value, pads) for value in (h, c)]  # (S, N, n)
    outputs = [body("Identity", state) for state in states]
    zero_c = Rows(graph, sweep).zeros(tables.state_rows, sweep.units)
    *_, stacked_h, stacked_c = loop.run(
        (graph.cast(zero_c, step.dtype) if step.mixed_precision else zero_c, zero_c),
        states,
        [
            (outputs[0], step.dtype, loop.state_shape),
            (outputs[1], STATE_DTYPE, loop.state_shape),
        ],
    )
    output_rows = graph("Squeeze", tables.output_rows, graph.integers(1))  # (P,)
    ends = graph("Gather", output_rows, lines.ends(sweep.directions[0]))  # (F,)
    merged = _merge_first_axes(graph, stacked_h)
    return (
        graph("Gather", merged, output_rows, axis=0),
        graph("Gather", merged, ends, axis=0),
        graph("Gather", _merge_first_axes(graph, stacked_c), ends, axis=0),
    )


def _merge_first_axes(graph: Graph, value: Value) -> Value:
    """(A, B, N, n) → (A·B, N, n)."""
    rest = graph("Shape", value, start=2)
    return graph("Reshape", value, graph.concat([graph.integers(-1), rest], axis=0))


def _mirrored(graph: Graph, coordinates: Value, sign: int, extent: Value) -> Value:
    """Coordinates counted from the other end of an axis if `sign` is −1."""
    return coordinates if sign > 0 else extent - graph.integers(1) - coordinates


def _arange(graph: Graph, end: Value) -> Value:
    """(end,) 0 … end − 1, for an `end` of shape (1,)."""
    scalar_end = graph("Squeeze", end, graph.integers(0))
    return graph("Range", graph.scalar(0), scalar_end, graph.scalar(1))
