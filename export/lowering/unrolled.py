"""The unrolled form: every wavefront of a sweep written out, for one grid and any batch. The tables of
tables.py are constants then."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from mdlstm_tk.export.lowering.faces import Faces
from mdlstm_tk.export.lowering.graph import END, Graph, Value
from mdlstm_tk.export.lowering.scan import Iteration
from mdlstm_tk.export.lowering.step import Rows, Sweep
from mdlstm_tk.export.lowering.tables import ScanTables


class Unrolled:
    """A loop over the wavefronts that is written out; its methods are those of `Scan`. A state has no other
    rows than those of its positions."""

    def __init__(
        self, graph: Graph, sweep: Sweep, rows: Rows, tables: ScanTables, faces: Faces | None
    ) -> None:
        self.graph, self.body, self.dirs, self.rows = graph, graph, sweep.dirs, rows
        self.tables, self.faces, self.ndim, self.wavefront = tables, faces, len(sweep.grid), 0
        self.counts = self._array(tables.counts)[:, 0].tolist()  # T times K
        places = np.argsort(np.atleast_2d(self._joined(tables.orders)), axis=1)  # (dirs, P)
        self.output_rows = graph.constant((places + places.shape[1] * np.arange(self.dirs)[:, None]).T)
        self.states: list[Value] = []  # the parts of the state before; none before the first wavefront,
        if self.ndim == 1:  # but on one axis
            self.states = rows.zeros(tables.state_rows) if faces is None else faces.initial(rows)
        self._made: dict[Hashable, list[Value]] = {}  # values that several wavefronts read

    def run(self, iteration: Iteration) -> list[Value]:
        """As `Scan.run`."""
        kept = list[list[Value]]()
        for wavefront in range(len(self.counts)):
            self.wavefront = wavefront
            with self.graph.scope(f"wavefront_{wavefront}"):
                self.states = iteration()
                others = self.states[1:] if self.faces is not None and self.ndim > 1 else []
                if self.faces is not None and self.faces.are_rows:
                    others = [self.faces.ends(self.graph, value) for value in others]
                kept.append([self.states[0], *others])
        stacked = (self.graph.concat(each, axis=self.rows.axis) for each in zip(*kept, strict=True))
        return [*self.states, *stacked]

    def at(self, name: str, values: Value, table: Value, dtype: np.dtype[Any], features: int) -> Value:
        """As `Scan.at`."""

        def parts() -> list[Value]:
            rows = self.graph("Gather", values, self.graph.constant(self._joined(table).ravel()), axis=0)
            rows = rows if self.dirs == 1 else self.graph.reshape(rows, self.dirs, -1, features)
            return self._by_wavefront(rows, self.rows.axis)

        return self._once(name, parts)[self.wavefront]

    def predecessors(self, d: int, part: int) -> Value:
        """As `Scan.predecessors`."""
        if self.ndim == 1:
            return self.states[part]
        return self._neighbours(d, part) if self.ndim == 2 else self._gathered(d, part)

    def _neighbours(self, d: int, part: int) -> Value:
        """On two axes they are rows of the state, with one outside the grid before or after them."""
        t, axis = self.wavefront, self.rows.axis
        first, end = (int(self._array(each)[t, 0]) for each in self.tables.predecessors[d])
        count = self.counts[t - 1] if t else 0
        outside, pieces = self._outside(d, part), list[Value]()
        if count:
            start, stop = max(first - 1, 0), min(end - 1 - count, 0)  # from its start, and from its end
            bounds = self._offset(start), self._offset(stop) if stop else self.graph.integers(END)
            state = self.states[part]
            pieces = [self.graph.slice(state, *bounds, axis) if start or stop else state]
        pieces = [outside] * (first == 0) + pieces + [outside] * (end > count + 1)
        return self.graph.concat(pieces, axis=axis)

    def _gathered(self, d: int, part: int) -> Value:
        """On three and more axes a table has the rows, after one of zeros."""
        (table,), t = self.tables.predecessors[d], self.wavefront

        def padded() -> list[Value]:
            rows = [self._zeros()[part], *self.states[part : part + 1]]
            return [self.graph.concat(rows, axis=self.rows.axis)]

        def rows() -> list[Value]:
            of_all = self.rows.of_samples(self.graph.constant(self._joined(table)), 1)
            return self._by_wavefront(of_all, 0)

        (state,), here = self._once(("padded", part, t), padded), self._once(("rows", d), rows)[t]
        return self.graph("Gather", state, here, axis=self.rows.axis)

    def _outside(self, d: int, part: int) -> Value:
        """On two axes: the row outside the grid that a wavefront reads along axis d."""
        if self.faces is None:
            return self._zeros()[part]
        lines = self.faces.entering[part][d]  # (T + 1, 1, N, features)

        def split() -> list[Value]:
            count = len(self.counts) + 1
            return self.graph.split(self.graph("Squeeze", lines, self.graph.integers(1)), [1] * count, 0)

        return self._once(("face", d, part), split)[self.wavefront]

    def _zeros(self) -> list[Value]:
        """A row of zeros of each part."""
        return self._once("zeros", lambda: self.rows.zeros(self.graph.integers(1)))

    def _offset(self, positions: int) -> Value:
        """A number of positions as rows."""
        return self._once(positions, lambda: [self.rows.of_positions(self.graph.integers(positions))])[0]

    def _once(self, key: Hashable, make: Callable[[], list[Value]]) -> list[Value]:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _array(self, value: Value) -> np.ndarray:
        array = self.graph.array(value)
        assert array is not None  # as the grid is fixed
        return array

    def _joined(self, table: Value) -> np.ndarray:
        """The columns 0 … K − 1 of a table (T, …, K_max), of all wavefronts side by side: (…, P)."""
        pairs = zip(self._array(table), self.counts, strict=True)
        return np.concatenate([columns[..., :count] for columns, count in pairs], axis=-1)

    def _by_wavefront(self, values: Value, axis: int) -> list[Value]:
        """Rows of all positions by wavefronts."""
        lengths, count = self.rows.of_positions(self.graph.integers(*self.counts)), len(self.counts)
        return self.graph.add_node("Split", count, values, lengths, axis=axis) if count > 1 else [values]
