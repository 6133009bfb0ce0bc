"""The computation of one wavefront, shared by both forms of a sweep, for all directions together.

Wavefront t has equally many positions in every direction, so one node serves all directions. At small
batches the number of nodes costs more than their size.

Notation
    N     batch                         P   positions of the grid, the product of its extents
    D     grid axes                     T   wavefronts
    C     input features                K   positions of the wavefront in question
    n     hidden units                  G   gates of the cell, 3 + D
    dirs  directions                    R   rows of the wavefront, (position, sample), K·N

Moving a position copies contiguous blocks of N rows. With one direction a tensor of a wavefront is
(K, N, n), and everything that selects positions is a constant. With several it is (dirs, R, n), because a
product of three axes is one matrix product for each direction; see `Rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import numpy_helper

from mdlstm_tk.cells import Cell
from mdlstm_tk.cells.cell import LAYER_NORM_EPS, TANH_GATE, total
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.wavefront import Direction

STATE_DTYPE = np.dtype(np.float32)  # of pre-activations, gates and c, whatever the dtype of the weights
SEPARATE_PRODUCTS_FROM = 64  # units; below, one product for all sigmoid gates is faster than one per gate
BATCHED_PRODUCTS_BELOW = 64  # units; above, ONNX Runtime takes longer to pack the weights of each product


@dataclass(frozen=True)
class Sweep:
    """The content of a `mdlstm::Wavefront` node.

    Attributes:
        x: (N, *grid, C).
        weight_ih: (dirs, G·n, C).
        weight_hh: (dirs, D, G·n, n), or None if the cell is not recurrent.
        bias: (dirs, G·n) or None.
        peephole: (dirs, 2D + 1, n) or None.
        norm_weight: (dirs, G + 1, n) or None.
        norm_bias: (dirs, G + 1, n) or None.
        sizes: (N, D) int64, the valid extents of each sample, or None.
        grid: extents, −1 where an extent is free.
        directions: signs of each direction.
        cell: the cell with its equations.
        separate_products: whether h and x enter products of their own and the bias is added afterwards,
            instead of one product of all three. That takes more nodes, but quantisation loses less: each
            operand has a range of its own, and padding does not count.
    """

    x: Value
    weight_ih: np.ndarray
    weight_hh: np.ndarray | None
    bias: np.ndarray | None
    peephole: np.ndarray | None
    norm_weight: np.ndarray | None
    norm_bias: np.ndarray | None
    sizes: Value | None
    grid: tuple[int, ...]
    directions: list[Direction]
    cell: Cell
    separate_products: bool = False

    @property
    def dirs(self) -> int:
        """The number of directions."""
        return len(self.directions)

    def of_direction(self, index: int) -> Sweep:
        """The sweep in one of its directions."""

        def part(parameter: np.ndarray | None) -> np.ndarray | None:
            return None if parameter is None else parameter[index : index + 1]

        return replace(
            self,
            directions=[self.directions[index]],
            weight_ih=self.weight_ih[index : index + 1],
            weight_hh=part(self.weight_hh),
            bias=part(self.bias),
            peephole=part(self.peephole),
            norm_weight=part(self.norm_weight),
            norm_bias=part(self.norm_bias),
        )

    @property
    def has_ones(self) -> bool:
        """Whether x gets a last feature of ones, for the bias."""
        return self.bias is not None and not self.separate_products

    @property
    def units(self) -> int:
        """n."""
        return int(self.weight_ih.shape[1]) // len(self.cell.gates(len(self.grid)))


class Step:
    """One wavefront in all directions: `mdlstm_tk.cells.step.cell_step` on values of a graph.

    Args:
        graph: the graph to add nodes to.
        sweep: the sweep.
    """

    def __init__(self, graph: Graph, sweep: Sweep) -> None:
        self.graph = graph
        self.cell = sweep.cell
        self.dirs = sweep.dirs
        self.gate_names = sweep.cell.gates(len(sweep.grid))
        self.units = sweep.units
        self.features = sweep.weight_ih.shape[-1] + sweep.has_ones  # of x, see `flatten_x`
        self.peephole, self.norm_weight, self.norm_bias = (
            None if rows is None else rows.astype(STATE_DTYPE)
            for rows in (sweep.peephole, sweep.norm_weight, sweep.norm_bias)
        )
        w_hh = [] if sweep.weight_hh is None else list(sweep.weight_hh.swapaxes(0, 1))  # D × (dirs, G·n, n)
        w_ih = [sweep.weight_ih]  # (dirs, G·n, C)
        if sweep.bias is not None and sweep.has_ones:
            w_ih.append(sweep.bias[:, :, None])
        self.bias = None if sweep.has_ones else sweep.bias  # (dirs, G·n)
        blocks = [w_hh, w_ih] if sweep.separate_products else [w_hh + w_ih]
        gates_and_units = (len(self.gate_names), self.units)
        self.weights = [  # for each operand of the products: (dirs, its features, G, n)
            np.concatenate(block, axis=2).swapaxes(1, 2).reshape(self.dirs, -1, *gates_and_units)
            for block in blocks
            if block
        ]
        self.separate_products = sweep.separate_products
        self.batched = self.units < BATCHED_PRODUCTS_BELOW and not sweep.separate_products
        self.dtype = sweep.weight_ih.dtype
        self.mixed_precision = self.dtype != STATE_DTYPE
        self._parts: dict[str, list[Value]] = {}  # of the last operand that was split

    def __call__(
        self, h: Sequence[Value], c: Sequence[Value], x: Value, mask: Value | None = None
    ) -> tuple[Value, Value]:
        """Compute h and c of a wavefront.

        Args:
            h: for each axis h of the predecessors along it, in the dtype of the weights; empty if the cell
                is not recurrent. It is (K, N, n) with one direction and (dirs, R, n) with several, as is
                everything here.
            c: for each axis c of the predecessors along it, in `STATE_DTYPE`.
            x: C features, or C + 1 with a last feature of ones if there is a bias.
            mask: one feature, 1 where the position is valid and 0 in the padding.

        Returns:
            h in the dtype of the weights, and c.
        """
        output_gate = len(self.gate_names) - 1

        def output_activation(c_new: Value) -> Value:
            return self.graph("Tanh", self._normalise(c_new, len(self.gate_names)))

        def apply_output_gate(gate: Value, c_new: Value) -> Value:
            if self.peephole is None:
                return gate
            return self._activate(gate + c_new * self._row(self.peephole, -1), output_gate)

        if self.separate_products:  # D·n and C features
            operands = [self.graph.concat(h, axis=-1), x] if h else [x]
        else:
            operands = [self.graph.concat([*h, x], axis=-1)]  # D·n + C + 1 features
        gates = self._gates(operands, c)
        first = len(self.graph.nodes)
        h_new, c_new = self.cell.step(gates, c, output_activation, apply_output_gate)
        self.graph.join_sums(first, [h_new, c_new])
        if mask is not None:
            h_new, c_new = h_new * mask, c_new * mask
        return self._to_weight_dtype(h_new), c_new

    def _gates(self, operands: Sequence[Value], c: Sequence[Value]) -> list[Value]:
        """G gates, activated, except that `apply_output_gate` activates one with a peephole.

        ONNX Runtime copies the parts of a Split, so each gate is a product of its own. Where products are
        so small that their number matters more, all sigmoid gates share one product.
        """
        if self.norm_weight is None and self.peephole is None and self.units < SEPARATE_PRODUCTS_FROM:
            return self._gates_from_joint_product(operands)
        pre_activations = [self._product(operands, [gate]) for gate in range(len(self.gate_names))]
        if self.peephole is not None:
            for d, c_d in enumerate(c):  # gate 0 is i, gates 1 … D are f_d
                pre_activations[0] = pre_activations[0] + c_d * self._row(self.peephole, d)
                pre_activations[1 + d] = pre_activations[1 + d] + c_d * self._row(self.peephole, len(c) + d)
        late = 0 if self.peephole is None else 1
        early = len(pre_activations) - late
        return [
            *(self._activate(value, gate) for gate, value in enumerate(pre_activations[:early])),
            *pre_activations[early:],
        ]

    def _gates_from_joint_product(self, operands: Sequence[Value]) -> list[Value]:
        sigmoid_gates = [gate for gate, name in enumerate(self.gate_names) if name != TANH_GATE]
        joint = self.graph("Sigmoid", self._product(operands, sigmoid_gates))
        gates = self.graph.split(joint, [self.units] * len(sigmoid_gates), axis=-1)
        if TANH_GATE in self.gate_names:
            candidate = self.gate_names.index(TANH_GATE)
            gates.insert(candidate, self.graph("Tanh", self._product(operands, [candidate])))
        return gates

    def _product(self, operands: Sequence[Value], gates: Sequence[int]) -> Value:
        """Pre-activations of some gates side by side, n features each."""
        result = total(
            [
                self._times(operand, weight[:, :, gates].reshape(*weight.shape[:2], -1))
                for operand, weight in zip(operands, self.weights, strict=True)
            ]
        )
        if self.bias is not None:
            bias = self.bias.reshape(self.dirs, -1, self.units)[:, gates]
            result = result + self._constant(bias.reshape(self.dirs, -1))
        return self.graph.cast(result, STATE_DTYPE) if self.mixed_precision else result

    def _times(self, operand: Value, weight: np.ndarray) -> Value:
        """The product of an operand and the weight (dirs, features, …) of each direction."""
        graph = self.graph
        if self.dirs == 1:
            return graph("MatMul", operand, graph.constant(weight[0]))
        if self.batched:
            return graph("MatMul", operand, graph.constant(weight))
        parts = self._of_directions(operand)
        return graph.concat(
            [graph("MatMul", part, graph.constant(w)) for part, w in zip(parts, weight, strict=True)],
            axis=0,
        )

    def _of_directions(self, operand: Value) -> list[Value]:
        """(dirs, R, …) → dirs × (1, R, …)."""
        if operand.name not in self._parts:
            self._parts = {operand.name: self.graph.split(operand, [1] * self.dirs, axis=0)}
        return self._parts[operand.name]

    def _activate(self, value: Value, gate: int) -> Value:
        op = "Tanh" if self.gate_names[gate] == TANH_GATE else "Sigmoid"
        return self.graph(op, self._normalise(value, gate))

    def _normalise(self, value: Value, row: int) -> Value:
        """Layer norm with the parameters of a gate, or in row G with those of c; nothing without it."""
        if self.norm_weight is None or self.norm_bias is None:
            return value
        weight, bias = self._row(self.norm_weight, row), self._row(self.norm_bias, row)
        options = {"axis": -1, "epsilon": LAYER_NORM_EPS}
        if self.dirs == 1:
            return self.graph("LayerNormalization", value, weight, bias, **options)
        ones = self.graph.constant(np.ones(self.units, STATE_DTYPE))  # the operator takes one row alone
        return self.graph("LayerNormalization", value, ones, **options) * weight + bias

    def _row(self, parameter: np.ndarray, row: int) -> Value:
        return self._constant(parameter[:, row])

    def _constant(self, values: np.ndarray) -> Value:
        """(dirs, features) as a constant that broadcasts against the rows of all directions."""
        return self.graph.constant(values[0] if self.dirs == 1 else values[:, None])

    def _to_weight_dtype(self, h: Value) -> Value:
        """h in the dtype in which it enters products and leaves the sweep."""
        return self.graph.cast(h, self.dtype) if self.mixed_precision else h


class Rows:
    """The rows of wavefronts: axis 0 of (K, N, n), or with several directions axis 1 of (dirs, K·N, n).

    Attributes:
        axis: the axis of the rows.
        batch: N as a tensor (1,).
    """

    def __init__(self, graph: Graph, sweep: Sweep) -> None:
        self.graph = graph
        self.dirs = sweep.dirs
        self.axis = 0 if self.dirs == 1 else 1
        self.batch = graph("Shape", sweep.x, start=0, end=1)

    def of_positions(self, positions: Value) -> Value:
        """Numbers of positions, int64, as numbers of rows."""
        return positions if self.dirs == 1 else positions * self.batch

    def zeros(self, positions: Value, features: int) -> Value:
        """Zeros in `STATE_DTYPE` for a number of positions, a tensor (1,)."""
        graph = self.graph
        rows = (
            [positions, self.batch]
            if self.dirs == 1
            else [graph.integers(self.dirs), positions * self.batch]
        )
        shape = graph.concat([*rows, graph.integers(features)], axis=0)
        # Without `value` the tensor is float32 as well, but tract insists on the attribute.
        return graph("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, STATE_DTYPE)))

    def of_samples(self, table: Value, axes: int) -> Value:
        """(…, K) positions, a table with this number of axes, as (…, K·N) rows of their samples."""
        if self.dirs == 1:
            return table
        graph = self.graph
        end = graph("Squeeze", self.batch, graph.integers(0))
        samples = graph("Range", graph.scalar(0), end, graph.scalar(1))  # (N,)
        rows = graph("Unsqueeze", table, graph.integers(-1)) * self.batch + samples  # (…, K, N)
        return graph.reshape(rows, *[0] * (axes - 1), -1)

    def slice(self, state: Value, start: Value, end: Value, graph: Graph | None = None) -> Value:
        """Rows start … end − 1, in this graph or in a body."""
        graph = graph or self.graph
        return graph("Slice", state, start, end, graph.integers(self.axis))


def flatten_x(graph: Graph, sweep: Sweep, mask: Value | None) -> Value:
    """x as (P, N, C), or as (P, N, C + 1) with a last feature of ones; zero in the padding if products are
    separate and there is a mask (P, N, 1)."""
    x = sweep.x
    if sweep.has_ones:
        pads = [0] * (2 * len(sweep.grid) + 3) + [1]
        x = graph("Pad", x, graph.integers(*pads), graph.constant(np.ones((), sweep.weight_ih.dtype)))
    features = sweep.weight_ih.shape[-1] + sweep.has_ones
    x = graph("Transpose", graph.reshape(x, 0, -1, features), perm=[1, 0, 2])
    return x * mask if mask is not None and sweep.separate_products else x


def valid_mask(graph: Graph, coordinates: Sequence[Value], sizes: Value) -> Value:
    """(P, N, 1), 1 where a position lies within the valid extents of a sample, else 0.

    Args:
        graph: the graph to add nodes to.
        coordinates: for each axis (P), the coordinate of every position.
        sizes: (N, D), the valid extents.
    """
    positions = graph.concat(
        [graph("Unsqueeze", axis, graph.integers(1, 2)) for axis in coordinates], axis=-1
    )  # (P, 1, D)
    below = graph.cast(graph("Less", positions, sizes), STATE_DTYPE)  # (P, N, D)
    return graph("ReduceMin", below, graph.integers(-1), keepdims=1)


def direction_label(direction: Direction) -> str:
    """(1, −1) → "+-", for the names of nodes."""
    return "".join("+" if sign > 0 else "-" for sign in direction)
