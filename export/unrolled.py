"""A sweep written out step by step for one grid, in standard ONNX ops.

Tensors have rows (sample, position): the states of a wavefront are (N, K, n), and one Gather along
the positions, with a row of zeros behind the last, brings what lies one step back along all axes.
The batch stays free. Each direction is a chain of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdlstm_tk.cells import LAYER_NORM_EPS, Cell
from mdlstm_tk.export.graph import Graph, Value
from mdlstm_tk.wavefront import Direction, visiting_order, wavefronts


@dataclass(frozen=True)
class Sweep:
    """What a `mdlstm::Wavefront` node holds.

    Attributes:
        a: (N, *grid, dirs·G·n) input projections.
        weight_hh: (dirs, D, G·n, n).
        peephole, norm_weight, norm_bias: as `CellParameters`, or None.
        sizes: (N, D) int64 or None.
        grid: the extents.
        directions: of the sweep.
        cell: its equations.
    """

    a: Value
    weight_hh: np.ndarray
    peephole: np.ndarray | None
    norm_weight: np.ndarray | None
    norm_bias: np.ndarray | None
    sizes: Value | None
    grid: tuple[int, ...]
    directions: list[Direction]
    cell: Cell


def write_unrolled(graph: Graph, sweep: Sweep) -> Value:
    """Add the sweep's nodes; returns h (N, *grid, dirs, n)."""
    dirs, _, width, units = sweep.weight_hh.shape
    positions = int(np.prod(sweep.grid))
    a = graph.split(graph.reshape(sweep.a, 0, positions, dirs * width), [width] * dirs, axis=2)
    batch = graph("Shape", sweep.a, start=0, end=1)
    shape = graph.concat([batch, graph.constant(np.asarray([1, units], np.int64))], axis=0)
    zero = graph("ConstantOfShape", shape)  # (N, 1, n)
    inside = None if sweep.sizes is None else _inside(graph, sweep.grid, sweep.sizes)
    outputs = []
    for k, direction in enumerate(sweep.directions):
        with graph.scope("direction_" + "".join("+" if sign > 0 else "-" for sign in direction)):
            h = _write_direction(graph, sweep, k, a[k], zero, inside)
            outputs.append(graph.reshape(h, 0, *sweep.grid, 1, units))
    return graph.concat(outputs, axis=-2)


def _write_direction(
    graph: Graph, sweep: Sweep, k: int, a: Value, zero: Value, inside: Value | None
) -> Value:
    """h (N, P, n) of direction k, given its projections (N, P, G·n)."""
    front = wavefronts(sweep.grid)
    order = visiting_order(sweep.grid, sweep.directions[k])
    ndim, width, units = sweep.weight_hh.shape[1:]
    recurrent = graph.constant(sweep.weight_hh[k].transpose(0, 2, 1).reshape(ndim * units, width))
    step = _Step(graph, sweep, k)
    h = c = zero
    outputs = []
    for t in range(len(front)):
        with graph.scope(f"wavefront_{t}"):
            here = graph.constant(order[front.slice(t)])  # (K)
            total = graph("Gather", a, here, axis=1)  # (N, K, G·n)
            states = [zero] * ndim
            if t > 0:
                places = front.predecessors(t)  # (D, K), −1 where there is none
                behind = front.starts[t] - front.starts[t - 1]
                back = np.where(places < 0, behind, places)
                rows = graph.concat([h, zero], axis=1)
                gathered = graph("Gather", rows, graph.constant(back.T), axis=1)  # (N, K, D, n)
                operand = graph.reshape(gathered, 0, back.shape[1], ndim * units)
                total = graph("MatMul", operand, recurrent) + total
                rows = graph.concat([c, zero], axis=1)
                states = [graph("Gather", rows, graph.constant(row), axis=1) for row in back]
            h, c = step(total, states)
            if inside is not None:
                mask = graph("Gather", inside, here, axis=1)  # (N, K, 1)
                h, c = h * mask, c * mask
            outputs.append(h)
    joined = graph.concat(outputs, axis=1)
    return graph("Gather", joined, graph.constant(np.argsort(order)), axis=1)


class _Step:
    """A cell's step on graph values: the twin of `mdlstm_tk.backends.step.cell_step`."""

    def __init__(self, graph: Graph, sweep: Sweep, k: int) -> None:
        self.graph = graph
        self.cell = sweep.cell
        self.names = sweep.cell.gates(len(sweep.grid))
        self.units = sweep.weight_hh.shape[-1]
        rows = (sweep.peephole, sweep.norm_weight, sweep.norm_bias)
        self.peephole, self.scale, self.shift = (None if row is None else row[k] for row in rows)

    def __call__(self, a: Value, c: list[Value]) -> tuple[Value, Value]:
        """New h and c (N, K, n), given pre-activations (N, K, G·n) and D states (N, K, n)."""
        last = len(self.names) - 1

        def squash(value: Value) -> Value:
            return self.graph("Tanh", self._normalise(value, len(self.names)))

        def late_gate(gate: Value, new: Value) -> Value:
            if self.peephole is None:
                return gate
            return self._activate(gate + new * self._row(self.peephole, -1), last)

        return self.cell.step(self._gates(a, c), c, squash, late_gate)

    def _gates(self, a: Value, c: list[Value]) -> list[Value]:
        """The activated gates; with peepholes the output gate is left to `late_gate`."""
        if self.peephole is None and self.scale is None:
            return self._blocks(a)
        gates = self.graph.split(a, [self.units] * len(self.names), axis=-1)
        if self.peephole is None:
            return [self._activate(gate, row) for row, gate in enumerate(gates)]
        for d, state in enumerate(c):
            gates[0] = gates[0] + state * self._row(self.peephole, d)
            gates[1 + d] = gates[1 + d] + state * self._row(self.peephole, len(c) + d)
        return [self._activate(gate, row) for row, gate in enumerate(gates[:-1])] + gates[-1:]

    def _blocks(self, a: Value) -> list[Value]:
        """Activate what lies before g, g, and what lies behind it as a block each."""
        candidate = self.names.index("g")
        behind = len(self.names) - candidate - 1
        n = self.units
        before, g, after = self.graph.split(a, [candidate * n, n, behind * n], axis=-1)
        return [
            *self.graph.split(self.graph("Sigmoid", before), [n] * candidate, axis=-1),
            self.graph("Tanh", g),
            *self.graph.split(self.graph("Sigmoid", after), [n] * behind, axis=-1),
        ]

    def _activate(self, value: Value, row: int) -> Value:
        op = "Tanh" if self.names[row] == "g" else "Sigmoid"
        return self.graph(op, self._normalise(value, row))

    def _normalise(self, value: Value, row: int) -> Value:
        if self.scale is None or self.shift is None:
            return value
        scale, shift = self._row(self.scale, row), self._row(self.shift, row)
        return self.graph("LayerNormalization", value, scale, shift, axis=-1, epsilon=LAYER_NORM_EPS)

    def _row(self, rows: np.ndarray, row: int) -> Value:
        return self.graph.constant(rows[row])


def _inside(graph: Graph, grid: tuple[int, ...], sizes: Value) -> Value:
    """(N, P, 1) 1 where the position lies inside the sample's valid extent, else 0."""
    coordinates = np.indices(grid).reshape(len(grid), -1).T[None]  # (1, P, D)
    limits = graph("Unsqueeze", sizes, graph.constant(np.asarray([1], np.int64)))  # (N, 1, D)
    below = graph("Less", graph.constant(coordinates), limits)
    inside = graph("Cast", below, to=1)
    return graph("ReduceMin", inside, graph.constant(np.asarray([-1], np.int64)), keepdims=1)
