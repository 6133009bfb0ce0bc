"""Index tables for the loop that runs a sweep, one wavefront (positions with equal coordinate sum) per
iteration, computed in the graph for any grid; for one grid they are constants.

Notation is that of step.py, and
    flat position   row-major index of a position
    visit index     its place in the order of the sweep
    direction       one sign per axis; −1 sweeps the axis backwards

In a scan, a state has L rows, one for each position. On one axis L is 1. On more, row 0 is zero and stands
for the positions outside the grid, rows 1 … K are the positions of the wavefront, and the rows after them
are zero; L is K_max + 1, and K_max + 2 on two axes. There, the predecessors of a wavefront along an axis
are consecutive rows of the state before, zero rows included, so that a slice reads them. On three and more
axes they are not, and each wavefront has a table of its predecessors' rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mdlstm_tk.cells.cell import total
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Sweep
from mdlstm_tk.wavefront import Direction


@dataclass(frozen=True)
class ScanTables:
    """The tables of a loop over the wavefronts of a grid, as int64 values of the graph.

    In tables with K_max columns, the columns from K on repeat some position of the grid; nothing reads what
    is computed from them.

    Attributes:
        extents: of the grid, (1,) each.
        coordinates: one (P,) tensor per axis: the coordinate of every flat position.
        state_rows: L as a tensor (1,).
        counts: (T, 1) K of each wavefront.
        missing: (T, 1) the rows of zeros after those of each wavefront, L − 1 − K.
        predecessors: for each axis, the rows of the state before that hold the predecessors: on two axes
            (first, end), (T, 1) each, for consecutive rows first … end − 1; on more (rows,) with rows
            (T, K_max); on one nothing.
        orders: (T, K_max), or (T, dirs, K_max) with several directions: the flat positions in visiting
            order.
        output_rows: (P, dirs) the row of each flat position in the outputs of all iterations,
            (T·dirs·L, N, n).
    """

    extents: list[Value]
    coordinates: list[Value]
    state_rows: Value
    counts: Value
    missing: Value
    predecessors: list[tuple[Value, ...]]
    orders: Value
    output_rows: Value


def scan_tables(graph: Graph, sweep: Sweep) -> ScanTables:
    """The tables for any extents ≥ 1, computed in the graph from the shape of x (N, *grid, C)."""
    ndim, dirs, extents = len(sweep.grid), sweep.dirs, sweep.extents(graph)
    one = graph.integers(1)  # int64 (1,); Python numbers would become float32
    grid = graph.concat(extents, axis=0)
    along = [  # the coordinates of each axis, which broadcast to the grid
        graph.reshape(graph.arange(extent), *(-1 if k == d else 1 for k in range(ndim)))
        for d, extent in enumerate(extents)
    ]
    coordinates = [graph.reshape(graph("Expand", values, grid), -1) for values in along]
    fronts = (_planar if ndim <= 2 else _spatial)(graph, extents, coordinates)
    counts, state_rows = graph("Unsqueeze", fronts.counts, one), fronts.state_rows

    def reflected(values: Sequence[Value], direction: Direction) -> list[Value]:
        triples = zip(values, direction, extents, strict=True)
        return [mirrored(graph, coordinates, sign, extent) for coordinates, sign, extent in triples]

    orders, places = [], []
    for number, direction in enumerate(sweep.directions):
        orders.append(_flat(reflected(fronts.positions, direction), extents))
        here = reflected(along, direction)
        index = total(here) * graph.integers(dirs) + graph.integers(number)
        places.append(graph.reshape(index * state_rows + fronts.row_of(here), -1, 1))
    return ScanTables(
        extents=extents,
        coordinates=coordinates,
        state_rows=state_rows,
        counts=counts,
        missing=state_rows - one - counts,
        predecessors=fronts.predecessors,
        orders=orders[0]
        if dirs == 1
        else graph.concat([graph("Unsqueeze", o, one) for o in orders], axis=1),
        output_rows=graph.concat(places, axis=1),
    )


def mirrored(graph: Graph, coordinates: Value, sign: int, extent: Value) -> Value:
    """Coordinates counted from the other end of an axis if `sign` is −1."""
    return coordinates if sign > 0 else extent - graph.integers(1) - coordinates


class Wavefronts(NamedTuple):
    """The wavefronts of a sweep along all axes.

    Attributes:
        counts: (T,) K of each.
        state_rows, predecessors: as in `ScanTables`.
        positions: for each axis (T, K_max), the coordinates of their positions.
        row_of: the row in its state of a position, from its coordinates.
    """

    counts: Value
    state_rows: Value
    predecessors: list[tuple[Value, ...]]
    positions: list[Value]
    row_of: Callable[[Sequence[Value]], Value]


def _planar(graph: Graph, extents: Sequence[Value], coordinates: Sequence[Value]) -> Wavefronts:
    """The wavefronts of one or two axes, in closed form, which is faster than sorting.

    Wavefront t of a grid H×W holds the positions (r, t − r), first ≤ r ≤ last, with
    first = max(0, t − W + 1) and last = min(t, H − 1). One axis is a grid with H = 1.
    """
    zero, one, is_line = graph.integers(0), graph.integers(1), len(extents) == 1
    height, width = [one, *extents][-2:]
    t = graph.arange(height + width - one)  # (T,)
    first = graph("Max", t - width + one, zero)
    last = graph("Min", t, height - one)
    counts = last - first + one
    max_count = one if is_line else graph("Min", height, width)

    def column(values: Value) -> Value:
        return graph("Unsqueeze", values, one)  # (T,) → (T, 1)

    row = graph("Min", column(first) + graph.arange(max_count), column(last))  # (T, K_max)
    if is_line:
        return Wavefronts(counts, one, [()], [column(t)], lambda here: zero)
    moved = first - graph("Max", t - width, zero)  # (T,) whether `first` is one more than before
    return Wavefronts(
        counts,
        max_count + graph.integers(2),
        [(column(rows), column(rows + counts)) for rows in (moved, moved + one)],
        [row, column(t) - row],
        lambda here: here[0] - graph("Max", total(here) - width + one, zero) + one,
    )


def _spatial(graph: Graph, extents: Sequence[Value], coordinates: Sequence[Value]) -> Wavefronts:
    """The wavefronts of three and more axes, by sorting the positions, whose `coordinates` are (P,)."""
    zero, one = graph.integers(0), graph.integers(1)
    front = total(coordinates)  # (P,) the wavefront of each flat position
    flat = _flat(coordinates, extents)  # (P,) 0 … P − 1
    position_count = graph("Shape", flat)
    front_count = total([extent - one for extent in extents]) + one  # T
    # ONNX has no sort, but TopK of all P is one. It keeps the order of equal values, so that positions of a
    # wavefront stay in row-major order, as in `wavefronts`.
    _, order = graph.add_node("TopK", 2, front, position_count, axis=0, largest=0, sorted=1)
    inverse_order = graph("ScatterElements", flat, order, flat, axis=0)
    zeros, ones = graph("Expand", zero, front_count), graph("Expand", one, position_count)
    counts = graph("ScatterElements", zeros, front, ones, axis=0, reduction="add")  # a bincount
    starts = graph("CumSum", counts, graph.scalar(0), exclusive=1)
    max_count = graph("ReduceMax", counts, keepdims=1)  # K_max
    visits = graph("Unsqueeze", starts, one) + graph.arange(max_count)  # (T, K_max)
    positions = graph("Gather", order, graph("Min", visits, position_count - one))  # (T, K_max) flat
    row = inverse_order - graph("Gather", starts, front) + one  # (P,) of each position in its state
    predecessors: list[tuple[Value, ...]] = []
    for d, coordinate in enumerate(coordinates):
        # Outside the grid this is a valid but wrong index, which Where replaces.
        before = [values - one if k == d else values for k, values in enumerate(coordinates)]
        prev_row = graph("Gather", row, graph("Max", _flat(before, extents), zero))
        prev_row = graph("Where", graph("Equal", coordinate, zero), zero, prev_row)  # (P,)
        predecessors.append((graph("Gather", prev_row, positions),))
    return Wavefronts(
        counts,
        max_count + one,
        predecessors,
        [graph("Gather", coordinate, positions) for coordinate in coordinates],
        lambda here: graph("Gather", row, _flat(here, extents)),
    )


def _flat(coordinates: Sequence[Value], extents: Sequence[Value]) -> Value:
    """The flat positions of coordinates along each axis."""
    position = coordinates[0]
    for coordinate, extent in zip(coordinates[1:], extents[1:], strict=True):
        position = position * extent + coordinate
    return position
