"""Index tables for the loop that runs a sweep, one wavefront (positions with equal coordinate sum) per
iteration, computed in the graph for any grid; for one grid they are constants.

Notation is that of step.py, and
    flat position   row-major index of a position
    visit index     its place in the order of the sweep
    direction       one sign per axis; −1 sweeps the axis backwards

In a scan, a state has L rows, one for each position. On one axis L is 1. On more, row 0 is zero and stands for the
positions outside the grid, rows 1 … K are the positions of the wavefront, and the rows after them are zero;
L is K_max + 1, and K_max + 2 on two axes. There, the predecessors of a wavefront along an axis are
consecutive rows of the state before, zero rows included, so that a slice reads them. On three and more axes
they are not, and each wavefront has a table of its predecessors' rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mdlstm_tk.cells.cell import total
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Sweep


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
    return _planar_tables(graph, sweep) if len(sweep.grid) <= 2 else _spatial_tables(graph, sweep)


def _planar_tables(graph: Graph, sweep: Sweep) -> ScanTables:
    """`scan_tables` for one or two axes, in closed form.

    Wavefront t of a grid H×W holds the positions (r, t − r), first ≤ r ≤ last, with
    first = max(0, t − W + 1) and last = min(t, H − 1). One axis is a grid with H = 1.
    """
    ndim = len(sweep.grid)
    zero, one = graph.integers(0), graph.integers(1)  # int64 (1,); Python numbers would become float32
    extents = sweep.extents(graph)
    height, width = extents if ndim == 2 else (one, extents[0])
    t = graph.arange(height + width - one)  # (T,)
    first = graph("Max", t - width + one, zero)
    last = graph("Min", t, height - one)
    counts = last - first + one
    max_count = graph("Min", height, width) if ndim == 2 else one
    state_rows = max_count + graph.integers(2) if ndim == 2 else one

    def column(values: Value) -> Value:
        return graph("Unsqueeze", values, one)  # (T,) → (T, 1)

    moved = first - graph("Max", t - width, zero)  # (T,) whether `first` is one more than before
    prev_firsts = [moved, moved + one] if ndim == 2 else []
    row = graph("Min", column(first) + graph.arange(max_count), column(last))  # (T, K_max)
    # For the way back, the row (H, 1) and the column (1, W) of every position.
    grid_row, grid_column = column(graph.arange(height)), graph("Unsqueeze", graph.arange(width), zero)
    orders, places = [], []
    for signs in sweep.directions:
        row_sign, column_sign = (1, *signs)[-2:]
        r = mirrored(graph, row, row_sign, height)
        k = mirrored(graph, column(t) - row, column_sign, width)
        orders.append(r * width + k)
        r = mirrored(graph, grid_row, row_sign, height)
        k = mirrored(graph, grid_column, column_sign, width)
        front = r + k  # (H, W)
        place = r - graph("Max", front - width + one, zero)  # in its wavefront
        place = place + one if ndim == 2 else place  # in the state
        places.append((graph.reshape(front, -1), graph.reshape(place, -1)))
    shape = graph.concat([height, width], axis=0)
    coordinates = [
        graph.reshape(graph("Expand", values, shape), -1) for values in (grid_row, grid_column)[-ndim:]
    ]
    return ScanTables(
        extents=extents,
        coordinates=coordinates,
        state_rows=state_rows,
        counts=column(counts),
        missing=column(state_rows - one - counts),
        predecessors=[(column(rows), column(rows + counts)) for rows in prev_firsts] or [()],
        orders=_stacked(graph, orders),
        output_rows=_output_rows(graph, places, state_rows),
    )


def mirrored(graph: Graph, coordinates: Value, sign: int, extent: Value) -> Value:
    """Coordinates counted from the other end of an axis if `sign` is −1."""
    return coordinates if sign > 0 else extent - graph.integers(1) - coordinates


def _stacked(graph: Graph, orders: Sequence[Value]) -> Value:
    """The orders (T, K_max) of all directions as `ScanTables` has them."""
    if len(orders) == 1:
        return orders[0]
    return graph.concat([graph("Unsqueeze", order, graph.integers(1)) for order in orders], axis=1)


def _output_rows(graph: Graph, places: Sequence[tuple[Value, Value]], state_rows: Value) -> Value:
    """(P, dirs), see `ScanTables`.

    Args:
        graph: the graph to add nodes to.
        places: for each direction the wavefront (P,) of each flat position, and the row (P,) in its state.
        state_rows: L.
    """
    columns = []
    for k, (front, row) in enumerate(places):
        index = (front * graph.integers(len(places)) + graph.integers(k)) * state_rows + row
        columns.append(graph("Unsqueeze", index, graph.integers(1)))
    return graph.concat(columns, axis=1)


def _spatial_tables(graph: Graph, sweep: Sweep) -> ScanTables:
    """`scan_tables` for three and more axes, by sorting the positions."""
    zero, one = graph.integers(0), graph.integers(1)  # int64 (1,); Python numbers would become float32
    extents = sweep.extents(graph)
    strides = [one]  # flat distance of one step along each axis
    for extent in reversed(extents[1:]):
        strides.insert(0, strides[0] * extent)
    position_count = strides[0] * extents[0]  # P
    flat = graph.arange(position_count)  # (P) 0 … P − 1
    quotient = flat
    coordinates: list[Value] = []
    for extent in reversed(extents[1:]):
        # A Session refuses products of extents as divisors, since they may overflow.
        coordinates.insert(0, graph("Mod", quotient, extent))
        quotient = graph("Div", quotient, extent)
    coordinates.insert(0, quotient)
    front = total(coordinates)  # (P,) the wavefront of each flat position
    front_count = total([extent - one for extent in extents]) + one  # T
    # ONNX has no sort, but TopK of all P is one. It keeps the order of equal values, so that positions of a
    # wavefront stay in row-major order, as in `wavefronts`.
    _, order = graph.add_node("TopK", 2, front, position_count, axis=0, largest=0, sorted=1)
    inverse_order = graph("ScatterElements", flat, order, flat, axis=0)
    zeros = graph("Expand", zero, front_count)
    ones = graph("Expand", one, position_count)
    counts = graph(
        "ScatterElements", zeros, front, ones, axis=0, reduction="add"
    )  # (T,) K of each wavefront: a bincount
    starts = graph("CumSum", counts, graph.scalar(0), exclusive=1)
    max_count = graph("ReduceMax", counts, keepdims=1)  # K_max
    state_rows = max_count + one
    visits = graph("Unsqueeze", starts, one) + graph.arange(max_count)  # (T, K_max)
    positions = graph("Gather", order, graph("Min", visits, position_count - one))  # (T, K_max) flat
    row = inverse_order - graph("Gather", starts, front) + one  # (P,) of each position in its state
    predecessors: list[tuple[Value, ...]] = []
    for coordinate, stride in zip(coordinates, strides, strict=True):
        # Outside the grid this is a valid but wrong index, which Where replaces.
        prev_row = graph("Gather", row, graph("Max", flat - stride, zero))
        prev_row = graph("Where", graph("Equal", coordinate, zero), zero, prev_row)  # (P,)
        predecessors.append((graph("Gather", prev_row, positions),))
    orders, places = [], []
    for direction in sweep.directions:
        reflected = total(
            [
                mirrored(graph, coordinate, sign, extent) * stride
                for sign, coordinate, extent, stride in zip(
                    direction, coordinates, extents, strides, strict=True
                )
            ]
        )  # (P,) where each flat position lands if every axis with sign −1 is reversed
        orders.append(graph("Gather", reflected, positions))  # a reflection is its own inverse
        places.append((graph("Gather", front, reflected), graph("Gather", row, reflected)))
    return ScanTables(
        extents=extents,
        coordinates=coordinates,
        state_rows=state_rows,
        counts=graph("Unsqueeze", counts, one),
        missing=graph("Unsqueeze", state_rows - one - counts, one),
        predecessors=predecessors,
        orders=_stacked(graph, orders),
        output_rows=_output_rows(graph, places, state_rows),
    )
