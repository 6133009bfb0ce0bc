"""The unrolled form: every wavefront of a sweep written out, for one grid and any batch.

Notation: N batch, D grid axes, C input features, n hidden units, P positions, T wavefronts, K positions of
one wavefront, dirs directions; the shapes of rows are those of step.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Rows, Step, Sweep, flatten_x, valid_mask
from mdlstm_tk.wavefront import visiting_order, wavefronts

END = np.iinfo(np.int64).max  # as the end of a slice: all rows to the last one
Selection = tuple[int, int] | np.ndarray  # rows first … end − 1 of a state, or the row of each position


def write_unrolled(graph: Graph, sweep: Sweep) -> Value:
    """Add the nodes of a sweep, and return h (N, *grid, dirs, n)."""
    mask = None
    if sweep.sizes is not None:
        coordinates = np.indices(sweep.grid).reshape(len(sweep.grid), -1)  # (D, P)
        mask = valid_mask(graph, [graph.constant(axis) for axis in coordinates], sweep.sizes)  # (P, N, 1)
    step = Step(graph, sweep)
    states = _States(graph, sweep, step)
    xs = states.of_wavefronts(flatten_x(graph, sweep, mask), step.features)
    masks = [None] * len(xs) if mask is None else states.of_wavefronts(mask, 1)
    h, c = states.zeros
    outputs = []
    for t, (x, valid) in enumerate(zip(xs, masks, strict=True)):
        with graph.scope(f"wavefront_{t}"):
            prev_h = states.predecessors(t, h, states.zeros[0]) if sweep.cell.recurrent else []
            h, c = step(prev_h, states.predecessors(t, c, states.zeros[1]), x, valid)
            outputs.append(h)
    return states.by_position(outputs)


class _States:
    """The states of the wavefronts of one sweep: where they come from, and where they go.

    Attributes:
        zeros: h and c of one position outside the grid.
    """

    def __init__(self, graph: Graph, sweep: Sweep, step: Step) -> None:
        self.graph, self.sweep = graph, sweep
        self.rows = Rows(graph, sweep)
        front = wavefronts(sweep.grid)
        self.counts = np.diff(front.starts)  # (T,) K of each wavefront
        self.orders = np.stack([visiting_order(sweep.grid, d) for d in sweep.directions])  # (dirs, P)
        zero = self.rows.zeros(graph.integers(1), sweep.units)
        self.zeros = (graph.cast(zero, step.dtype) if step.mixed_precision else zero), zero
        self.prev_counts = [1, *self.counts[:-1].tolist()]
        selections = [
            [_selection(indices, count) for indices in front.previous(t)]
            for t, count in enumerate(self.prev_counts)
        ]
        self.selections = self._as_values(selections)
        self.offsets = {  # by number of positions, the number of rows
            k: self.rows.of_positions(graph.integers(k)) for k in _offsets(selections, self.prev_counts)
        }

    def of_wavefronts(self, values: Value, features: int) -> list[Value]:
        """The rows of each wavefront, given values (P, N, features) by flat position."""
        graph = self.graph
        values = graph("Gather", values, graph.constant(self.orders.reshape(-1)), axis=0)
        if self.rows.dirs == 1:
            return graph.split(values, self.counts.tolist(), axis=0)  # T × (K, N, features)
        values = graph.reshape(values, self.rows.dirs, -1, features)
        return self._split(values, self.counts, axis=1)  # T × (dirs, K·N, features)

    def predecessors(self, t: int, state: Value, zero: Value) -> list[Value]:
        """For each axis the states of the predecessors of wavefront t, given those of wavefront t − 1.

        In one and two dimensions the predecessors are consecutive rows, with at most one row of zeros
        before or after them, so that a slice and a concatenation replace the gather.

        Args:
            t: the wavefront.
            state: h or c of wavefront t − 1; `zero` if t is 0.
            zero: h or c of a position outside the grid.
        """
        padded = None
        results = []
        for selection in self.selections[t]:
            if isinstance(selection, Value):
                padded = padded or self.graph.concat([state, zero], axis=self.rows.axis)
                results.append(self.graph("Gather", padded, selection, axis=self.rows.axis))
            else:
                results.append(self._zero_padded(state, zero, *selection, self.prev_counts[t]))
        return results

    def by_position(self, outputs: Sequence[Value]) -> Value:
        """h (N, *grid, dirs, n), given that of each wavefront."""
        graph, (dirs, positions), units = self.graph, self.orders.shape, self.sweep.units
        places = np.argsort(self.orders, axis=1)  # (dirs, P) the visit index of each flat position
        h = graph.concat(outputs, axis=self.rows.axis)
        if dirs == 1:
            h = graph("Gather", h, graph.constant(places[0]), axis=0)  # (P, N, n)
            h = graph("Transpose", h, perm=[1, 0, 2])
        else:
            h = graph.reshape(h, dirs * positions, -1, units)
            places = places + positions * np.arange(dirs)[:, None]
            h = graph("Gather", h, graph.constant(places.T), axis=0)  # (P, dirs, N, n)
            h = graph("Transpose", h, perm=[2, 0, 1, 3])
        return graph.reshape(h, 0, *self.sweep.grid, dirs, units)

    def _as_values(self, selections: list[list[Selection]]) -> list[list[tuple[int, int] | Value]]:
        """Selections whose rows of positions are values of the graph."""
        tables = [part for parts in selections for part in parts if isinstance(part, np.ndarray)]
        if self.rows.dirs == 1:
            values = iter([self.graph.constant(table) for table in tables])
        else:
            values = iter(self._rows_of(tables))
        return [
            [next(values) if isinstance(part, np.ndarray) else part for part in parts]
            for parts in selections
        ]

    def _rows_of(self, tables: Sequence[np.ndarray]) -> list[Value]:
        """For each table (K,) of positions the K·N rows of their samples."""
        if not tables:
            return []
        rows = self.rows.of_samples(self.graph.constant(np.concatenate(tables)), 1)
        return self._split(rows, [len(table) for table in tables], axis=0)

    def _split(self, values: Value, counts: Sequence[int] | np.ndarray, axis: int) -> list[Value]:
        """Split rows by numbers of positions."""
        if len(counts) == 1:
            return [values]
        lengths = self.rows.of_positions(self.graph.integers(*counts))
        return self.graph.add_node("Split", len(counts), values, lengths, axis=axis)

    def _zero_padded(self, state: Value, zero: Value, start: int, end: int, count: int) -> Value:
        """Rows start … end − 1 of a state of `count` positions, where rows −1 and `count` are zero."""
        first, last = max(start, 0), min(end, count)
        parts = []
        if start < 0:
            parts.append(zero)
        if (first, last) == (0, count):
            parts.append(state)
        elif first < last:
            parts.append(self._slice(state, first, last, count))
        if end > count:
            parts.append(zero)
        return self.graph.concat(parts, axis=self.rows.axis)

    def _slice(self, state: Value, first: int, last: int, count: int) -> Value:
        """Rows first … last − 1 of a state of `count` positions."""
        if self.rows.dirs == 1:
            return self.rows.slice(state, self.graph.integers(first), self.graph.integers(last))
        end = self.graph.integers(END) if last == count else self.offsets[last - count]
        return self.rows.slice(state, self.offsets[first], end)


def _selection(indices: np.ndarray, count: int) -> Selection:
    """Where the predecessors along an axis are.

    Args:
        indices: (K,) rows in the state of the wavefront before, −1 outside the grid.
        count: the number of positions of that wavefront.
    """
    rows = np.where(indices < 0, count, indices)  # row `count` is zero
    candidate = rows.copy()
    candidate[0] = indices[0]  # row −1 is zero as well
    consecutive = (np.diff(candidate) == 1).all()
    return (int(candidate[0]), int(candidate[-1]) + 1) if consecutive else rows.astype(np.int64)


def _offsets(selections: Sequence[Sequence[Selection]], counts: Sequence[int]) -> set[int]:
    """The ends of all slices, the far ones counted from the end of the state."""
    ends = set()
    for parts, count in zip(selections, counts, strict=True):
        for part in parts:
            if isinstance(part, tuple):
                ends |= {max(part[0], 0), min(part[1] - count, 0)}
    return ends
