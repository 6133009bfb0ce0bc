"""The graph that draws one row of an image, given the states of the row above.

Each loop over the columns is a Scan. The first one goes from the left: at a column it steps all layers, and
the heads draw the values. Then each layer is swept from the right, which only the next row needs. So the
graph draws images of any size, and each layer computes each position once. `Session.sample` runs it row by
row.

Inputs     x            (N, W, C) uniform numbers in [0, 1)
           above        (N, W + 3, C) the row above in [−1, 1], padded with zeros as `neighbours` does it
           given        (N, W, C) values that are not drawn, −1 where they are
           temperature  (N, 1)
           state        (N, W + 1, F) of the row above: for each layer h and the other states from the left
                        and from the right
Outputs    y            (N, W, C) the values in [0, 1]
           logits       (N, W, C, K) of all levels of each value, given the values before it
           next_state   as `state`, for the row below

Inside, columns come first: (W, N, …). There are W + 1 of them, as `neighbours` adds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from torch import nn

from mdlstm_tk.cells import get_cell
from mdlstm_tk.export.capture import IR_VERSION, OPSET
from mdlstm_tk.export.lowering.graph import END, Graph, Loop, Value
from mdlstm_tk.export.lowering.step import ZERO, Step, Sweep, parameters_of
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models.blocks import DOWNWARD
from mdlstm_tk.models.pixel import PixelNet

FLOAT = np.dtype(np.float32)
INPUTS = ("x", "above", "given", "temperature", "state")
OUTPUTS = ("y", "logits", "next_state")
NEIGHBOURS_ABOVE = 3


def state_size(network: PixelNet) -> int:
    """F, the number of features of a position's state."""
    return sum(2 * sum(_widths(layer)) for layer in network.body.layers)


def _widths(layer: MDLSTM) -> list[int]:
    """The features of the parts of a layer's state in one direction; see step.py."""
    return [features for features, _ in _sweep(layer, 0).parts]


def row_graph(network: PixelNet) -> onnx.ModelProto:
    """The graph of a network, without metadata."""
    channels, states = network.channels, ["positions", state_size(network)]
    shapes: dict[str, list[Any]] = {
        "x": ["width", channels],
        "above": ["padded", channels],
        "given": ["width", channels],
        "temperature": [1],
        "state": states,
        "y": ["width", channels],
        "logits": ["width", channels, network.levels],
        "next_state": states,
    }
    inputs, outputs = (
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shapes[name]])
            for name in names
        ]
        for names in (INPUTS, OUTPUTS)
    )
    graph = Graph("draw")
    for name, value in zip(OUTPUTS, _write_row(graph, network), strict=True):
        graph.nodes.append(helper.make_node("Identity", [value.name], [name]))
    return helper.make_model(
        helper.make_graph(graph.nodes, "mdlstm", inputs, outputs, initializer=graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mdlstm-tk",
    )


def _write_row(graph: Graph, network: PixelNet) -> list[Value]:
    """Add the nodes of a row, and return its outputs."""
    layers = list(network.body.layers)
    by_column = {
        name: graph("Transpose", Value(graph, name), perm=[1, 0, 2])
        for name in ("x", "above", "given", "state")
    }
    widths = [_widths(layer) for layer in layers]
    parts = iter(graph.split(by_column["state"], [n for of_layer in widths for n in 2 * of_layer], axis=2))
    states = [[next(parts) for _ in 2 * of_layer] for of_layer in widths]
    with graph.scope("left"):
        values, logits, inputs, from_left = _from_left(graph, network, by_column, states)
    next_state: list[Value] = []
    for k, layer in enumerate(layers):
        with graph.scope(f"right_{k}"):
            above = states[k][len(widths[k]) :]
            next_state += [*from_left[k], *_from_right(graph, layer, inputs[k], above)]
    y, logits, joined = (
        graph("Transpose", value, perm=[1, 0, 2])
        for value in (
            graph.slice(values, 0, -1),  # without the column that `neighbours` adds
            graph.slice(logits, 0, -1),
            graph.concat(next_state, axis=2),
        )
    )
    return [y, graph.reshape(logits, 0, 0, network.channels, network.levels), joined]


def _from_left(
    graph: Graph, network: PixelNet, row: dict[str, Value], states: Sequence[Sequence[Value]]
) -> tuple[Value, Value, list[Value], list[list[Value]]]:
    """Draw a row.

    Args:
        graph: the graph to add nodes to.
        network: the network.
        row: x, above and given, by column.
        states: for each layer the states of the row above, (W + 1, N, n) each.

    Returns:
        The values (W + 1, N, C), the logits (W + 1, N, C·K), the input of each layer, and the parts of the
        state of each.
    """
    channels, layers = network.channels, list(network.body.layers)
    further = graph.integers(0, 0, 0, 1, 0, 0)  # the column that `neighbours` adds
    loop = _Loop(graph, row["x"])
    # A body sees no inputs of the graph around it, so the temperature goes from column to column, too.
    temperature = loop.carried("temperature", 1, Value(graph, "temperature"))
    left = loop.carried("left", channels)
    before = [
        [loop.carried(f"state_{k}_{part}", features) for part, features in enumerate(_widths(layer))]
        for k, layer in enumerate(layers)
    ]

    uniform = loop.column("uniform", channels, graph("Pad", row["x"], further))
    given = loop.column("given", channels, graph("Pad", row["given"], further))
    neighbours = [left]
    for k in range(NEIGHBOURS_ABOVE):
        end = k + 1 - NEIGHBOURS_ABOVE or END
        neighbours.append(loop.column(f"above_{k}", channels, graph.slice(row["above"], k, end)))
    features = loop.body.concat(neighbours, axis=-1)
    inputs: list[Value] = []
    after: list[Value] = []
    widths: list[int] = []  # of `after`
    for k, layer in enumerate(layers):
        inputs.append(features)
        above = [
            loop.column(f"above_{k}_{part}", width, states[k][part])
            for part, width in enumerate(_widths(layer))
        ]
        right = loop.column(f"right_{k}", layer.hidden_size, states[k][len(above)])
        new = _step(loop.body, layer, 0, above, before[k], features)
        widths += _widths(layer)
        both = loop.body.concat([new[0], right], axis=-1)
        features = features + both if k else both
        after += new
    values, logits = _draw(loop.body, network, features, uniform, given, temperature)

    outputs = [(values, channels), (logits, channels * network.levels)]
    outputs += [(value, layer.input_size) for value, layer in zip(inputs, layers, strict=True)]
    outputs += list(zip(after, widths, strict=True))
    values, logits, *of_layers = loop.columns([temperature, values * 2 - 1, *after], outputs)
    layer_inputs, states_after = of_layers[: len(layers)], iter(of_layers[len(layers) :])
    return values, logits, layer_inputs, [[next(states_after) for _ in parts] for parts in before]


def _from_right(graph: Graph, layer: MDLSTM, x: Value, above: Sequence[Value]) -> list[Value]:
    """The parts (W + 1, N, …) of the state of a layer's sweep from the right, from its input and those of
    the row above."""
    widths, loop = _widths(layer), _Loop(graph, x)
    before = [loop.carried(f"state_{part}", features) for part, features in enumerate(widths)]
    from_above = [
        loop.column(f"above_{part}", features, _reversed(graph, above[part]))
        for part, features in enumerate(widths)
    ]
    features = loop.column("x", layer.input_size, _reversed(graph, x))
    after = _step(loop.body, layer, 1, from_above, before, features)
    results = loop.columns(after, list(zip(after, widths, strict=True)))
    return [_reversed(graph, value) for value in results]


def _draw(
    body: Graph, network: PixelNet, features: Value, uniform: Value, given: Value, temperature: Value
) -> tuple[Value, Value]:
    """Draw the values (N, C) of a position as `DensityNet.sample` does; also their logits (N, C·K)."""
    values: list[Value] = []
    all_logits: list[Value] = []
    for c, head in enumerate(network.heads):
        assert isinstance(head, nn.Sequential)
        first, _, last = head
        operand = body.concat([features, *(value * 2 - 1 for value in values)], axis=-1)
        logits = _linear(body, body("Relu", _linear(body, operand, first)), last)
        if last.out_features == 1:  # the logit of black is 0
            logits = body.concat([logits * 0, logits], axis=-1)
        all_logits.append(logits)
        p = body("Softmax", body("Div", logits, temperature), axis=-1)
        below = body.slice(body("CumSum", p, body.scalar(1)), 0, network.levels - 1, axis=1)
        number, given_value = (body.slice(tensor, c, c + 1, axis=1) for tensor in (uniform, given))
        exceeded = body.cast(body("GreaterOrEqual", number, below), FLOAT)
        level = body("ReduceSum", exceeded, body.integers(1), keepdims=1)
        value = body("Div", level, body.constant(np.float32(network.levels - 1)))
        is_given = body("GreaterOrEqual", given_value, body.constant(np.float32(0)))
        values.append(body("Where", is_given, given_value, value))
    return body.concat(values, axis=-1), body.concat(all_logits, axis=-1)


class _Loop(Loop):
    """A Scan over the columns.

    Args:
        graph: the graph around the Scan.
        like: a tensor (…, N, …) with the batch.
    """

    def __init__(self, graph: Graph, like: Value) -> None:
        super().__init__(graph)
        self._batch = graph("Shape", like, start=1, end=2)

    def carried(self, name: str, features: int, initial: Value | None = None) -> Value:
        """(N, features) that goes from column to column; zeros at the first one if `initial` is None."""
        if initial is None:
            shape = self.graph.concat([self._batch, self.graph.integers(features)], axis=0)
            initial = self.graph("ConstantOfShape", shape, value=ZERO)
        return self.carry(name, initial, FLOAT, None, features)

    def column(self, name: str, features: int, values: Value) -> Value:
        """(N, features), the part of `values` (W, N, features) that belongs to a column."""
        return self.scan(name, values, FLOAT, None, features)

    def columns(self, after: Sequence[Value], outputs: Sequence[tuple[Value, int]]) -> list[Value]:
        """Add the Scan node.

        Args:
            after: what goes on to the next column, in the order of `carried`.
            outputs: values (N, features) of a column, each with its features.

        Returns:
            The outputs of all columns, (W, N, features) each.
        """
        return self.finish(after, [(value, FLOAT, (None, n)) for value, n in outputs])[len(after) :]


def _step(
    body: Graph, layer: MDLSTM, direction: int, above: Sequence[Value], before: Sequence[Value], x: Value
) -> list[Value]:
    """The parts of the state of a layer at a position in one of its directions, from those above and before
    it and from x."""
    step = Step(body, _sweep(layer, direction))
    previous = [list(of_axes) for of_axes in zip(above, before, strict=True)]
    return step([previous[0] if step.reads_h else [], *previous[1:]], x)


def _sweep(layer: MDLSTM, direction: int) -> Sweep:
    """One direction of a layer, without x: positions come one by one. Products are separate, so that x
    needs no feature of ones."""
    no_x: Any = None
    parameters, cell = parameters_of(layer, 0, direction), get_cell(layer.cell)
    return Sweep(no_x, parameters, (-1, -1), [DOWNWARD[direction]], cell, separate_products=True)


def _reversed(graph: Graph, value: Value) -> Value:
    """The columns from right to left."""
    return graph("Slice", value, *map(graph.integers, (-1, -END - 1, 0, -1)))


def _linear(body: Graph, x: Value, linear: nn.Module) -> Value:
    assert isinstance(linear, nn.Linear)
    weight, bias = (p.detach().float().numpy() for p in (linear.weight.T, linear.bias))
    return body("Gemm", x, body.constant(weight), body.constant(bias))
