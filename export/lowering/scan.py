"""The scan form: a sweep as one ONNX Scan over its wavefronts, for one grid or for any.

The body computes the positions of one wavefront and no others. Each iteration gets K_max rows of x and of the
index tables, of which the first K are its positions, and pads the states that it returns to the number of
rows that all iterations share.

Whatever is computed outside the body enters it as an input, and inputs and outputs are typed. ONNX asks for
neither, but OpenVINO takes no other Scan. Constants stay outside.

Notation: N batch, D grid axes, C input features, n hidden units, P positions, T wavefronts, K positions of
one wavefront, K_max positions of the largest wavefront.
"""

from __future__ import annotations

import numpy as np

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Step, Sweep, direction_label, flatten_x, valid_mask
from mdlstm_tk.export.lowering.tables import ScanTables, computed_tables, constant_tables

INDEX = np.dtype(np.int64)


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
    order, k_max, n = tables.orders[dir_idx], tables.max_count, sweep.units
    body = graph.body()
    step = Step(body, sweep, dir_idx)
    state_shape = (k_max and k_max + 1, None, n)
    h = body.input("h", step.dtype, *state_shape)
    c = body.input("c", STATE_DTYPE, *state_shape)
    count = body.input("count", INDEX, 1)  # K
    pads = body.input("pads", INDEX, 6)
    predecessors = [body.input(f"predecessors_{d}", INDEX, k_max) for d in range(len(sweep.grid))]
    scan_inputs = [tables.counts, tables.pads, *tables.predecessors, graph("Gather", x, order, axis=0)]
    features = sweep.weight_ih.shape[-1] + (sweep.bias is not None)
    x_rows = body.input("x", step.dtype, k_max, None, features)
    mask_rows = None
    if mask is not None:
        mask_rows = body.input("mask", STATE_DTYPE, k_max, None, 1)
        scan_inputs.append(graph("Gather", mask, order, axis=0))

    def first_rows(value: Value) -> Value:
        return body.slice_rows(value, body.integers(0), count)

    rows = [first_rows(axis) for axis in predecessors]  # D × (K)
    h_new, c_new = step(
        [body("Gather", h, axis_rows, axis=0) for axis_rows in rows if sweep.cell.recurrent],
        [body("Gather", c, axis_rows, axis=0) for axis_rows in rows],
        first_rows(x_rows),
        None if mask_rows is None else first_rows(mask_rows),
    )
    padded_h = body("Pad", h_new, pads)  # (K_max + 1, N, n)
    padded_c = body("Pad", c_new, pads)
    scan_output = body("Identity", padded_h)
    outputs = [(padded_h, step.dtype), (padded_c, STATE_DTYPE), (scan_output, step.dtype)]
    *_, stacked_h = graph.add_node(
        "Scan",
        3,
        *step.initial_state(graph, sweep.x, tables.state_rows),
        *scan_inputs,
        body=body.proto("step", [(value, dtype, state_shape) for value, dtype in outputs]),
        num_scan_inputs=len(scan_inputs),
    )  # (T, K_max + 1, N, n)
    return graph("Gather", _merge_first_axes(graph, stacked_h), tables.output_rows[dir_idx], axis=0)


def _merge_first_axes(graph: Graph, value: Value) -> Value:
    """(A, B, N, n) → (A·B, N, n)."""
    rest = graph("Shape", value, start=2)
    return graph("Reshape", value, graph.concat([graph.integers(-1), rest], axis=0))
