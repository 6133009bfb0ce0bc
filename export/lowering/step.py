"""The computation of one wavefront, shared by the unrolled and the scan form, for all directions together.

Wavefront t has equally many positions in every direction, so one node serves all directions. At small
batches the number of nodes costs more than their size.

Notation
    N     batch                         P   positions of the grid, the product of its extents
    D     grid axes                     T   wavefronts
    C     input features                K   positions of the wavefront in question
    n     hidden units                  G   gates of the cell
    dirs  directions                    S   states beside h
    R     rows of the wavefront, (position, sample), K·N
    F     lines of all faces, as in `mdlstm_tk.states`; F_d those of face d
    K_max positions of the largest wavefront
    L     positions of a state in a scan, the same in all iterations: see tables.py

A position has h, in the dtype of the weights, and the other states side by side, S·n numbers in float32:
the *parts* of its state, one or two tensors.

Moving a position copies contiguous blocks of N rows. With one direction a tensor of a wavefront is
(K, N, n), and everything that selects positions is a constant. With several it is (dirs, R, n), because a
product of three axes is one matrix product for each direction; see `Rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import numpy_helper

from mdlstm_tk.cells.cell import Cell
from mdlstm_tk.cells.graph import LAYER_NORM_EPS, OPERATIONS, topological_order
from mdlstm_tk.cells.graph import Value as Recorded
from mdlstm_tk.cells.step import CELL_PARAMETERS, record_step
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.wavefront import Direction

STATE_DTYPE = np.dtype(np.float32)  # of pre-activations, gates and states, whatever the weights' dtype
PRODUCT_PER_GATE_FROM = 64  # units; below, one product for all sigmoid gates is faster than one per gate
BATCHED_PRODUCTS_BELOW = 64  # units; above, ONNX Runtime takes longer to pack the weights of each product
LAYER_NORM = "layer norm"  # as one recorded operation, of a value, its scale and its shift


@dataclass(frozen=True)
class Sweep:
    """The content of a `mdlstm::Wavefront` node.

    Attributes:
        x: (N, *grid, C).
        parameters: those that the layer has: weight_ih (dirs, G·n, C), weight_hh (dirs, D, G·n, n), bias
            (dirs, G·n), and those of `CELL_PARAMETERS`.
        grid: extents, −1 where an extent is free.
        directions: signs of each direction.
        cell: the cell with its equations.
        initial: (N, F, dirs, 1 + S, n), the states that the sweep starts from, or None for zeros.
        sizes: (N, D) int64, the valid extents of each sample, or None.
    """

    x: Value
    parameters: Mapping[str, np.ndarray]
    grid: tuple[int, ...]
    directions: Sequence[Direction]
    cell: Cell
    initial: Value | None = None
    sizes: Value | None = None

    @property
    def dirs(self) -> int:
        """The number of directions."""
        return len(self.directions)

    def of_direction(self, graph: Graph, index: int) -> Sweep:
        """The sweep in one of its directions."""
        initial = self.initial
        return replace(
            self,
            directions=[self.directions[index]],
            parameters={name: array[index : index + 1] for name, array in self.parameters.items()},
            initial=None if initial is None else graph.slice(initial, index, index + 1, axis=2),
        )

    def extents(self, graph: Graph) -> list[Value]:
        """The extent of each axis, (1,)."""
        return [
            graph.integers(extent) if extent > 0 else graph("Shape", self.x, start=1 + d, end=2 + d)
            for d, extent in enumerate(self.grid)
        ]

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype of x, the parameters and h."""
        return self.parameters["weight_ih"].dtype

    @property
    def has_ones(self) -> bool:
        """True if x gets a last feature of ones, for the bias."""
        return "bias" in self.parameters

    @property
    def features(self) -> int:
        """The features of x with that of ones, if there is one."""
        return int(self.parameters["weight_ih"].shape[-1]) + self.has_ones

    @property
    def units(self) -> int:
        """Hidden units n."""
        return int(self.parameters["weight_ih"].shape[1]) // len(self.cell.gates(len(self.grid)))

    @property
    def parts(self) -> list[tuple[int, np.dtype[np.floating]]]:
        """The features and the dtype of each part of a position's state."""
        others = len(self.cell.states) * self.units
        return [(self.units, self.dtype), *([(others, STATE_DTYPE)] if others else [])]


def parameters_of(layer: MDLSTM, number: int, direction: int) -> dict[str, np.ndarray]:
    """The parameters of a layer in one direction, as `Sweep` takes them, in float32.

    Args:
        layer: the layer.
        number: which of its stacked layers.
        direction: the index of the direction.
    """
    return {
        name: parameter[direction : direction + 1].detach().float().numpy()
        for name, parameter in layer._layer_parameters(number).items()
        if parameter is not None
    }


class Step:
    """One wavefront in all directions: the recorded step of the cell in nodes of a graph.

    Args:
        graph: the graph to add nodes to.
        sweep: the sweep.

    Attributes:
        reads_h: whether anything sees h of the predecessors.
    """

    def __init__(self, graph: Graph, sweep: Sweep) -> None:
        self.graph, self.sweep = graph, sweep
        self.dirs, self.units = sweep.dirs, sweep.units
        parameters, ndim = sweep.parameters, len(sweep.grid)
        self.gates = sweep.cell.gates(ndim)
        present = [name for name in CELL_PARAMETERS if name in parameters]
        self.step = record_step(
            sweep.cell, ndim, present, normalize=lambda x, *scale: x.graph.make(LAYER_NORM, [x, *scale])
        )
        values = topological_order([self.step.h, *self.step.states])
        self.equations_read_h = any(value.slot == "h_prev" for value in values)
        self.reads_h = sweep.cell.recurrent or self.equations_read_h
        self.parameter_values = {  # of the cell's parameters, by the id of their loads
            id(load): self._constant(parameters[name][:, row].astype(STATE_DTYPE))
            for name in present
            for row, load in enumerate(self.step.parameters[name])
        }
        self.gates_share_product = not present and self.units < PRODUCT_PER_GATE_FROM
        # D × (dirs, G·n, n), and (dirs, G·n, C)
        w_hh = list(parameters["weight_hh"].swapaxes(0, 1)) if sweep.cell.recurrent else []
        w_ih = [parameters["weight_ih"]]
        if sweep.has_ones:
            w_ih.append(parameters["bias"][:, :, None])
        weight = np.concatenate(w_hh + w_ih, axis=2).swapaxes(1, 2)
        self.weight = weight.reshape(self.dirs, -1, len(self.gates), self.units)  # (dirs, features, G, n)
        self.batched = self.units < BATCHED_PRODUCTS_BELOW
        self.mixed_precision = sweep.dtype != STATE_DTYPE

    def __call__(
        self, previous: Sequence[Sequence[Value]], x: Value, mask: Value | None = None
    ) -> list[Value]:
        """Compute the parts of the state of a wavefront.

        Args:
            previous: for each part that of the predecessors along each axis; nothing for h if nothing reads
                it. It is (K, N, features) with one direction and (dirs, R, features) with several, as is
                everything here.
            x: C features, or C + 1 with a last feature of ones if there is a bias.
            mask: one feature, 1 where the position is valid and 0 in the padding.
        """
        graph, step, names = self.graph, self.step, self.sweep.cell.states
        h, *others = previous
        recurrent = list(h) if self.sweep.cell.recurrent else []  # D·n features
        products = self._products(graph.concat([*recurrent, x], axis=-1))
        known: dict[int, Value | float] = {**self.parameter_values, **products}
        for d, h_d in enumerate(h if self.equations_read_h else []):
            h_d = graph.cast(h_d, STATE_DTYPE) if self.mixed_precision else h_d
            known[id(step.previous["h"][d])] = h_d
        for d, state in enumerate(others[0] if names else []):
            states = graph.split(state, [self.units] * len(names), axis=-1)
            known |= {id(step.previous[name][d]): s for name, s in zip(names, states, strict=True)}
        like = next(iter(products.values()))  # for a state that is the same number everywhere
        computed = [self._evaluate(value, known) for value in (step.h, *step.states)]
        values = [v if isinstance(v, Value) else like * 0.0 + graph.operand(v) for v in computed]
        results = [values[0], *([graph.concat(values[1:], axis=-1)] if names else [])]
        if mask is not None:
            results = [result * mask for result in results]
        if self.mixed_precision:  # as h enters products and leaves the sweep
            results[0] = graph.cast(results[0], self.sweep.dtype)
        return results

    def _evaluate(self, value: Recorded, known: dict[int, Value | float]) -> Value | float:
        """The result of a recorded value.

        Args:
            value: the value.
            known: results by the id of their values; those that are computed are added.
        """
        if id(value) not in known:
            arguments = [self._evaluate(argument, known) for argument in value.args]
            known[id(value)] = self._apply(value, arguments)
        return known[id(value)]

    def _apply(self, value: Recorded, arguments: Sequence[Value | float]) -> Value | float:
        """The result of a recorded value, given those of its arguments."""
        if value.op == "constant":
            return value.number
        operation = OPERATIONS.get(value.op)
        if operation and not any(isinstance(argument, Value) for argument in arguments):
            numbers = (torch.tensor(number, dtype=torch.float64) for number in arguments)
            return float(operation.compute(*numbers))
        operands = [self.graph.operand(argument) for argument in arguments]
        if operation:
            return self.graph(operation.onnx, *operands)
        if value.op == LAYER_NORM:
            return self._normalised(*operands)
        return self.graph("ReduceMean", *operands, self.graph.integers(-1), keepdims=1)

    def _normalised(self, value: Value, weight: Value, bias: Value) -> Value:
        """Layer norm with the parameters of all directions."""
        options = {"axis": -1, "epsilon": LAYER_NORM_EPS}
        if self.dirs == 1:
            return self.graph("LayerNormalization", value, weight, bias, **options)
        ones = self.graph.constant(np.ones(self.units, STATE_DTYPE))  # it takes one scale for all rows
        return self.graph("LayerNormalization", value, ones, **options) * weight + bias

    def _products(self, operand: Value) -> dict[int, Value]:
        """The pre-activation of each gate, or the gate itself, by the id of its recorded value.

        ONNX Runtime copies the outputs of a Split, so each gate is a product of its own. Where products are
        so small that their number matters more, all gates with one activation share one product.
        """
        numbers = range(len(self.gates))
        factors = self._by_direction(operand)
        if not self.gates_share_product:
            return {id(a): self._product(factors, [k]) for k, a in zip(numbers, self.step.a, strict=True)}
        results: dict[int, Value] = {}
        for activation in dict.fromkeys(gate.activation for gate in self.gates):
            alike = [k for k in numbers if self.gates[k].activation == activation]
            product = self._product(factors, alike)
            if activation is not None:
                product = self.graph(OPERATIONS[activation].onnx, product)
            gates = self.graph.split(product, [self.units] * len(alike), axis=-1)
            results |= {id(self.step.gates[k]): gate for k, gate in zip(alike, gates, strict=True)}
        return results

    def _product(self, operand: Sequence[Value], gates: Sequence[int]) -> Value:
        """Pre-activations of some gates side by side, n features each."""
        weight = self.weight[:, :, gates].reshape(*self.weight.shape[:2], -1)
        factors = zip(operand, weight if len(operand) == self.dirs else [weight], strict=True)
        products = [self.graph("MatMul", x, self.graph.constant(matrix)) for x, matrix in factors]
        result = self.graph.concat(products, axis=0)
        return self.graph.cast(result, STATE_DTYPE) if self.mixed_precision else result

    def _by_direction(self, operand: Value) -> list[Value]:
        """An operand (dirs, R, …) as dirs × (1, R, …), or whole where one node multiplies it."""
        return [operand] if self.batched else self.graph.split(operand, [1] * self.dirs, axis=0)

    def _constant(self, values: np.ndarray) -> Value:
        """(dirs, features) as a constant that broadcasts against the rows of all directions."""
        return self.graph.constant(values[0] if self.dirs == 1 else values[:, None])


class Rows:
    """The rows of wavefronts: axis 0 of (K, N, n), or with several directions axis 1 of (dirs, K·N, n).

    Attributes:
        axis: the axis of the rows.
        batch: N as a tensor (1,).
    """

    def __init__(self, graph: Graph, sweep: Sweep) -> None:
        self.graph = graph
        self.dirs, self.parts = sweep.dirs, sweep.parts
        self.axis = 0 if self.dirs == 1 else 1
        self.batch = graph("Shape", sweep.x, start=0, end=1)

    def of_positions(self, positions: Value) -> Value:
        """Convert position counts or offsets (int64) to row counts or offsets."""
        return positions if self.dirs == 1 else positions * self.batch

    def zeros(self, positions: Value) -> list[Value]:
        """Each part of a state of zeros, for a number of positions, a tensor (1,)."""
        graph, dirs = self.graph, self.dirs
        leading = [positions, self.batch] if dirs == 1 else [graph.integers(dirs), positions * self.batch]
        zeros = []
        for features, dtype in self.parts:
            shape = graph.concat([*leading, graph.integers(features)], axis=0)
            zero = numpy_helper.from_array(np.zeros(1, dtype))  # which tract insists on
            zeros.append(graph("ConstantOfShape", shape, value=zero))
        return zeros

    def of_samples(self, table: Value, axes: int) -> Value:
        """(…, K) positions, a table with this number of axes, as (…, K·N) rows of their samples."""
        if self.dirs == 1:
            return table
        graph = self.graph
        samples = graph.arange(self.batch)
        rows = graph("Unsqueeze", table, graph.integers(-1)) * self.batch + samples  # (…, K, N)
        return graph.reshape(rows, *[0] * (axes - 1), -1)


def flatten_x(graph: Graph, sweep: Sweep) -> Value:
    """x as (P, N, C), or as (P, N, C + 1) with a last feature of ones."""
    x = sweep.x
    if sweep.has_ones:
        pads = [0] * (2 * len(sweep.grid) + 3) + [1]
        x = graph("Pad", x, graph.integers(*pads), graph.constant(np.ones((), sweep.dtype)))
    return graph("Transpose", graph.reshape(x, 0, -1, sweep.features), perm=[1, 0, 2])


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
