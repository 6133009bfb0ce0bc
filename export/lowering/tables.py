"""The index tables of a scan: as constants for one grid, or computed in the graph for any grid.

Notation: N batch, D grid axes, n hidden units, P positions, T wavefronts, K positions of one wavefront,
K_max positions of the largest wavefront.

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

    Attributes:
        coordinates: for each axis (P), the coordinate of every flat position.
        state_rows: (1), K_max + 1.
        starts: (T, 1); wavefront t consists of the visiting indices starts[t] … ends[t] − 1.
        ends: (T, 1).
        pads: (T, 6), the operand of `Pad` that brings the state (K, N, n) to K_max + 1 rows.
        predecessors: for each axis (P), by visiting index: the row of the preceding state that holds the
            predecessor along that axis.
        orders: for each direction (P), the flat positions in visiting order.
        output_rows: for each direction (P), by flat position: its row in the outputs of all iterations,
            (T·(K_max + 1), N, n).
    """

    coordinates: list[Value]
    state_rows: Value
    starts: Value
    ends: Value
    pads: Value
    predecessors: list[Value]
    orders: list[Value]
    output_rows: list[Value]


def constant_tables(graph: Graph, grid: tuple[int, ...], directions: list[Direction]) -> ScanTables:
    """The tables of one grid, as constants."""
    front = wavefronts(grid)
    counts = np.diff(front.starts)  # K of each wavefront
    k_max = int(counts.max())
    prev_starts = np.concatenate([[0], front.starts[:-2]])  # (T) start of the preceding wavefront
    predecessors = np.where(
        front.predecessors < 0, k_max, front.predecessors - np.repeat(prev_starts, counts)
    )  # (D, P)
    pads = np.zeros((len(front), 6), np.int64)
    pads[:, 3] = k_max + 1 - counts
    visit_idx = np.arange(len(front.order))
    output_rows = visit_idx + np.repeat(np.arange(len(front)) * (k_max + 1) - front.starts[:-1], counts)
    orders = [visiting_order(grid, direction) for direction in directions]
    return ScanTables(
        coordinates=[graph.constant(axis) for axis in np.indices(grid).reshape(len(grid), -1)],
        state_rows=graph.integers(k_max + 1),
        starts=graph.constant(front.starts[:-1, None]),
        ends=graph.constant(front.starts[1:, None]),
        pads=graph.constant(pads),
        predecessors=[graph.constant(axis) for axis in predecessors],
        orders=[graph.constant(order) for order in orders],
        output_rows=[graph.constant(output_rows[np.argsort(order)]) for order in orders],
    )


def computed_tables(graph: Graph, sweep: Sweep) -> ScanTables:
    """The tables of any grid, computed in the graph from the shape of x."""
    ndim = len(sweep.grid)
    zero, one = graph.integers(0), graph.integers(1)
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
    front_of_position = total(coordinates)  # (P)
    front_count = total([extent - one for extent in extents]) + one  # T
    # TopK returns equal values in the order of their indices, so this sort is stable.
    front_of_visit, order = graph.add_node(
        "TopK", 2, front_of_position, position_count, axis=0, largest=0, sorted=1
    )
    inverse_order = graph("ScatterElements", flat, order, flat, axis=0)
    no_positions = graph("Expand", zero, front_count)
    ones = graph("Expand", one, position_count)
    counts = graph(
        "ScatterElements", no_positions, front_of_position, ones, axis=0, reduction="add"
    )  # (T) K of each wavefront
    starts = graph("CumSum", counts, graph.scalar(0), exclusive=1)
    state_rows = graph("ReduceMax", counts, keepdims=1) + one
    prev_starts = graph("Gather", starts, graph("Max", front_of_visit - one, zero))  # (P)
    predecessors = []
    for axis, stride in zip(coordinates, strides, strict=True):
        prev_visit = graph("Gather", inverse_order, graph("Max", order - stride, zero))
        prev_row = prev_visit - prev_starts
        is_outside = graph("Equal", graph("Gather", axis, order), zero)
        predecessors.append(graph("Where", is_outside, state_rows - one, prev_row))
    row_of_visit = front_of_visit * state_rows + flat - graph("Gather", starts, front_of_visit)
    orders, output_rows = [], []
    for direction in sweep.directions:
        mirrored = total(
            [
                (axis if sign > 0 else extent - one - axis) * stride
                for sign, axis, extent, stride in zip(direction, coordinates, extents, strides, strict=True)
            ]
        )  # (P) the flat position on the opposite side of each axis with sign −1
        orders.append(graph("Gather", mirrored, order))
        output_rows.append(graph("Gather", row_of_visit, graph("Gather", inverse_order, mirrored)))
    missing_rows = graph("Unsqueeze", state_rows - counts, one)  # (T, 1)
    return ScanTables(
        coordinates=coordinates,
        state_rows=state_rows,
        starts=graph("Unsqueeze", starts, one),
        ends=graph("Unsqueeze", starts + counts, one),
        pads=graph("Pad", missing_rows, graph.integers(0, 3, 0, 2)),
        predecessors=predecessors,
        orders=orders,
        output_rows=output_rows,
    )


def _arange(graph: Graph, end: Value) -> Value:
    """0 … end − 1, where end is a tensor (1)."""
    scalar_end = graph("Squeeze", end, graph.integers(0))
    return graph("Range", graph.scalar(0), scalar_end, graph.scalar(1))
