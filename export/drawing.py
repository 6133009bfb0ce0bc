"""Export what draws images: a graph that draws one row, given the states of the row above.

Loops over the columns make a row, each of them a Scan: first the sweeps from the left with the heads, which
draw the values; then, for each layer, the sweep from the right, which the next row needs. So a graph draws
images of any size, and each layer computes each position once. `Session.sample` runs it row by row.

Inputs     x            (N, W, C) uniform numbers in [0, 1)
           above        (N, W + 3, C) the row above in [−1, 1], padded with zeros as `neighbours` does it
           given        (N, W, C) values that are not drawn, −1 where they are
           temperature  (N, 1)
           state        (N, W + 1, 4·n·layers) of the row above: for each layer h and c from the left
                        and from the right
Outputs    y            (N, W, C) the values in [0, 1]
           next_state   as `state`, for the row below
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import nn

from mdlstm_tk._version import __version__
from mdlstm_tk.cells import get_cell
from mdlstm_tk.errors import InputError, ParityError, require
from mdlstm_tk.export.capture import IR_VERSION, OPSET
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.step import Step, Sweep
from mdlstm_tk.export.run_export import find_checkpoint
from mdlstm_tk.export.targets import ExportTarget
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models.pixel import DOWNWARD, PixelNet
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.files import atomic_write, ensure_writable, staging
from mdlstm_tk.runtime.isolation.rule import note_export
from mdlstm_tk.runtime.metadata_checks import layout_of
from mdlstm_tk.runtime.samples import uniform_numbers
from mdlstm_tk.text import printable
from mdlstm_tk.training import Run, load_checkpoint
from mdlstm_tk.training.config import NO_CODE, Code

FLOAT = np.dtype(np.float32)
STATES = 4  # of a layer: h and c, from the left and from the right
INPUTS = ("x", "above", "given", "temperature", "state")
OUTPUTS = ("y", "next_state")
NEIGHBOURS_ABOVE = 3
END = 2**31 - 1  # of a slice: the last one
VERIFIED = ((6, (5, 7)), (2, (1, 1)), (3, (6, 2)))  # images and their sizes


def export_drawing(
    run: Run | str | Path,
    destination: str | Path | ExportTarget | None = None,
    *,
    force: bool = False,
    code: Code = NO_CODE,
) -> Path:
    """Export the network of a run as a graph that draws images of any size; see `Session.sample`.

    Before the file appears, ONNX Runtime has drawn images of several sizes with it, and torch in float64
    has drawn the same from equal uniform numbers.

    Args:
        run: a run of kind "density" with the network `pixel`, its folder, or one of its checkpoint files.
        destination: the file, or a web page, which then draws images; model-drawing.onnx in the folder of
            the run if None.
        force: replace an existing file.
        code: as for `export_run`.

    Returns:
        The path of the file.

    Raises:
        InputError: there is no such run, its network is another, or the file exists and `force` is false.
        ParityError: ONNX Runtime draws other images. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    run, checkpoint_path = find_checkpoint(run, code)
    checkpoint = load_checkpoint(checkpoint_path, run.code)
    network, spec = checkpoint.network(), checkpoint.spec
    if not isinstance(network, PixelNet):
        raise InputError(
            f"{run.folder} has the network {type(network).__name__}; only pixel is exported to draw images"
        )
    if isinstance(destination, ExportTarget):
        destination.prepare(1)
    path = run.folder / "model-drawing.onnx"
    if isinstance(destination, str | Path):
        path = Path(destination)
    if not isinstance(destination, ExportTarget):
        ensure_writable(path, force)
    height, width = spec.size
    metadata = replace(
        drawing_metadata(network, (height, width)),
        model=printable(checkpoint.config.model),
        task=printable(spec.name),
        checkpoint_sha256=hashlib.sha256(checkpoint_path.read_bytes()).hexdigest(),
    )
    model = write_drawing(network)
    helper.set_model_props(model, metadata.to_props())
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    _verify(data, network, path)
    note_export(data)
    if isinstance(destination, ExportTarget):
        with staging(Path(tempfile.gettempdir())) as scratch:
            (scratch / path.name).write_bytes(data)
            return destination.add(scratch / path.name, run, None)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return path


def drawing_metadata(network: PixelNet, size: tuple[int, int]) -> Metadata:
    """The metadata of a graph that draws images with a network; size (H, W) is that of training images."""
    return Metadata(
        version=__version__,
        grid=None,
        form="scan",
        layout=layout_of(1, channels_last=True),
        channels=network.channels,
        outputs=network.channels,
        inputs=INPUTS,
        window=(1,),
        output_names=OUTPUTS,
        further_windows=(None,),
        kind="density",
        drawing={"size": list(size), "state": state_size(network)},
    )


def _verify(data: bytes, network: PixelNet, path: Path) -> None:
    exact = PixelNet.to(network, torch.float64)
    with Session(data, "cpu") as session:
        for n, size in VERIFIED:
            uniform = uniform_numbers(0, n, size, network.channels)
            expected = exact.sample(n, size, uniform=torch.from_numpy(uniform)).float().numpy()
            drawn = session.sample(n, size, uniform=uniform)
            if not np.array_equal(drawn, expected):
                share = float((drawn != expected).mean())
                raise ParityError(
                    f"{path} was not written: of images of {size[0]}x{size[1]}, ONNX Runtime draws "
                    f"{100 * share:.2g} % of the values differently from torch in float64"
                )


def state_size(network: PixelNet) -> int:
    """Features of a position's state, 4·n·layers."""
    return sum(STATES * layer.hidden_size for layer in network.body.layers)


def write_drawing(network: PixelNet) -> onnx.ModelProto:
    """The graph of a network, without metadata."""
    graph = Graph("draw")
    row = _RowWriter(graph, network)
    values, next_state = row.write()
    inputs = {
        "x": ("width", network.channels),
        "above": ("padded", network.channels),
        "given": ("width", network.channels),
        "temperature": (1,),
        "state": ("positions", state_size(network)),
    }
    named = {"y": (values, inputs["x"]), "next_state": (next_state, inputs["state"])}
    for name, (value, _) in named.items():
        graph.nodes.append(helper.make_node("Identity", [value.name], [name]))

    def info(name: str, shape: Sequence[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])

    proto = helper.make_graph(
        graph.nodes,
        "mdlstm",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, shape) for name, (_, shape) in named.items()],
        initializer=graph.initializers,
    )
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mdlstm-tk",
    )


def _sweep(layer: MDLSTM, direction: int) -> Sweep:
    """The parameters of a layer in one of its directions; products are separate, so x needs no ones."""
    parameters: list[Any] = [
        None if p is None else p[direction : direction + 1].detach().float().numpy()
        for p in layer._layer_parameters(0)
    ]
    x: Any = None  # positions come one by one
    arguments = [x, *parameters, None, (-1, -1), [DOWNWARD[direction]], get_cell(layer.cell), True]
    return Sweep(*arguments)


class _RowWriter:
    """Adds the nodes of a row. Inside, columns come first: (W, N, …)."""

    def __init__(self, graph: Graph, network: PixelNet) -> None:
        self.graph, self.network, self.layers = graph, network, list(network.body.layers)

    def write(self) -> tuple[Value, Value]:
        """The values (N, W, C) and the next state (N, W + 1, S)."""
        graph = self.graph
        x, above, given, state = (
            graph("Transpose", Value(graph, name), perm=[1, 0, 2])
            for name in ("x", "above", "given", "state")
        )
        further = graph.integers(0, 0, 0, 1, 0, 0)  # the further column of `neighbours`
        x, given = graph("Pad", x, further), graph("Pad", given, further)
        units = [layer.hidden_size for layer in self.layers]
        parts = graph.split(state, [n for n in units for _ in range(STATES)], axis=2)
        states = [parts[STATES * k : STATES * (k + 1)] for k in range(len(units))]
        with graph.scope("left"):
            values, features, from_left = self._from_left(x, above, given, states)
        next_state = []
        for k, layer in enumerate(self.layers):
            with graph.scope(f"right_{k}"):
                from_right = self._from_right(layer, features[k], *states[k][2:])
            next_state += [*from_left[k], *from_right]
        values = graph("Slice", values, graph.integers(0), graph.integers(-1), graph.integers(0))
        joined = graph.concat(next_state, axis=2)
        return graph("Transpose", values, perm=[1, 0, 2]), graph("Transpose", joined, perm=[1, 0, 2])

    def _zeros(self, like: Value, features: int) -> Value:
        """(N, features) for the batch of a tensor (W, N, …)."""
        graph = self.graph
        batch = graph("Shape", like, start=1, end=2)
        return graph("ConstantOfShape", graph.concat([batch, graph.integers(features)], axis=0), value=ZERO)

    def _from_left(
        self, x: Value, above: Value, given: Value, states: Sequence[Sequence[Value]]
    ) -> tuple[Value, list[Value], list[list[Value]]]:
        """Values (W + 1, N, C), the input of each layer, and h and c of each layer."""
        graph, channels = self.graph, self.network.channels
        body = graph.body()
        # What goes from column to column. A body sees no inputs of the graph around it, so the temperature
        # does, too.
        temperature = body.input("temperature", FLOAT, None, 1)
        left = body.input("left", FLOAT, None, channels)
        from_left = [
            [body.input(f"{name}_{k}", FLOAT, None, layer.hidden_size) for name in "hc"]
            for k, layer in enumerate(self.layers)
        ]
        widths = [layer.hidden_size for layer in self.layers for _ in "hc"]
        zeros = [self._zeros(x, width) for width in (channels, *widths)]
        initial = [Value(graph, "temperature"), *zeros]
        scanned: list[Value] = []

        def column(name: str, values: Value, features: int) -> Value:
            scanned.append(values)
            return body.input(name, FLOAT, None, features)

        u, known = column("u", x, channels), column("given", given, channels)
        neighbours = [left]
        for k in range(NEIGHBOURS_ABOVE):
            end = k + 1 - NEIGHBOURS_ABOVE or END
            part = graph("Slice", above, graph.integers(k), graph.integers(end), graph.integers(0))
            neighbours.append(column(f"above_{k}", part, channels))
        features = body.concat(neighbours, axis=-1)
        inputs: list[Value] = []
        carried: list[Value] = []
        for k, layer in enumerate(self.layers):
            inputs.append(features)
            h_up, c_up, right = (
                column(f"{name}_{k}", state, layer.hidden_size)
                for name, state in zip(("h_up", "c_up", "right"), states[k], strict=False)
            )
            h, c = from_left[k]
            step = Step(body, _sweep(layer, 0))
            h_new, c_new = step([h_up, h] if step.cell.recurrent else [], [c_up, c], features)
            both = body.concat([h_new, right], axis=-1)
            features = features + both if k else both
            carried += [h_new, c_new]
        drawn = self._values(body, features, u, known, temperature)
        ends = [body("Identity", temperature), drawn * 2 - 1, *carried]
        stacked = [drawn, *inputs, *carried]
        stacked_widths = [channels, *(layer.input_size for layer in self.layers), *widths]
        outputs = [(value, FLOAT, (None, n)) for value, n in zip(ends, [1, channels, *widths], strict=True)]
        outputs += [
            (body("Identity", value), FLOAT, (None, n))
            for value, n in zip(stacked, stacked_widths, strict=True)
        ]
        results = graph.add_node(
            "Scan",
            len(outputs),
            *initial,
            *scanned,
            body=body.proto("left", outputs),
            num_scan_inputs=len(scanned),
        )[len(ends) :]
        count = len(self.layers)
        pairs = results[1 + count :]
        return results[0], results[1 : 1 + count], [pairs[2 * k : 2 * k + 2] for k in range(count)]

    def _from_right(self, layer: MDLSTM, x: Value, h_up: Value, c_up: Value) -> list[Value]:
        """h and c (W + 1, N, n) of the sweep from the right, from the layer's input and the row above."""
        graph, n = self.graph, layer.hidden_size
        body = graph.body()
        h, c = (body.input(name, FLOAT, None, n) for name in "hc")
        names = {"h_up": n, "c_up": n, "x": layer.input_size}
        above_h, above_c, features = (body.input(name, FLOAT, None, width) for name, width in names.items())
        step = Step(body, _sweep(layer, 1))
        h_new, c_new = step([above_h, h] if step.cell.recurrent else [], [above_c, c], features)
        ends = [h_new, c_new]
        outputs = [(value, FLOAT, (None, n)) for value in (*ends, *(body("Identity", end) for end in ends))]
        zero = self._zeros(x, n)
        results = graph.add_node(
            "Scan",
            4,
            zero,
            zero,
            *map(self._reversed, (h_up, c_up, x)),
            body=body.proto("right", outputs),
            num_scan_inputs=3,
        )
        return [self._reversed(value) for value in results[2:]]

    def _reversed(self, value: Value) -> Value:
        """The columns from right to left."""
        integers = self.graph.integers
        return self.graph("Slice", value, integers(-1), integers(-END - 1), integers(0), integers(-1))

    def _values(self, body: Graph, features: Value, u: Value, given: Value, temperature: Value) -> Value:
        """The values (N, C) of a position."""
        network = self.network
        drawn: list[Value] = []
        for c, head in enumerate(network.heads):
            assert isinstance(head, nn.Sequential)
            first, _, last = head
            operand = body.concat([features, *(value * 2 - 1 for value in drawn)], axis=-1)
            hidden = body("Relu", _linear(body, operand, first))
            logits = _linear(body, hidden, last)
            if last.out_features == 1:  # that of black is 0
                logits = body.concat([logits * 0, logits], axis=-1)
            scaled = body("Div", logits, temperature)
            below = body("CumSum", body("Softmax", scaled, axis=-1), body.scalar(1))
            level_count = network.levels - 1
            below = body("Slice", below, body.integers(0), body.integers(level_count), body.integers(1))
            exceeded = body.cast(body("GreaterOrEqual", self._channel(body, u, c), below), FLOAT)
            level = body("ReduceSum", exceeded, body.integers(1), keepdims=1)
            value = body("Div", level, body.constant(np.float32(level_count)))
            known = self._channel(body, given, c)
            is_given = body("GreaterOrEqual", known, body.constant(np.float32(0)))
            drawn.append(body("Where", is_given, known, value))
        return body.concat(drawn, axis=-1)

    def _channel(self, body: Graph, values: Value, c: int) -> Value:
        """(N, 1) of values (N, C)."""
        return body("Slice", values, body.integers(c), body.integers(c + 1), body.integers(1))


def _linear(body: Graph, x: Value, linear: nn.Module) -> Value:
    assert isinstance(linear, nn.Linear)
    weight, bias = (p.detach().float().numpy() for p in (linear.weight.T, linear.bias))
    return body("Gemm", x, body.constant(weight), body.constant(bias))


ZERO = onnx.numpy_helper.from_array(np.zeros(1, np.float32))
