"""The scan form: a sweep as one ONNX Scan over its wavefronts, for one grid or for any.

The body computes the positions of one wavefront and no others. It slices their rows out of x and out of
the index tables, and pads the states that it returns to the number of rows that all iterations share.

Notation: N batch, D grid axes, C input features, n hidden units, P positions, T wavefronts, K positions of
one wavefront, K_max positions of the largest wavefront.
"""

from __future__ import annotations

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Step, Sweep, direction_label, flatten_x, valid_mask
from mdlstm_tk.export.lowering.tables import ScanTables, computed_tables, constant_tables


def write_scan(graph: Graph, sweep: Sweep) -> Value:
    """Add the nodes of a sweep, and return h (N, *grid, dirs, n)."""
    if min(sweep.grid) > 0:
        tables = constant_tables(graph, sweep.grid, sweep.directions)
    else:
        tables = computed_tables(graph, sweep)
    x = flatten_x(graph, sweep)  # (P, N, C)
    mask = None if sweep.sizes is None else valid_mask(graph, tables.coordinates, sweep.sizes)  # (P, N, 1)
    outputs = []
    for dir_idx, direction in enumerate(sweep.directions):
        with graph.scope(f"direction_{direction_label(direction)}"):
            outputs.append(_write_direction(graph, sweep, dir_idx, tables, x, mask))
    h = graph("Transpose", graph.concat(outputs, axis=-1), perm=[1, 0, 2])  # (N, P, dirs·n)
    batch_and_grid = graph("Shape", sweep.x, start=0, end=-1)
    shape = graph.concat([batch_and_grid, graph.integers(len(outputs), sweep.units)], axis=0)
    return graph("Reshape", h, shape)


def _write_direction(
    graph: Graph, sweep: Sweep, dir_idx: int, tables: ScanTables, x: Value, mask: Value | None
) -> Value:
    """h (P, N, n) of one direction, given x (P, N, C) and mask (P, N, 1)."""
    order = tables.orders[dir_idx]
    ordered_x = graph("Gather", x, order, axis=0)
    ordered_mask = None if mask is None else graph("Gather", mask, order, axis=0)
    body = graph.body()
    step = Step(body, sweep, dir_idx)
    h, c, start, end, pads = (body.input(name) for name in ("h", "c", "start", "end", "pads"))
    rows = [body.slice_rows(axis, start, end) for axis in tables.predecessors]  # D × (K)
    h_new, c_new = step(
        [body("Gather", h, axis_rows, axis=0) for axis_rows in rows if sweep.cell.recurrent],
        [body("Gather", c, axis_rows, axis=0) for axis_rows in rows],
        body.slice_rows(ordered_x, start, end),
        None if ordered_mask is None else body.slice_rows(ordered_mask, start, end),
    )
    padded_h = body("Pad", h_new, pads)  # (K_max + 1, N, n)
    padded_c = body("Pad", c_new, pads)
    scan_output = body("Identity", padded_h)
    *_, stacked_h = graph.add_node(
        "Scan",
        3,
        *step.initial_state(graph, sweep.x, tables.state_rows),
        tables.starts,
        tables.ends,
        tables.pads,
        body=body.proto("step", [padded_h, padded_c, scan_output]),
        num_scan_inputs=3,
    )  # (T, K_max + 1, N, n)
    return graph("Gather", _merge_first_axes(graph, stacked_h), tables.output_rows[dir_idx], axis=0)


def _merge_first_axes(graph: Graph, value: Value) -> Value:
    """(A, B, N, n) → (A·B, N, n)."""
    rest = graph("Shape", value, start=2)
    return graph("Reshape", value, graph.concat([graph.integers(-1), rest], axis=0))
