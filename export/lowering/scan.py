"""The scan form: a sweep as one ONNX Scan over its wavefronts, for any grid.

The body computes the positions of one wavefront in all directions, and no others. Each iteration gets x at
K_max positions, of which the first K are its own, and pads the states that it returns to the number of
positions that all iterations share (see tables.py).

Whatever is computed outside the body enters it as an input, and inputs and outputs are typed. ONNX asks for
neither, but OpenVINO takes no other Scan. Constants stay outside.

Notation, parts of a state, and the shapes of rows are those of step.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mdlstm_tk.export.lowering.faces import Faces
from mdlstm_tk.export.lowering.graph import Graph, Loop, Value
from mdlstm_tk.export.lowering.step import STATE_DTYPE, Rows, Step, Sweep, flatten_x, valid_mask
from mdlstm_tk.export.lowering.tables import ScanTables, scan_tables

INDEX = np.dtype(np.int64)


def write_scan(graph: Graph, sweep: Sweep) -> list[Value]:
    """Add the nodes of a sweep; one with initial states has one direction.

    Returns:
        h (N, *grid, dirs, n), and with initial states the final ones (N, F, dirs, 1 + S, n).
    """
    dirs, units = sweep.dirs, sweep.units
    tables = scan_tables(graph, sweep)
    mask = None if sweep.sizes is None else valid_mask(graph, tables.coordinates, sweep.sizes)  # (P, N, 1)
    x = flatten_x(graph, sweep)  # (P, N, C)
    rows = Rows(graph, sweep)
    faces = None if sweep.initial is None else Faces(graph, sweep, tables, sweep.initial)
    results = _write_loop(graph, sweep, rows, tables, x, mask, faces)
    samples = graph("Unsqueeze", graph.arange(rows.batch), graph.integers(1, 2))
    places = tables.output_rows * rows.batch + samples  # (N, P, dirs) among the rows of all iterations
    stacked_h = graph.reshape(results[len(sweep.parts)], -1, units)
    h = graph("Gather", stacked_h, places, axis=0)  # (N, P, dirs, n)
    batch_and_grid = graph("Shape", sweep.x, start=0, end=-1)
    y = graph("Reshape", h, graph.concat([batch_and_grid, graph.integers(dirs, units)], axis=0))
    if faces is None:
        return [y]
    others = results[1 if len(sweep.grid) == 1 else -1] if len(sweep.parts) > 1 else None
    return [y, faces.final(h, others)]


def _write_loop(
    graph: Graph,
    sweep: Sweep,
    rows: Rows,
    tables: ScanTables,
    x: Value,
    mask: Value | None,
    faces: Faces | None,
) -> list[Value]:
    """Add the Scan, given x (P, N, C) and the mask (P, N, 1).

    Returns:
        The parts of the state after the last iteration, h of all iterations, (T, L, N, n) or
        (T, dirs, L·N, n), and on two and more axes with faces the states beside h, see `Faces.final`.
    """
    ndim, dirs = len(sweep.grid), sweep.dirs
    loop = Loop(graph)
    body, scan, step = loop.body, loop.scan, Step(loop.body, sweep)
    longest = 1 if ndim == 1 else None  # K_max and L, as far as they are known

    def shape(positions: int | None, features: int) -> tuple[int | None, ...]:
        return (positions, None, features) if dirs == 1 else (dirs, None, features)

    initial = rows.zeros(tables.state_rows) if faces is None else faces.initial(rows)
    states = [
        loop.carry(f"state_{k}", value, dtype, *shape(longest, features))
        for k, (value, (features, dtype)) in enumerate(zip(initial, sweep.parts, strict=True))
    ]
    if ndim > 1:
        count = scan("count", rows.of_positions(tables.counts), INDEX, 1)  # K
        pads = scan("pads", _pads(graph, rows, tables, faces), INDEX, 6)

    def positions(name: str, values: Value, dtype: np.dtype[Any], features: int) -> Value:
        """The rows of `values` (T, [dirs,] K_max, N, features) at the positions of the wavefront."""
        if dirs > 1:
            values = graph.reshape(values, 0, dirs, -1, features)
        values = scan(name, values, dtype, *shape(longest, features))
        return values if ndim == 1 else body.slice(values, 0, count, rows.axis)

    previous: list[list[Value]] = [[] for _ in states]  # for each part and axis
    read = [k for k in range(len(states)) if k or step.reads_h]
    for d, where in enumerate(tables.predecessors):
        if ndim == 2:
            bounds = [
                scan(f"rows_{d}_{k}", rows.of_positions(part), INDEX, 1) for k, part in enumerate(where)
            ]
        elif ndim > 2:
            table = scan(f"rows_{d}", rows.of_samples(where[0], 2), INDEX, None)
            table = body.slice(table, 0, count)
        for k in read:
            state = states[k]
            if ndim == 2:
                state = body.slice(state, bounds[0], bounds[1], rows.axis)
            elif ndim > 2:
                state = body("Gather", state, table, axis=rows.axis)
                if faces is not None:
                    features, dtype = sweep.parts[k]
                    state += positions(f"face_{d}_{k}", faces.at_positions(d, k), dtype, features)
            previous[k].append(state)

    x_here = positions("x", graph("Gather", x, tables.orders, axis=0), sweep.dtype, sweep.features)
    valid = None
    if mask is not None:
        valid = positions("mask", graph("Gather", mask, tables.orders, axis=0), STATE_DTYPE, 1)
    new = step(previous, x_here, valid)
    after = list(new)
    for k, (value, (features, dtype)) in enumerate(zip(new, sweep.parts, strict=True)):
        if faces is not None and faces.are_rows:
            around = [
                scan(f"face_{d}_{k}", face, dtype, *shape(1, features))
                for d, face in enumerate(faces.entering(k))
            ]
            value = body.concat([around[0], value, around[1]], axis=0)
        if ndim > 1:
            after[k] = body("Pad", value, pads)  # L positions
    outputs = [(after[0], sweep.dtype, shape(longest, sweep.units))]
    if faces is not None and ndim > 1 and len(new) > 1:
        others, extent = after[1], longest
        if faces.are_rows:
            others, extent = body("Gather", new[1], body.integers(0, -1), axis=0), 2
        outputs.append((others, STATE_DTYPE, shape(extent, sweep.parts[1][0])))
    return loop.finish(after, outputs)


def _pads(graph: Graph, rows: Rows, tables: ScanTables, faces: Faces | None) -> Value:
    """(T, 6) the operand of `Pad` that brings the states of each wavefront to L positions: what to add
    before and after each axis. Where faces are rows of a state, they are there already."""
    none = tables.missing * graph.integers(0)  # (T, 1)
    before, missing = none + graph.integers(1), tables.missing
    if faces is not None and faces.are_rows:
        before, missing = none, missing - graph.integers(1)
    columns = [none] * 6
    columns[rows.axis], columns[rows.axis + 3] = rows.of_positions(before), rows.of_positions(missing)
    return graph.concat(columns, axis=1)
