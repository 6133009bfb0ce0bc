"""A sweep as one ONNX Scan over its wavefronts, for a fixed grid or for all of them.

The body computes the positions of one wavefront and no others: it cuts their rows out of x and of
the tables, and pads the states it leaves to those of the largest wavefront.
"""

from __future__ import annotations

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Step, Sweep, inside, rows_of_x, signs
from mdlstm_tk.export.lowering.tables import Tables, fixed_tables, free_tables


def write_scan(graph: Graph, sweep: Sweep) -> Value:
    """Add the sweep's nodes; returns h (N, *grid, dirs, n)."""
    fixed = min(sweep.grid) > 0
    tables = fixed_tables(graph, sweep.grid, sweep.directions) if fixed else free_tables(graph, sweep)
    x = rows_of_x(graph, sweep)
    mask = None if sweep.sizes is None else inside(graph, tables.axes, sweep.sizes)
    outputs = []
    for k, direction in enumerate(sweep.directions):
        with graph.scope(f"direction_{signs(direction)}"):
            outputs.append(_write_direction(graph, sweep, k, tables, x, mask))
    h = graph("Transpose", graph.concat(outputs, axis=-1), perm=[1, 0, 2])  # (N, P, dirs·n)
    extents = graph("Shape", sweep.x, start=0, end=-1)
    shape = graph.concat([extents, graph.integers(len(outputs), sweep.units)], axis=0)
    return graph("Reshape", h, shape)


def _write_direction(
    graph: Graph, sweep: Sweep, k: int, tables: Tables, x: Value, mask: Value | None
) -> Value:
    """h (P, N, n) of direction k, given x (P, N, C)."""
    visited_x = graph("Gather", x, tables.visits[k], axis=0)
    visited_mask = None if mask is None else graph("Gather", mask, tables.visits[k], axis=0)
    body = graph.body()
    step = Step(body, sweep, k)
    h, c, start, end, pads = (body.input(name) for name in ("h", "c", "start", "end", "pads"))
    rows = [body.cut(back, start, end) for back in tables.back]
    new_h, new_c = step(
        [body("Gather", h, row, axis=0) for row in rows],
        [body("Gather", c, row, axis=0) for row in rows],
        body.cut(visited_x, start, end),
        None if visited_mask is None else body.cut(visited_mask, start, end),
    )
    padded_h = body("Pad", new_h, pads)
    results = [padded_h, body("Pad", new_c, pads), body("Identity", padded_h)]
    *_, stacked = graph.multi(
        "Scan",
        3,
        *step.zeros(graph, sweep.x, tables.rows),
        tables.starts,
        tables.ends,
        tables.pads,
        body=body.proto("step", results),
        num_scan_inputs=3,
    )  # (T, K + 1, N, n)
    return graph("Gather", _flat(graph, stacked), tables.unvisits[k], axis=0)


def _flat(graph: Graph, stacked: Value) -> Value:
    """(T, K, N, n) → (T·K, N, n)."""
    tail = graph("Shape", stacked, start=2)
    return graph("Reshape", stacked, graph.concat([graph.integers(-1), tail], axis=0))
