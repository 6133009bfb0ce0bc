"""What a sweep computes in one step, whichever form it is written in.

Tensors have rows (position, sample): the states of K positions are (K, N, n), so the positions of a
wavefront are moved by copying whole blocks, and a step is one matrix product over K·N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mdlstm_tk.cells.equations import LAYER_NORM_EPS, Cell

from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.wavefront import Direction

STATE = np.dtype(np.float32)  # of gates and states, whatever the weights are kept in
WIDE = 64  # units from which a product for each gate is faster than one for all


@dataclass(frozen=True)
class Sweep:
    """What a `mdlstm::Wavefront` node holds.

    Attributes:
        x: (N, *grid, C).
        weight_ih: (dirs, G·n, C).
        weight_hh: (dirs, D, G·n, n).
        bias: (dirs, G·n) or None.
        peephole, norm_weight, norm_bias: as `CellParameters`, or None.
        sizes: (N, D) int64 or None.
        grid: the extents, −1 where they are free.
        directions: of the sweep.
        cell: its equations.
    """

    x: Value
    weight_ih: np.ndarray
    weight_hh: np.ndarray
    bias: np.ndarray | None
    peephole: np.ndarray | None
    norm_weight: np.ndarray | None
    norm_bias: np.ndarray | None
    sizes: Value | None
    grid: tuple[int, ...]
    directions: list[Direction]
    cell: Cell

    @property
    def units(self) -> int:
        """n."""
        return int(self.weight_hh.shape[-1])


class Step:
    """One step of direction k: the twin of `mdlstm_tk.cells.step.cell_step` on graph values."""

    def __init__(self, graph: Graph, sweep: Sweep, k: int) -> None:
        self.graph = graph
        self.cell = sweep.cell
        self.names = sweep.cell.gates(len(sweep.grid))
        self.units = sweep.units
        rows = (sweep.peephole, sweep.norm_weight, sweep.norm_bias)
        self.peephole, self.scale, self.shift = (
            None if row is None else row[k].astype(STATE) for row in rows
        )
        parts = [*sweep.weight_hh[k], sweep.weight_ih[k]]  # (G·n, n) × D, (G·n, C)
        if sweep.bias is not None:
            parts.append(sweep.bias[k, :, None])
        joint = np.concatenate(parts, axis=1).T  # (D·n + C + 1, G·n)
        self.weights = np.split(joint, len(self.names), axis=1)
        self.dtype = joint.dtype
        self.low = self.dtype != STATE

    def __call__(
        self, h: Sequence[Value], c: Sequence[Value], x: Value, mask: Value | None = None
    ) -> tuple[Value, Value]:
        """New h and c.

        Args:
            h: D times (K, N, n), one step back along each axis, in the weights' dtype.
            c: the same of c, in `STATE`.
            x: (K, N, C), with ones as one feature more if there is a bias.
            mask: (K, N, 1) 1 where the position lies in the sample's valid extent, else 0.

        Returns:
            h (K, N, n) in the weights' dtype and c (K, N, n).
        """
        last = len(self.names) - 1

        def squash(value: Value) -> Value:
            return self.graph("Tanh", self._normalise(value, len(self.names)))

        def late_gate(gate: Value, new: Value) -> Value:
            if self.peephole is None:
                return gate
            return self._activate(gate + new * self._row(self.peephole, -1), last)

        operand = self.graph.concat([*h, x], axis=-1)  # (K, N, D·n + C)
        a = self._gates(operand, c)
        new_h, new_c = self.cell.step(a, c, squash, late_gate)
        if mask is not None:
            new_h, new_c = new_h * mask, new_c * mask
        return self._output(new_h), new_c

    def zeros(self, graph: Graph, x: Value, rows: Value) -> tuple[Value, Value]:
        """h and c (rows, N, n) outside the grid, given x (N, …)."""
        batch = graph("Shape", x, start=0, end=1)
        shape = graph.concat([rows, batch, graph.integers(self.units)], axis=0)
        c = graph("ConstantOfShape", shape)
        return (graph.cast(c, self.dtype) if self.low else c), c

    def _gates(self, operand: Value, c: Sequence[Value]) -> list[Value]:
        """The activated gates; with peepholes the output gate is left to `late_gate`.

        ONNX Runtime copies what it splits, so each gate is a product of its own; or, where products are
        so small that their number counts, the sigmoid gates are one together.
        """
        if self.scale is None and self.peephole is None and self.units < WIDE:
            return self._sigmoids_together(operand)
        gates = [self._product(operand, part) for part in self.weights]
        if self.peephole is not None:
            for d, state in enumerate(c):
                gates[0] = gates[0] + state * self._row(self.peephole, d)
                gates[1 + d] = gates[1 + d] + state * self._row(self.peephole, len(c) + d)
        early = len(gates) - (self.peephole is not None)
        return [self._activate(gate, row) for row, gate in enumerate(gates[:early])] + gates[early:]

    def _sigmoids_together(self, operand: Value) -> list[Value]:
        others = [part for name, part in zip(self.names, self.weights, strict=True) if name != "g"]
        block = self.graph("Sigmoid", self._product(operand, np.concatenate(others, axis=1)))
        gates = self.graph.split(block, [self.units] * len(others), axis=-1)
        candidate = self.names.index("g")
        gates.insert(candidate, self.graph("Tanh", self._product(operand, self.weights[candidate])))
        return gates

    def _product(self, operand: Value, weight: np.ndarray) -> Value:
        value = self.graph("MatMul", operand, self.graph.constant(weight))
        return self.graph.cast(value, STATE) if self.low else value

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

    def _output(self, value: Value) -> Value:
        """h as it goes into products and out of the sweep: in the weights' dtype."""
        return self.graph.cast(value, self.dtype) if self.low else value


def rows_of_x(graph: Graph, sweep: Sweep) -> Value:
    """x as (P, N, C), with ones as one feature more if there is a bias."""
    x = sweep.x
    if sweep.bias is not None:
        pads = [0] * (2 * len(sweep.grid) + 3) + [1]
        x = graph("Pad", x, graph.integers(*pads), graph.constant(np.ones((), sweep.weight_ih.dtype)))
    width = sweep.weight_ih.shape[-1] + (sweep.bias is not None)
    return graph("Transpose", graph.reshape(x, 0, -1, width), perm=[1, 0, 2])


def signs(direction: Direction) -> str:
    """(1, −1) → "+-", for names."""
    return "".join("+" if sign > 0 else "-" for sign in direction)


def inside(graph: Graph, axes: Sequence[Value], sizes: Value) -> Value:
    """(P, N, 1) 1 where the position lies inside the sample's valid extent, else 0.

    Args:
        axes: D times (P), the positions' coordinates.
        sizes: (N, D).
    """
    coordinates = graph.concat([graph("Unsqueeze", axis, graph.integers(1, 2)) for axis in axes], axis=-1)
    below = graph.cast(graph("Less", coordinates, sizes), STATE)
    return graph("ReduceMin", below, graph.integers(-1), keepdims=1)
