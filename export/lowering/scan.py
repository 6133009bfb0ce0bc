"""The scan form: a sweep as one ONNX Scan over its wavefronts, for one grid or for any.

The body computes the positions of one wavefront in all directions, and no others. Each iteration gets x at
K_max positions, of which the first K are its own, and pads the states that it returns to the number of
positions that all iterations share (see tables.py).

Whatever is computed outside the body enters it as an input, and inputs and outputs are typed. ONNX asks for
neither, but OpenVINO takes no other Scan. Constants stay outside.

Notation: N batch, D grid axes, C input features, n hidden units, P positions, T wavefronts, K positions of
one wavefront, K_max positions of the largest wavefront, S positions of a padded state, dirs directions; the
shapes of rows are those of step.py.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Rows, Step, Sweep, flatten_x, valid_mask
from mdlstm_tk.export.lowering.tables import ScanTables, computed_tables, constant_tables, extra_rows

INDEX = np.dtype(np.int64)
MAX_CONSTANT_POSITIONS = 1 << 16  # larger tables would take megabytes of the file


def write_scan(graph: Graph, sweep: Sweep) -> Value:
    """Add the nodes of a sweep, and return h (N, *grid, dirs, n)."""
    dirs, units = sweep.dirs, sweep.units
    fixed = min(sweep.grid) > 0 and prod(sweep.grid) <= MAX_CONSTANT_POSITIONS
    tables = constant_tables(graph, sweep) if fixed else computed_tables(graph, sweep)
    mask = None if sweep.sizes is None else valid_mask(graph, tables.coordinates, sweep.sizes)  # (P, N, 1)
    x = flatten_x(graph, sweep, mask)  # (P, N, C)
    rows = Rows(graph, sweep)
    stacked_h = _write_scan(graph, sweep, rows, tables, x, mask)  # (T, S, N, n) or (T, dirs, S·N, n)
    states = graph.reshape(stacked_h, -1, units)
    h = graph("Gather", states, _places(graph, rows, tables), axis=0)  # (N, P, dirs, n)
    batch_and_grid = graph("Shape", sweep.x, start=0, end=-1)
    return graph("Reshape", h, graph.concat([batch_and_grid, graph.integers(dirs, units)], axis=0))


def _places(graph: Graph, rows: Rows, tables: ScanTables) -> Value:
    """(N, P, dirs) the row of each sample's positions among those of all iterations."""
    end = graph("Squeeze", rows.batch, graph.integers(0))
    samples = graph("Range", graph.scalar(0), end, graph.scalar(1))  # (N,)
    return tables.output_rows * rows.batch + graph("Unsqueeze", samples, graph.integers(1, 2))


def _write_scan(
    graph: Graph, sweep: Sweep, rows: Rows, tables: ScanTables, x: Value, mask: Value | None
) -> Value:
    """The states h of all wavefronts, padded, given x (P, N, C) and mask (P, N, 1)."""
    k_max, ndim, dirs = tables.max_count, len(sweep.grid), sweep.dirs
    body = graph.body()
    step = Step(body, sweep)
    state_rows = k_max and k_max + extra_rows(ndim)  # S

    def shape(positions: int | None, features: int) -> tuple[int | None, ...]:
        return (positions, None, features) if dirs == 1 else (dirs, None, features)

    state_shape = shape(state_rows, sweep.units)
    h = body.input("h", step.dtype, *state_shape)
    c = body.input("c", STATE_DTYPE, *state_shape)
    scan_inputs: list[Value] = []

    def scanned(name: str, values: Value, dtype: np.dtype[Any], *extents: int | None) -> Value:
        """The part of `values` (T, *extents) that an iteration gets."""
        scan_inputs.append(values)
        return body.input(name, dtype, *extents)

    count = scanned("count", rows.of_positions(tables.counts), INDEX, 1)  # K
    pads = scanned("pads", _pads(graph, rows, tables), INDEX, 6)
    start = graph.integers(0)

    def positions(name: str, values: Value, dtype: np.dtype[Any], features: int) -> Value:
        """The rows of `values` (P, N, features) at the positions of the wavefront."""
        ordered = graph("Gather", values, tables.orders, axis=0)  # (T, K_max, N, features)
        if dirs > 1:  # (T, dirs, K_max, N, features) →
            ordered = graph.reshape(ordered, 0, dirs, -1, features)
        return rows.slice(scanned(name, ordered, dtype, *shape(k_max, features)), start, count, body)

    prev_h: list[Value] = []  # for each axis
    prev_c: list[Value] = []
    states = [(h, prev_h), (c, prev_c)] if sweep.cell.recurrent else [(c, prev_c)]
    for d, where in enumerate(tables.predecessors):
        if len(where) == 2:
            first, end = (
                scanned(f"rows_{d}_{k}", rows.of_positions(part), INDEX, 1) for k, part in enumerate(where)
            )
            for state, prev in states:
                prev.append(rows.slice(state, first, end, body))
        else:
            table = rows.of_samples(where[0], 2)
            longest = k_max if dirs == 1 else None
            selected = body.slice_rows(scanned(f"rows_{d}", table, INDEX, longest), start, count)
            for state, prev in states:
                prev.append(body("Gather", state, selected, axis=rows.axis))
    h_new, c_new = step(
        prev_h,
        prev_c,
        positions("x", x, step.dtype, step.features),
        None if mask is None else positions("mask", mask, STATE_DTYPE, 1),
    )
    padded_h = body("Pad", h_new, pads)  # S positions
    padded_c = body("Pad", c_new, pads)
    scan_output = body("Identity", padded_h)
    outputs = [(padded_h, step.dtype), (padded_c, STATE_DTYPE), (scan_output, step.dtype)]
    zero_c = rows.zeros(tables.state_rows, sweep.units)
    zero_h = graph.cast(zero_c, step.dtype) if step.mixed_precision else zero_c
    *_, stacked_h = graph.add_node(
        "Scan",
        3,
        zero_h,
        zero_c,
        *scan_inputs,
        body=body.proto("step", [(value, dtype, state_shape) for value, dtype in outputs]),
        num_scan_inputs=len(scan_inputs),
    )
    return stacked_h


def _pads(graph: Graph, rows: Rows, tables: ScanTables) -> Value:
    """(T, 6) the operand of `Pad` that brings the states of each wavefront to S positions: what to add
    before and after each axis."""
    none = tables.missing * graph.integers(0)  # (T, 1)
    before = rows.of_positions(none + graph.integers(1))
    after = rows.of_positions(tables.missing)
    columns = [none] * 6
    columns[rows.axis], columns[rows.axis + 3] = before, after
    return graph.concat(columns, axis=1)
