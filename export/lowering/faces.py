"""Initial and final states of a sweep in one direction.

States are (N, F, 1, 1 + S, n), as in `mdlstm_tk.states`. On one axis they are those that the
loop starts and ends with. On two axes, each iteration gets the two lines of faces at which the next
wavefront enters, and puts them before and after the rows of its own wavefront, so that a slice reads the
predecessors inside and outside the grid alike. On three and more axes, each iteration gets the faces at all
positions of its wavefront, which takes more memory.

Notation is that of step.py.
"""

from __future__ import annotations

from functools import reduce
from operator import mul

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Rows, Sweep
from mdlstm_tk.export.lowering.tables import ScanTables, mirrored


class Faces:
    """The faces of a grid, as tables in the graph that are computed from the shape of x (N, *grid, C).

    Attributes:
        are_rows: whether two of their rows lie around those of each wavefront.
    """

    def __init__(self, graph: Graph, sweep: Sweep, tables: ScanTables, initial: Value) -> None:
        self.graph, self.sweep, self.tables = graph, sweep, tables
        ndim = len(sweep.grid)
        self.are_rows = ndim == 2
        self.extents = tables.extents
        self.grid = graph.concat(self.extents, axis=0)  # (D,)
        self.counts = [  # F_d of each axis, (1,)
            reduce(mul, [*self.extents[:d], *self.extents[d + 1 :]], graph.integers(1)) for d in range(ndim)
        ]
        features = [features for features, _ in sweep.parts]
        rows = graph("Transpose", graph.reshape(initial, 0, -1, sum(features)), perm=[1, 0, 2])
        parts = graph.split(rows, features, axis=-1)  # (F, N, features) each
        if sweep.dtype != STATE_DTYPE:
            parts[0] = graph.cast(parts[0], sweep.dtype)
        self.parts = [[part] for part in parts]  # for each part and axis (F_d, N, features)
        if ndim > 1:
            counts = graph.concat(self.counts, axis=0)
            self.parts = [graph.add_node("Split", ndim, part, counts, axis=0) for part in parts]
        if self.are_rows:
            # Line k of face 0, which has a line for each column, enters at wavefront k; so does line k of
            # face 1.
            times = graph.arange(self.extents[0] + self.extents[1])  # 0 … T
            lines = [
                self._line(d, graph("Min", times, count - graph.integers(1)))
                for d, count in enumerate(self.counts)
            ]
            self.entering = [
                [
                    graph("Gather", face, graph("Unsqueeze", line, graph.integers(1)), axis=0)
                    for face, line in zip(faces, lines, strict=True)
                ]
                for faces in self.parts
            ]  # for each part and axis (T + 1, 1, N, features)
        elif ndim > 2:
            self.lines = [self._lines_at_positions(d) for d in range(ndim)]  # (T, K_max) each

    def initial(self, rows: Rows) -> list[Value]:
        """Each part of the state before the first wavefront, on up to two axes (L, N, features)."""
        graph, tables = self.graph, self.tables
        if not self.are_rows:
            return (
                rows.zeros(tables.state_rows) if len(self.extents) > 2 else [part for (part,) in self.parts]
            )
        missing = graph("Pad", tables.state_rows - graph.integers(2), graph.integers(3, 2))
        states = []
        for faces in self.entering:
            at_first = [graph("Gather", face, graph.scalar(0), axis=0) for face in faces]
            states.append(graph("Pad", graph.concat(at_first, axis=0), missing))
        return states

    def ends(self, graph: Graph, states: Value) -> Value:
        """The rows of the first and the last position of a wavefront."""
        return graph("Gather", states, graph.integers(0, -1), axis=0)

    def padded(self, d: int, part: int) -> Value:
        """On three and more axes: (1 + F_d, N, features), a row of zeros, and the states of face d."""
        graph = self.graph
        return graph("Pad", self.parts[part][d], graph.integers(1, 0, 0, 0, 0, 0))

    def final(self, h: Value, states: Value | None, output_rows: Value) -> Value:
        """(N, F, 1, 1 + S, n), the final states.

        Args:
            h: (N, P, 1, n).
            states: those beside h, None if the cell has none: on one axis after the last wavefront,
                (1, N, features); on two axes at the first and the last position of each wavefront,
                (T, 2, N, features); on more at all positions, (T, L, N, features).
            output_rows: (P, 1) the row of each flat position in these.
        """
        graph, units = self.graph, self.sweep.units
        exits = self._exit_positions()
        last = graph("Gather", h, exits, axis=1)  # (N, F, 1, n)
        if self.sweep.dtype != STATE_DTYPE:
            last = graph.cast(last, STATE_DTYPE)
        if states is not None:
            if len(self.extents) > 1:
                features = graph("Shape", states, start=-2)
                flat = graph("Reshape", states, graph.concat([graph.integers(-1), features], axis=0))
                states = graph("Gather", flat, self._exit_rows(exits, output_rows), axis=0)
            others = graph("Transpose", states, perm=[1, 0, 2])  # (N, F, S·n)
            last = graph.concat([graph.reshape(last, 0, 0, units), others], axis=-1)
        return graph.reshape(last, 0, 0, 1, -1, units)

    def _line(self, d: int, coordinates: Value) -> Value:
        """On two axes: lines of face d, counted from the corner that the sweep starts from."""
        return mirrored(self.graph, coordinates, self.sweep.directions[0][1 - d], self.counts[d])

    def _lines_at_positions(self, d: int) -> Value:
        """(T, K_max) one more than the line along axis d on which each position lies that has no
        predecessor along it; 0 for the others."""
        graph, tables = self.graph, self.tables
        extents = [graph.integers(1) if axis == d else extent for axis, extent in enumerate(self.extents)]
        lines = graph("Reshape", graph.arange(self.counts[d]), graph.concat(extents, axis=0))
        lines = graph.reshape(graph("Expand", lines, self.grid), -1)  # (P,)
        at_positions = graph("Gather", lines, tables.orders) + graph.integers(1)
        zero = graph.integers(0)
        return graph("Where", graph("Equal", tables.predecessors[d][0], zero), at_positions, zero)

    def _exit_positions(self) -> Value:
        """(F,) the flat position at which each line leaves the grid."""
        graph = self.graph
        positions = graph("Reshape", graph.arange(reduce(mul, self.extents)), self.grid)
        faces = []
        for d, sign in enumerate(self.sweep.directions[0]):
            start = self.extents[d] - graph.integers(1) if sign > 0 else graph.integers(0)
            face = graph.slice(positions, start, start + graph.integers(1), axis=d)
            faces.append(graph.reshape(face, -1))
        return graph.concat(faces, axis=0)

    def _exit_rows(self, exits: Value, output_rows: Value) -> Value:
        """(F,) for each line the row of its last position in the states of all wavefronts, see `final`."""
        graph = self.graph
        if not self.are_rows:
            rows = graph("Squeeze", output_rows, graph.integers(1))  # (P,)
            return graph("Gather", rows, exits)
        # Line k of face 0 leaves with the last position of wavefront H − 1 + k, line k of face 1 with the
        # first one of W − 1 + k.
        of_faces = []
        for d, is_last in enumerate((1, 0)):
            k = self._line(d, graph.arange(self.counts[d]))
            front = k + self.extents[d] - graph.integers(1)
            of_faces.append(front * graph.integers(2) + graph.integers(is_last))
        return graph.concat(of_faces, axis=0)
