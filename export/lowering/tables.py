"""The tables of `mdlstm_tk.wavefront` as a scan wants them: constants, or worked out in the graph.

A scan's states have K + 1 rows, K the size of the largest wavefront. A wavefront of fewer positions
leaves zeros behind them, and the last row is always zero: there is what lies outside the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mdlstm_tk.cells.equations import total

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Sweep
from mdlstm_tk.wavefront import Direction, visiting_order, wavefronts


@dataclass(frozen=True)
class Tables:
    """What the scan over a grid of P positions and T wavefronts goes by.

    Attributes:
        axes: D times (P), the flat positions' coordinates.
        rows: (1) K + 1, of a state.
        starts: (T, 1) wavefront t has the positions starts[t] … ends[t] − 1 in visiting order.
        ends: (T, 1).
        pads: (T, 6) what `Pad` adds to its state (count, N, n).
        back: D times (P): the row of the state before that lies one step back along that axis.
        visits: for each direction (P), the flat positions in visiting order.
        unvisits: for each direction (P), where in the scan's outputs (T·(K + 1), N, n) a flat position is.
    """

    axes: list[Value]
    rows: Value
    starts: Value
    ends: Value
    pads: Value
    back: list[Value]
    visits: list[Value]
    unvisits: list[Value]


def fixed_tables(graph: Graph, grid: tuple[int, ...], directions: list[Direction]) -> Tables:
    """As constants."""
    front = wavefronts(grid)
    counts = np.diff(front.starts)
    widest = int(counts.max())
    previous = np.concatenate([[0], front.starts[:-2]])  # (T) where the wavefront before starts
    back = np.where(front.back < 0, widest, front.back - np.repeat(previous, counts))
    pads = np.zeros((len(front), 6), np.int64)
    pads[:, 3] = widest + 1 - counts
    rank = np.arange(len(front.order))
    row = rank + np.repeat(np.arange(len(front)) * (widest + 1) - front.starts[:-1], counts)
    visits = [visiting_order(grid, direction) for direction in directions]
    return Tables(
        axes=[graph.constant(axis) for axis in np.indices(grid).reshape(len(grid), -1)],
        rows=graph.integers(widest + 1),
        starts=graph.constant(front.starts[:-1, None]),
        ends=graph.constant(front.starts[1:, None]),
        pads=graph.constant(pads),
        back=[graph.constant(axis) for axis in back],
        visits=[graph.constant(visit) for visit in visits],
        unvisits=[graph.constant(row[np.argsort(visit)]) for visit in visits],
    )


def free_tables(graph: Graph, sweep: Sweep) -> Tables:
    """Worked out in the graph from the shape of x, for any extents."""
    ndim = len(sweep.grid)
    zero, one = graph.integers(0), graph.integers(1)
    extents = [graph("Shape", sweep.x, start=1 + d, end=2 + d) for d in range(ndim)]
    strides = [one]
    for extent in reversed(extents[1:]):
        strides.insert(0, strides[0] * extent)
    positions = strides[0] * extents[0]  # P
    flat = _count(graph, positions)
    axes = [
        graph("Mod", graph("Div", flat, stride), extent)
        for stride, extent in zip(strides, extents, strict=True)
    ]
    fronts = total(axes)  # (P)
    steps = total([extent - one for extent in extents]) + one  # T
    # Of equal values TopK takes the lower index first, so this sort is stable.
    ordered, order = graph.multi("TopK", 2, fronts, positions, axis=0, largest=0, sorted=1)
    rank = graph("ScatterElements", flat, order, flat, axis=0)
    none = graph("Expand", zero, steps)
    counts = graph(
        "ScatterElements", none, fronts, graph("Expand", one, positions), axis=0, reduction="add"
    )
    starts = graph("CumSum", counts, graph.constant(np.asarray(0, np.int64)), exclusive=1)
    rows = graph("ReduceMax", counts, keepdims=1) + one
    before = graph("Gather", starts, graph("Max", ordered - one, zero))
    back = []
    for axis, stride in zip(axes, strides, strict=True):
        behind = graph("Gather", rank, graph("Max", order - stride, zero)) - before
        outside = graph("Equal", graph("Gather", axis, order), zero)
        back.append(graph("Where", outside, rows - one, behind))
    row = ordered * rows + flat - graph("Gather", starts, ordered)
    visits, unvisits = [], []
    for direction in sweep.directions:
        mirrored = total(
            [
                (axis if sign > 0 else extent - one - axis) * stride
                for sign, axis, extent, stride in zip(direction, axes, extents, strides, strict=True)
            ]
        )
        visits.append(graph("Gather", mirrored, order))
        unvisits.append(graph("Gather", row, graph("Gather", rank, mirrored)))
    missing = graph("Unsqueeze", rows - counts, one)
    return Tables(
        axes=axes,
        rows=rows,
        starts=graph("Unsqueeze", starts, one),
        ends=graph("Unsqueeze", starts + counts, one),
        pads=graph("Pad", missing, graph.integers(0, 3, 0, 2)),
        back=back,
        visits=visits,
        unvisits=unvisits,
    )


def _count(graph: Graph, end: Value) -> Value:
    """0 … end − 1, given end as a list of one."""
    scalar = graph("Squeeze", end, graph.integers(0))
    return graph(
        "Range", graph.constant(np.asarray(0, np.int64)), scalar, graph.constant(np.asarray(1, np.int64))
    )
