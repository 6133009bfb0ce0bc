"""The unrolled form: every wavefront of a sweep written out, for one grid and any batch.

Without initial states each wavefront has a border of one position outside the grid, whose state is zero.
With them, its border has the states that enter at it: one row for each of its positions and axes without a
predecessor. Lines of faces are numbered as in `mdlstm_tk.states`.

Notation, parts of a state, and the shapes of rows are those of step.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import NamedTuple

import numpy as np

from mdlstm_tk.export.lowering.graph import END, Graph, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Rows, Step, Sweep, flatten_x, valid_mask
from mdlstm_tk.states import line_counts
from mdlstm_tk.wavefront import Direction, Indices, wavefronts


class Piece(NamedTuple):
    """A range of positions among those of the wavefront before, or of the border.

    Attributes:
        source: 0 for the wavefront before, −1 for the border.
        first, end: the range, as `Slice` takes it.
        is_whole: it holds all positions of its source.
    """

    source: int
    first: int
    end: int
    is_whole: bool


def write_unrolled(graph: Graph, sweep: Sweep) -> list[Value]:
    """Add the nodes of a sweep.

    Returns:
        h (N, *grid, dirs, n), and with initial states the final ones (N, F, dirs, 1 + S, n).
    """
    mask = None
    if sweep.sizes is not None:
        coordinates = np.indices(sweep.grid).reshape(len(sweep.grid), -1)  # (D, P)
        mask = valid_mask(graph, [graph.constant(axis) for axis in coordinates], sweep.sizes)  # (P, N, 1)
    step = Step(graph, sweep)
    states = _States(graph, sweep)
    xs = states.of_wavefronts(flatten_x(graph, sweep), sweep.features)
    masks = [None] * len(xs) if mask is None else states.of_wavefronts(mask, 1)
    parts: list[Value] = []  # of the wavefront before
    results = []
    for t, (x, valid) in enumerate(zip(xs, masks, strict=True)):
        with graph.scope(f"wavefront_{t}"):
            previous = [
                states.predecessors(t, k, parts) if k or step.reads_h else []
                for k in range(len(sweep.parts))
            ]
            parts = step(previous, x, valid)
            results.append(parts)
    needed = 1 if sweep.initial is None else len(sweep.parts)
    rows_in_order = [
        graph.concat([parts[k] for parts in results], axis=states.rows.axis) for k in range(needed)
    ]
    h = states.gather_samples(rows_in_order[0], states.places, sweep.units)
    y = graph.reshape(h, 0, *sweep.grid, sweep.dirs, sweep.units)
    return [y] if sweep.initial is None else [y, states.final(rows_in_order)]


class _States:
    """The states of the wavefronts of one sweep: where they come from, and where they go."""

    def __init__(self, graph: Graph, sweep: Sweep) -> None:
        self.graph, self.sweep, self.rows = graph, sweep, Rows(graph, sweep)
        self.front = front = wavefronts(sweep.grid, sweep.directions)
        self.orders = front.order.astype(np.int64)  # (dirs, P)
        self.places = np.argsort(self.orders, axis=1)  # (dirs, P) the visit index of each flat position
        self.counts = np.diff(front.starts)  # (T,) K of each wavefront
        self.border_rows = np.zeros_like(front.predecessors)  # (D, P) row in the border, by visit index
        self.border_counts = np.ones_like(self.counts)  # (T,)
        if sweep.initial is None:
            self.borders = [[zero] * len(front) for zero in self.rows.zeros(graph.integers(1))]
        else:
            self.borders = self._enter(sweep.initial)
        self.pieces: list[list[list[Piece]]] = []  # for each wavefront and axis
        far: dict[tuple[int, int], Indices] = {}  # for those without pieces the rows, (K,) positions each
        for t, count in enumerate([0, *self.counts[:-1].tolist()]):
            rows = front.previous(t)
            # Row k of the border comes after all rows of the wavefront before.
            tables = np.where(rows < 0, count + self.border_rows[:, front.slice(t)], rows)  # (D, K)
            self.pieces.append([_pieces(table, count, int(self.border_counts[t])) for table in tables])
            far |= {(t, d): tables[d] for d, pieces in enumerate(self.pieces[t]) if not pieces}
        self.tables = dict(zip(far, self._rows_of(list(far.values())), strict=True))
        all_pieces = chain.from_iterable(chain.from_iterable(self.pieces))
        offsets = {offset for piece in all_pieces for offset in (piece.first, piece.end)}
        self.offsets = {k: self.rows.of_positions(graph.integers(k)) for k in offsets - {END}}
        self.offsets[END] = graph.integers(END)

    def of_wavefronts(self, values: Value, features: int) -> list[Value]:
        """The rows of each wavefront, given values (P, N, features) by flat position."""
        return self._split(self._gather_rows(values, self.orders, features), self.counts)

    def predecessors(self, t: int, part: int, before: Sequence[Value]) -> list[Value]:
        """For each axis a part of the states of the predecessors of wavefront t.

        In one and two dimensions the predecessors are consecutive rows, with a row of the border before or
        after them, so that a slice and a concatenation replace the gather.

        Args:
            t: the wavefront.
            part: the number of the part.
            before: the parts of wavefront t − 1; empty if t is 0.
        """
        sources = [*before[part : part + 1], *self.borders[part][t : t + 1]]
        graph, axis = self.graph, self.rows.axis
        padded = None
        results = []
        for d, pieces in enumerate(self.pieces[t]):
            if pieces:
                results.append(graph.concat([self._slice(sources, piece) for piece in pieces], axis=axis))
            else:
                padded = padded or graph.concat(sources, axis=axis)
                results.append(graph("Gather", padded, self.tables[t, d], axis=axis))
        return results

    def _slice(self, sources: Sequence[Value], piece: Piece) -> Value:
        """The rows of a piece."""
        rows = sources[piece.source]
        if piece.is_whole:
            return rows
        return self.graph.slice(rows, self.offsets[piece.first], self.offsets[piece.end], self.rows.axis)

    def gather_samples(self, rows_in_order: Value, table: Indices, features: int) -> Value:
        """(N, M, features), or (N, M, dirs, features), from the rows of all wavefronts and a table
        (dirs, M) of visit indices."""
        graph, (dirs, positions) = self.graph, self.orders.shape
        if dirs == 1:
            rows = graph("Gather", rows_in_order, graph.constant(table[0]), axis=0)  # (M, N, features)
            return graph("Transpose", rows, perm=[1, 0, 2])
        rows = graph.reshape(rows_in_order, dirs * positions, -1, features)
        table = table + positions * np.arange(dirs)[:, None]
        rows = graph("Gather", rows, graph.constant(table.T), axis=0)  # (M, dirs, N, features)
        return graph("Transpose", rows, perm=[2, 0, 1, 3])

    def final(self, rows_in_order: Sequence[Value]) -> Value:
        """(N, F, dirs, 1 + S, n), given the rows of all wavefronts of each part."""
        graph, sweep = self.graph, self.sweep
        exits = np.stack([_exit_positions(sweep.grid, d) for d in sweep.directions])  # (dirs, F)
        table = np.take_along_axis(self.places, exits, axis=1)
        parts = [
            self.gather_samples(part, table, features)
            for part, (features, _) in zip(rows_in_order, sweep.parts, strict=True)
        ]
        if sweep.dtype != STATE_DTYPE:
            parts[0] = graph.cast(parts[0], STATE_DTYPE)
        return graph.reshape(graph.concat(parts, axis=-1), 0, exits.shape[1], sweep.dirs, -1, sweep.units)

    def _enter(self, initial: Value) -> list[list[Value]]:
        """For each part the borders of the first wavefronts, those at which states enter; it also finds
        the places in them."""
        graph, sweep, front = self.graph, self.sweep, self.front
        axis, visit = np.nonzero(front.predecessors < 0)
        of_front = np.searchsorted(front.starts, visit, side="right") - 1
        order = np.lexsort((visit, axis, of_front))
        axis, visit, of_front = axis[order], visit[order], of_front[order]  # (F,) each
        self.border_counts = np.bincount(of_front, minlength=len(front))
        first = np.cumsum(self.border_counts) - self.border_counts
        self.border_rows[axis, visit] = np.arange(len(visit)) - first[of_front]
        lines = _lines_of_positions(sweep.grid)[axis, self.orders[:, visit]]  # (dirs, F)
        features = sum(features for features, _ in sweep.parts)
        values = graph.reshape(initial, 0, lines.size, features)
        values = graph("Transpose", values, perm=[1, 0, 2])  # (F·dirs, N, features)
        table = lines * sweep.dirs + np.arange(sweep.dirs)[:, None]
        rows = self._gather_rows(values, table, features)
        parts = graph.split(rows, [features for features, _ in sweep.parts], axis=-1)
        if sweep.dtype != STATE_DTYPE:
            parts[0] = graph.cast(parts[0], sweep.dtype)
        return [self._split(part, self.border_counts[self.border_counts > 0]) for part in parts]

    def _gather_rows(self, values: Value, table: Indices, features: int) -> Value:
        """Rows, from values (M, N, features) and a table (dirs, …) of their first axis."""
        rows = self.graph("Gather", values, self.graph.constant(table.reshape(-1).astype(np.int64)), axis=0)
        return rows if self.rows.dirs == 1 else self.graph.reshape(rows, self.rows.dirs, -1, features)

    def _rows_of(self, tables: Sequence[Indices]) -> list[Value]:
        """For each table (K,) of positions the K·N rows of their samples; with one direction (K,)."""
        tables = [table.astype(np.int64) for table in tables]
        if self.rows.dirs == 1 or not tables:
            return [self.graph.constant(table) for table in tables]
        rows = self.rows.of_samples(self.graph.constant(np.concatenate(tables)), 1)
        return self._split(rows, [len(table) for table in tables], axis=0)

    def _split(
        self, values: Value, counts: Sequence[int] | Indices, axis: int | None = None
    ) -> list[Value]:
        """Split rows by numbers of positions."""
        if len(counts) == 1:
            return [values]
        lengths = self.rows.of_positions(self.graph.integers(*counts))
        axis = self.rows.axis if axis is None else axis
        return self.graph.add_node("Split", len(counts), values, lengths, axis=axis)


def _pieces(table: Indices, count: int, border: int) -> list[Piece]:
    """The ranges of positions in a table of rows, of which those from `count` on are rows of the border;
    nothing if there are more than two. Their ends are counted from the end, so that few numbers suffice."""
    cuts = np.flatnonzero((np.diff(table) != 1) | (table[1:] == count)) + 1
    pieces = []
    for part in np.split(table, cuts):
        source = -1 if part[0] >= count else 0
        first, length = (int(part[0]) - count, border) if source else (int(part[0]), count)
        end = first + len(part) - length
        pieces.append(Piece(source, first, end or END, (first, end) == (0, 0)))
    return pieces if len(pieces) <= 2 else []


def _lines_of_positions(grid: Sequence[int]) -> Indices:
    """(D, P) for each axis the line, among those of all faces, that a flat position lies on."""
    first, tables = 0, []
    for d, count in enumerate(line_counts(grid)):
        face = np.arange(first, first + count).reshape(*grid[:d], 1, *grid[d + 1 :])
        tables.append(np.broadcast_to(face, grid).reshape(-1))
        first += count
    return np.stack(tables)


def _exit_positions(grid: Sequence[int], direction: Direction) -> Indices:
    """(F,) the flat position at which each line leaves the grid."""
    positions = np.arange(prod(grid)).reshape(grid)
    faces = [positions.take(-1 if sign > 0 else 0, axis=d) for d, sign in enumerate(direction)]
    return np.concatenate([face.reshape(-1) for face in faces])
