"""The scan form: a sweep as one Scan of ONNX over its wavefronts, for any grid.

Each iteration gets x at K_max positions, of which the first K are its own, and pads the states that it
returns to the number of positions that all iterations share (see tables.py).

Whatever is computed outside the body enters it as an input, and inputs and outputs are typed. ONNX asks for
neither, but OpenVINO takes no other Scan. Constants stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mdlstm_tk.export.lowering.faces import Faces
from mdlstm_tk.export.lowering.graph import END, Graph, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Rows, Sweep
from mdlstm_tk.export.lowering.tables import ScanTables

INDEX = np.dtype(np.int64)
Iteration = Callable[[], list[Value]]  # adds the nodes of a wavefront, and returns the parts of its state


class Scan:
    """A loop over the wavefronts whose body is written once. `Unrolled` has the same methods.

    Attributes:
        body: the graph of an iteration.
        output_rows: (P, dirs) the row of each flat position in h of all iterations.
    """

    def __init__(
        self, graph: Graph, sweep: Sweep, rows: Rows, tables: ScanTables, faces: Faces | None
    ) -> None:
        self.graph, self.sweep, self.rows, self.tables, self.faces = graph, sweep, rows, tables, faces
        self.body, self.output_rows = graph.within("body"), tables.output_rows
        self.longest = 1 if len(sweep.grid) == 1 else None  # K_max and L, as far as they are known
        self.states: list[Value] = []  # the parts of the state before
        self._scanned: list[Value] = []
        self._where: dict[int, list[Value]] = {}  # for each axis, where the predecessors are

    def run(self, iteration: Iteration) -> list[Value]:
        """Add all iterations.

        Returns:
            The parts of the state after the last one, h of all, and on two and more axes with faces the
            states beside h, if there are any, see `Faces.final`.
        """
        parts, body, faces = self.sweep.parts, self.body, self.faces
        initial = self.rows.zeros(self.tables.state_rows) if faces is None else faces.initial(self.rows)
        carried = [(dtype, self._shape(self.longest, features)) for features, dtype in parts]
        self.states = [body.add_input(f"state_{k}", d, *shape) for k, (d, shape) in enumerate(carried)]
        if self.longest is None:
            self.count = self._each("count", self.rows.of_positions(self.tables.counts), INDEX, 1)  # K
            pads = self._each("pads", self._pads(), INDEX, 6)
        new = after = iteration()
        if faces is not None and faces.are_rows:
            after = [self._between(faces.entering[k], value, k) for k, value in enumerate(new)]
        if self.longest is None:
            after = [body("Pad", value, pads) for value in after]  # L positions
        outputs = [(value, *each) for value, each in zip(after, carried, strict=True)]
        outputs.append(outputs[0])
        if faces is not None and self.longest is None and len(new) > 1:
            ends = faces.ends(body, new[1]), STATE_DTYPE, self._shape(2, parts[1][0])
            outputs.append(ends if faces.are_rows else outputs[1])
        return self.graph.add_node(
            "Scan",
            len(outputs),
            *initial,
            *self._scanned,
            body=body.proto("step", outputs),
            num_scan_inputs=len(self._scanned),
        )

    def at(self, name: str, values: Value, table: Value, dtype: np.dtype[Any], features: int) -> Value:
        """Rows of the wavefront: values (M, N, features) at what a table (T, [dirs,] K_max) has for it."""
        values = self.graph("Gather", values, table, axis=0)
        if self.sweep.dirs > 1:
            values = self.graph.reshape(values, 0, self.sweep.dirs, -1, features)
        here = self._each(name, values, dtype, *self._shape(self.longest, features))
        return here if self.longest else self.body.slice(here, 0, self.count, self.rows.axis)

    def predecessors(self, d: int, part: int) -> Value:
        """The rows of the predecessors along axis d, of a part of the state."""
        if self.longest is not None:
            return self.states[part]
        if d not in self._where:
            self._where[d] = self._rows_of(*self.tables.predecessors[d], axis=d)
        first, *end = self._where[d]
        if end:
            return self.body.slice(self.states[part], first, end[0], self.rows.axis)
        return self.body("Gather", self.states[part], first, axis=self.rows.axis)

    def _rows_of(self, *where: Value, axis: int) -> list[Value]:
        """What `ScanTables.predecessors` has for an axis, as rows of the wavefront."""
        if len(where) == 2:
            bounds = [self.rows.of_positions(each) for each in where]
            return [self._each(f"rows_{axis}_{k}", each, INDEX, 1) for k, each in enumerate(bounds)]
        table = self._each(f"rows_{axis}", self.rows.of_samples(where[0], 2), INDEX, None)
        return [self.body.slice(table, 0, self.count)]

    def _each(self, name: str, values: Value, dtype: np.dtype[Any], *shape: int | None) -> Value:
        """The part of values (T, *shape) that an iteration gets."""
        self._scanned.append(values)
        return self.body.add_input(name, dtype, *shape)

    def _between(self, faces: Sequence[Value], rows: Value, part: int) -> Value:
        """On two axes: the rows of a wavefront between those of faces that enter at the next one."""
        features, dtype = self.sweep.parts[part]
        first, last = (
            self._each(f"face_{d}_{part}", self.graph.slice(face, 1, END), dtype, 1, None, features)
            for d, face in enumerate(faces)
        )
        return self.body.concat([first, rows, last], axis=0)

    def _shape(self, positions: int | None, features: int) -> tuple[int | None, ...]:
        dirs = self.sweep.dirs
        return (positions, None, features) if dirs == 1 else (dirs, None, features)

    def _pads(self) -> Value:
        """(T, 6) the operand of `Pad` that brings the states of each wavefront to L positions: what to add
        before and after each axis. Where faces are rows of a state, they are there already."""
        graph, rows, missing = self.graph, self.rows, self.tables.missing
        none = missing * graph.integers(0)  # (T, 1)
        before = none + graph.integers(1)
        if self.faces is not None and self.faces.are_rows:
            before, missing = none, missing - graph.integers(1)
        columns = [none] * 6
        columns[rows.axis], columns[rows.axis + 3] = rows.of_positions(before), rows.of_positions(missing)
        return graph.concat(columns, axis=1)
