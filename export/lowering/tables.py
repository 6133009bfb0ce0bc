"""Index tables for the ONNX Scan that runs a sweep, one wavefront (positions with equal coordinate sum) per
iteration: as constants for one grid, or computed in the graph for any grid.

Notation
    N, D, n      batch, grid axes, hidden units
    P, T         positions, wavefronts
    K, K_max     positions of one wavefront, of the largest one
    flat position   row-major index of a position
    visit index     its place in the order of the sweep
    direction       one sign per axis; −1 sweeps the axis backwards

The states of a scan have K_max + 1 rows. In a smaller wavefront the rows from K on are zero, and the last
row is zero in every wavefront: it stands for the positions outside the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdlstm_tk.cells.cell import total
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Sweep
from mdlstm_tk.wavefront import Direction, visiting_order, wavefronts


@dataclass(frozen=True)
class ScanTables:
    """What a scan over the wavefronts of a grid needs to know, as int64 values of the graph.

    The rows of a table that has K_max of them for each wavefront are valid up to K.

    Attributes:
        coordinates: one (P,) tensor per axis: the coordinate of every flat position.
        max_count: K_max, or None if it is computed.
        state_rows: (1,) the number of rows of a state, K_max + 1.
        counts: (T, 1) K of each wavefront.
        pads: (T, 6) the operand of `Pad` that brings a state (K, N, n) to K_max + 1 rows: what to add
            before and after each axis. Only column 3, the rows added at the end, is not zero.
        predecessors: one (T, K_max) tensor per axis: the row of the previous wavefront's state that holds
            the predecessor along that axis; K_max, the row of zeros, if that is outside the grid.
        orders: one (T, K_max) tensor per direction: the flat positions in visiting order.
        output_rows: one (P,) tensor per direction, by flat position: its row in the outputs of all
            iterations, (T·(K_max + 1), N, n).
    """

    coordinates: list[Value]
    max_count: int | None
    state_rows: Value
    counts: Value
    pads: Value
    predecessors: list[Value]
    orders: list[Value]
    output_rows: list[Value]


def constant_tables(graph: Graph, grid: tuple[int, ...], directions: list[Direction]) -> ScanTables:
    """The tables of one grid with known extents, as constants."""
    fronts = wavefronts(grid)
    counts = np.diff(fronts.starts)  # (T,) K of each wavefront
    k_max = int(counts.max())
    prev_starts = np.concatenate(
        [[0], fronts.starts[:-2]]
    )  # (T,) of the previous wavefront; 0 for the first
    prev_rows = fronts.predecessors - np.repeat(prev_starts, counts)
    predecessors = np.where(fronts.predecessors < 0, k_max, prev_rows)  # (D, P)
    pads = np.zeros((len(fronts), 6), np.int64)
    pads[:, 3] = k_max + 1 - counts
    visit_idx = np.arange(len(fronts.order), dtype=np.int64)
    front_of_visit = np.repeat(np.arange(len(fronts)), counts)
    row_of_visit = front_of_visit * (k_max + 1) + visit_idx - fronts.starts[front_of_visit]
    orders = [visiting_order(grid, direction) for direction in directions]
    # The rows after the first K repeat positions that the next wavefronts visit; nothing reads them.
    visits = np.minimum(fronts.starts[:-1, None] + np.arange(k_max), len(fronts.order) - 1)  # (T, K_max)
    return ScanTables(
        coordinates=[
            graph.constant(values) for values in np.indices(grid, np.int64).reshape(len(grid), -1)
        ],
        max_count=k_max,
        state_rows=graph.integers(k_max + 1),
        counts=graph.constant(counts[:, None]),
        pads=graph.constant(pads),
        predecessors=[graph.constant(rows[visits]) for rows in predecessors],
        orders=[graph.constant(order[visits]) for order in orders],
        output_rows=[graph.constant(row_of_visit[np.argsort(order)]) for order in orders],
    )


def computed_tables(graph: Graph, sweep: Sweep) -> ScanTables:
    """The same tables for any extents ≥ 1, computed in the graph from the shape of x (N, *grid, C)."""
    ndim = len(sweep.grid)
    zero, one = graph.integers(0), graph.integers(1)  # int64 (1,); Python numbers would become float32
    extents = [graph("Shape", sweep.x, start=1 + d, end=2 + d) for d in range(ndim)]
    strides = [one]  # flat distance of one step along each axis
    for extent in reversed(extents[1:]):
        strides.insert(0, strides[0] * extent)
    position_count = strides[0] * extents[0]  # P
    flat = _arange(graph, position_count)  # (P) 0 … P − 1
    coordinates = [
        graph("Mod", graph("Div", flat, stride), extent)
        for stride, extent in zip(strides, extents, strict=True)
    ]
    front_of_position = total(coordinates)  # (P,) the wavefront of each flat position
    front_count = total([extent - one for extent in extents]) + one  # T
    # ONNX has no sort, but TopK of all P is one. It keeps the order of equal values, so that positions of a
    # wavefront stay in row-major order, as in `wavefronts`.
    front_of_visit, order = graph.add_node(
        "TopK", 2, front_of_position, position_count, axis=0, largest=0, sorted=1
    )
    inverse_order = graph("ScatterElements", flat, order, flat, axis=0)
    zeros = graph("Expand", zero, front_count)
    ones = graph("Expand", one, position_count)
    counts = graph(
        "ScatterElements", zeros, front_of_position, ones, axis=0, reduction="add"
    )  # (T,) K of each wavefront: a bincount
    starts = graph("CumSum", counts, graph.scalar(0), exclusive=1)
    max_count = graph("ReduceMax", counts, keepdims=1)  # K_max
    state_rows = max_count + one
    visits = graph("Unsqueeze", starts, one) + _arange(graph, max_count)  # (T, K_max)
    visits = graph("Min", visits, position_count - one)  # as in `constant_tables`
    prev_starts = graph("Gather", starts, graph("Max", front_of_visit - one, zero))  # (P)
    predecessors = []
    for coordinate, stride in zip(coordinates, strides, strict=True):
        # Outside the grid this is a valid but wrong index, which Where replaces.
        prev_visit = graph("Gather", inverse_order, graph("Max", order - stride, zero))
        prev_row = prev_visit - prev_starts
        is_outside = graph("Equal", graph("Gather", coordinate, order), zero)
        rows = graph("Where", is_outside, max_count, prev_row)  # (P)
        predecessors.append(graph("Gather", rows, visits))
    row_of_visit = front_of_visit * state_rows + flat - graph("Gather", starts, front_of_visit)
    orders, output_rows = [], []
    for direction in sweep.directions:
        mirrored = total(
            [
                (coordinate if sign > 0 else extent - one - coordinate) * stride
                for sign, coordinate, extent, stride in zip(
                    direction, coordinates, extents, strides, strict=True
                )
            ]
        )  # (P,) by flat position: where it lands if every axis with sign −1 is reversed
        # A reflection is its own inverse.
        orders.append(graph("Gather", graph("Gather", mirrored, order), visits))
        output_rows.append(graph("Gather", row_of_visit, graph("Gather", inverse_order, mirrored)))
    missing_rows = graph("Unsqueeze", state_rows - counts, one)  # (T, 1)
    return ScanTables(
        coordinates=coordinates,
        max_count=None,
        state_rows=state_rows,
        counts=graph("Unsqueeze", counts, one),
        pads=graph("Pad", missing_rows, graph.integers(0, 3, 0, 2)),
        predecessors=predecessors,
        orders=orders,
        output_rows=output_rows,
    )


def _arange(graph: Graph, end: Value) -> Value:
    """(end,) 0 … end − 1. `end` has shape (1,), but `Range` takes scalars."""
    scalar_end = graph("Squeeze", end, graph.integers(0))
    return graph("Range", graph.scalar(0), scalar_end, graph.scalar(1))
