"""A sweep in standard operators: the iteration over its wavefronts, in either form.

The iteration computes the positions of one wavefront in all directions, and no others.

Notation, parts of a state, and the shapes of rows are those of step.py.
"""

from __future__ import annotations

from mdlstm_tk.export.lowering.faces import Faces
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.scan import Scan
from mdlstm_tk.export.lowering.step import (
    STATE_DTYPE,
    Rows,
    Step,
    Sweep,
    direction_label,
    flatten_x,
    valid_mask,
)
from mdlstm_tk.export.lowering.tables import scan_tables
from mdlstm_tk.export.lowering.unrolled import Unrolled


def write_sweep(graph: Graph, sweep: Sweep, form: type[Scan | Unrolled] = Scan) -> list[Value]:
    """Add the nodes of a sweep.

    Returns:
        h (N, *grid, dirs, n), and with initial states the final ones (N, F, dirs, 1 + S, n).
    """
    ndim, dirs = len(sweep.grid), sweep.dirs
    if sweep.initial is not None and dirs > 1:
        results = []
        for k, direction in enumerate(sweep.directions):
            with graph.scope(f"direction_{direction_label(direction)}"):
                results.append(write_sweep(graph, sweep.of_direction(graph, k), form))
        return [graph.concat(of_all, axis=axis) for axis, *of_all in zip((-2, 2), *results, strict=True)]
    tables, rows = scan_tables(graph, sweep), Rows(graph, sweep)
    faces = None if sweep.initial is None else Faces(graph, sweep, tables, sweep.initial)
    loop = form(graph, sweep, rows, tables, faces)
    step = Step(loop.body, sweep)
    x = flatten_x(graph, sweep)  # (P, N, C)
    mask = None if sweep.sizes is None else valid_mask(graph, tables.coordinates, sweep.sizes)  # (P, N, 1)

    def iteration() -> list[Value]:
        previous: list[list[Value]] = [[] for _ in sweep.parts]  # for each part and axis
        for k, (features, dtype) in enumerate(sweep.parts):
            for d in range(ndim if k or step.reads_h else 0):
                state = loop.predecessors(d, k)
                if faces is not None and ndim > 2:
                    name, face = f"face_{d}_{k}", faces.padded(d, k)
                    state += loop.at(name, face, faces.lines[d], dtype, features)
                previous[k].append(state)
        x_here = loop.at("x", x, tables.orders, sweep.dtype, sweep.features)
        valid = None if mask is None else loop.at("mask", mask, tables.orders, STATE_DTYPE, 1)
        return step(previous, x_here, valid)

    parts = loop.run(iteration)
    shape = graph.concat([graph.integers(-1), rows.batch, graph.integers(sweep.units)], axis=0)
    stacked = graph("Reshape", parts[len(sweep.parts)], shape)
    h = graph("Gather", stacked, loop.output_rows, axis=0)  # (P, dirs, N, n)
    h = graph("Transpose", h, perm=[2, 0, 1, 3])
    shape = graph.concat([graph.integers(0), *tables.extents, graph.integers(dirs, sweep.units)], axis=0)
    y = graph("Reshape", h, shape)
    if faces is None:
        return [y]
    others = parts[1 if ndim == 1 else -1] if len(sweep.parts) > 1 else None
    return [y, faces.final(h, others, loop.output_rows)]
