"""The scan form: a sweep as one ONNX Scan over its wavefronts, for one grid or for any.

The body computes the positions of one wavefront and no others. Each iteration gets K_max rows of x, of
which the first K are its positions, and pads the states that it returns to the number of rows that all
iterations share (see tables.py).

Whatever is computed outside the body enters it as an input, and inputs and outputs are typed. ONNX asks for
neither, but OpenVINO takes no other Scan. Constants stay outside.

Notation: N batch, D grid axes, C input features, n hidden units, P positions, T wavefronts, K positions of
one wavefront, K_max positions of the largest wavefront, S rows of a state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Step, Sweep, direction_label, flatten_x, valid_mask
from mdlstm_tk.export.lowering.tables import ScanTables, computed_tables, constant_tables, extra_rows

INDEX = np.dtype(np.int64)


def write_scan(graph: Graph, sweep: Sweep) -> Value:
    """Add the nodes of a sweep, and return h (N, *grid, dirs, n)."""
    if min(sweep.grid) > 0:
        tables = constant_tables(graph, sweep.grid, sweep.directions)
    else:
        tables = computed_tables(graph, sweep)
    mask = None if sweep.sizes is None else valid_mask(graph, tables.coordinates, sweep.sizes)  # (P, N, 1)
    x = flatten_x(graph, sweep, mask)  # (P, N, C)
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
    k_max, ndim = tables.max_count, len(sweep.grid)
    state_shape = (k_max and k_max + extra_rows(ndim), None, sweep.units)  # (S, N, n)
    body = graph.body()
    step = Step(body, sweep, dir_idx)
    h = body.input("h", step.dtype, *state_shape)
    c = body.input("c", STATE_DTYPE, *state_shape)
    scan_inputs: list[Value] = []

    def scanned(name: str, values: Value, dtype: np.dtype[Any], *shape: int | None) -> Value:
        """The part of `values` (T, *shape) that an iteration gets."""
        scan_inputs.append(values)
        return body.input(name, dtype, *shape)

    count = scanned("count", tables.counts, INDEX, 1)  # K
    pads = scanned("pads", tables.pads, INDEX, 6)

    def first_rows(value: Value) -> Value:
        return body.slice_rows(value, body.integers(0), count)

    def positions(name: str, values: Value, dtype: np.dtype[Any], features: int) -> Value:
        """The rows (K, N, features) of `values` (P, N, features) at the positions of the wavefront."""
        ordered = graph("Gather", values, tables.orders[dir_idx], axis=0)  # (T, K_max, N, features)
        return first_rows(scanned(name, ordered, dtype, k_max, None, features))

    prev_h: list[Value] = []  # D × (K, N, n)
    prev_c: list[Value] = []
    states = [(h, prev_h), (c, prev_c)] if sweep.cell.recurrent else [(c, prev_c)]
    for d, where in enumerate(tables.predecessors):
        if len(where) == 2:
            first, end = (scanned(f"rows_{d}_{k}", part, INDEX, 1) for k, part in enumerate(where))
            for state, prev in states:
                prev.append(body.slice_rows(state, first, end))
        else:
            rows = first_rows(scanned(f"rows_{d}", where[0], INDEX, k_max))
            for state, prev in states:
                prev.append(body("Gather", state, rows, axis=0))
    h_new, c_new = step(
        prev_h,
        prev_c,
        positions("x", x, step.dtype, step.features),
        None if mask is None else positions("mask", mask, STATE_DTYPE, 1),
    )
    padded_h = body("Pad", h_new, pads)  # (S, N, n)
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
    )  # (T, S, N, n)
    return graph("Gather", _merge_first_axes(graph, stacked_h), tables.output_rows[dir_idx], axis=0)


def _merge_first_axes(graph: Graph, value: Value) -> Value:
    """(A, B, N, n) → (A·B, N, n)."""
    rest = graph("Shape", value, start=2)
    return graph("Reshape", value, graph.concat([graph.integers(-1), rest], axis=0))
