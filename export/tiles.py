"""Tiles: a network as an archive that ONNX Runtime runs tile by tile, on any grid.

The archive holds a graph for each sweep (stage × direction), and one for the head.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mdlstm_tk._util.text import to_json
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export.capture import OPSET, capture
from mdlstm_tk.export.inputs import Inputs
from mdlstm_tk.export.lowering.graph import Graph, Value, rename
from mdlstm_tk.export.lowering.lower import lower
from mdlstm_tk.export.lowering.step import Sweep, parameters_of
from mdlstm_tk.export.lowering.write import write_sweep
from mdlstm_tk.export.network import Network
from mdlstm_tk.io.metadata import Extents, Metadata
from mdlstm_tk.layer import MDLSTM, space_to_depth
from mdlstm_tk.models.blocks import depth_to_space
from mdlstm_tk.runtime.tiles.archive import INDEX, SCHEMA
from mdlstm_tk.tiling.stages import TileStages, stages_of

if TYPE_CHECKING:
    from mdlstm_tk.export.onnx import ExportReport


def export_tiles(module: nn.Module, path: str | Path, **options: Any) -> ExportReport:
    """Export a network as one archive with a graph for each sweep, to be run on grids of any size in tiles.

    The archive appears only after `onnx.checker` has accepted each graph and a `TiledSession`, on grids of
    several tiles, has agreed with the network's own forward in float64 within atol·max(s, 1) + 1e-5·|y|,
    where s is the largest output of a feature. The module is left unchanged.

        >>> export_tiles(net, "net.tiles")

    `docs/exporting.md` says which networks can be exported, and shows how to write one.

    Args:
        module: a network with a method `tile_stages`, see `mdlstm_tk.tiling.TileStages`, or an `MDLSTM`. It
            maps x (N, *grid, C) to y.
        path: the file to write, which ends in `.tiles`.
        **options: channels, example_range, metadata, atol and replace of `export_onnx`.

    Raises:
        InputError: the network cannot run in tiles, or does not say how; the message has the reason.
        MDLSTMError: the network cannot be exported, or the file cannot be written.
        ParityError: the graphs in tiles disagree with the network. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    from mdlstm_tk.export.onnx import export_onnx

    return export_onnx(module, path, form="tiles", **options)


def tiled(network: Network, inputs: Inputs) -> tuple[dict[str, Any], dict[str, onnx.ModelProto]]:
    """The index of the archive of a network, and its graphs by name.

    Raises:
        InputError: the network takes x in another layout, or has several inputs or outputs, or does not say
            how it runs in tiles.
        MDLSTMError: a graph cannot be made.
    """
    outputs = inputs.shapes[inputs.main]
    is_plain = inputs.channels_last and network.channel_axis and not network.integer
    if len(outputs) > 1 or network.names or not is_plain:
        raise InputError(
            f"tiles are for networks of one x, floats (N, *grid, C), and one output; {network.name} has "
            "other inputs or outputs"
        )
    stages = stages_of(network.module)
    entries: list[dict[str, Any]] = []
    graphs: dict[str, onnx.ModelProto] = {}
    channels = inputs.channels
    for number, level in enumerate(_levels_of(stages)):
        files = [f"stage-{number}/sweep-{k}.onnx" for k in range(len(level.layer.directions))]
        graphs |= zip(files, _sweep_models(level, channels), strict=True)
        entries.append(
            {
                "window": list(level.window),
                "channels": channels,
                "features": level.features,
                "units": level.layer.hidden_size,
                "sum": level.adds_parts,
                "sweeps": [
                    {"file": file, "direction": list(direction)}
                    for file, direction in zip(files, level.layer.directions, strict=True)
                ],
            }
        )
        channels = level.features * (1 if level.adds_parts else len(files))
    head = _head_model(stages, channels)
    if head is not None:
        graphs["head.onnx"] = head
    index = {
        "schema": SCHEMA,
        "stages": entries,
        "pool": list(stages.pool),
        "head": None if head is None else {"file": "head.onnx"},
        "upsample": list(stages.upsample),
    }
    return index, graphs


def archive(index: Mapping[str, Any], members: Mapping[str, bytes], metadata: Metadata) -> bytes:
    """The content of a `.tiles` file: a ZIP archive without compression, the same for the same graphs."""
    index_file = to_json({**index, "metadata": metadata.to_props()}).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in {INDEX: index_file, **members}.items():
            file.writestr(zipfile.ZipInfo(name), data)  # of 1980, so that equal graphs give equal bytes
    return buffer.getvalue()


@dataclass(frozen=True)
class _Level:
    """One of the stacked layers of a stage; in the archive it is a stage.

    Attributes:
        layer: the layer of the stage.
        number: which of its stacked layers this is.
        window: that of the layer for the first of them, ones for the others.
        before: that of the stage for the first of them, otherwise None.
        after: that of the stage for the last of them, otherwise None.
    """

    layer: MDLSTM
    number: int
    window: Extents
    before: nn.Module | None
    after: nn.Linear | None

    @property
    def adds_parts(self) -> bool:
        """True if the parts of the directions are added rather than concatenated."""
        return self.after is not None or self.layer.merge != "concat"

    @property
    def features(self) -> int:
        """F, the features of one part."""
        return self.layer.hidden_size if self.after is None else self.after.out_features


def _levels_of(stages: TileStages) -> Iterator[_Level]:
    """The levels of a network."""
    for layer, before, after in ((stage.layer, stage.before, stage.after) for stage in stages.stages):
        for number in range(layer.num_layers):
            window = layer.window if number == 0 else (1,) * layer.ndim
            is_last = number == layer.num_layers - 1
            yield _Level(layer, number, window, None if number else before, after if is_last else None)


def _sweep_models(level: _Level, channels: int) -> Iterator[onnx.ModelProto]:
    """The graph of each direction of a level; `docs/reference.md` lists the inputs and the outputs.

    `channels` are the features of the stored output of the level before, or of x.
    """
    windows = _windows(level, channels)
    for dir_idx in range(len(level.layer.directions)):
        model = onnx.ModelProto()
        model.CopyFrom(windows)
        _add_sweep(model, level, dir_idx)
        yield model


def _head_model(stages: TileStages, features: int) -> onnx.ModelProto | None:
    """The graph of the head, or None if there is nothing to do: x (N, *tile, features) → y (N, *tile ·
    upsample, outputs).
    """
    if stages.head is None and prod(stages.upsample) == 1:
        return None
    ndim, upsample = stages.stages[0].layer.ndim, tuple(stages.upsample)
    head = _Mapped(stages.head, (lambda y: depth_to_space(y, upsample)) if upsample else None)
    return _captured(head, (1,) * ndim, features, "y")


def _windows(level: _Level, channels: int) -> onnx.ModelProto:
    """A graph with what comes before the sweeps of a level."""
    ndim, window = level.layer.ndim, level.window
    if level.before is None and prod(window) == 1:  # nothing, for which torch would take its time
        value = _declared("x", ["batch", *(f"extent_{d}" for d in range(ndim)), channels])
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        graph = onnx.helper.make_graph([], "mdlstm", [value], [value])
        return lower(onnx.helper.make_model(graph, opset_imports=opsets))
    before = _Mapped(level.before, (lambda x: space_to_depth(x, window)) if prod(window) > 1 else None)
    return _captured(before, window, channels, "windows")


class _Mapped(nn.Module):
    """A module, if there is one, and then a function."""

    def __init__(self, module: nn.Module | None, function: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.module is None else self.module(x)
        y = y if self.function is None else self.function(y)
        return y.clone() if y is x else y  # an output is no input


def _captured(module: nn.Module, window: Extents, channels: int, output: str) -> onnx.ModelProto:
    """The graph of a module that takes x on any grid, in windows of these extents.

    Raises:
        InputError: it decides by an extent, or by the batch.
    """
    ndim = len(window)
    axes, factor = list(range(1, ndim + 1)), 8 if ndim < 4 else 2  # extents of 1 would be constants
    units = zip((5, 7, 4, 3, *(2,) * ndim), window, strict=False)
    x = torch.zeros(2, *(factor * unit * w for unit, w in units), channels, dtype=torch.float32)
    try:
        captured = capture(module.eval(), {"x": x}, {"x": axes}, (output,), [2 * w for w in window], window)
    except MDLSTMError as error:
        raise InputError(
            f"before or head of tile_stages() must compute each position from that position alone: {error}"
        ) from None
    return lower(captured.model)


def _add_sweep(model: onnx.ModelProto, level: _Level, dir_idx: int) -> None:
    """Add one direction of a level to a graph that computes its input.

    The faces become inputs and outputs of the graph. The part of `after` for this direction is applied, and
    its bias with the first direction.
    """
    layer = level.layer
    ndim, n, states = layer.ndim, layer.hidden_size, ("h", *layer.definition.states)
    names, count = [f"{state}{d}" for d in range(ndim) for state in states], len(states)
    graph = Graph("sweep")
    faces = [Value(graph, name) for name in names]
    of_axes = [faces[d * count : (d + 1) * count] for d in range(ndim)]
    joined = [graph.reshape(graph.concat(of_axis, axis=-1), 0, -1, 1, count, n) for of_axis in of_axes]
    sweep = Sweep(
        x=Value(graph, model.graph.output[0].name),
        parameters=parameters_of(layer, level.number, dir_idx),
        grid=(-1,) * ndim,
        directions=[layer.directions[dir_idx]],
        cell=layer.definition,
        initial=graph.concat(joined, axis=1),  # (N, F, 1, 1 + S, n)
    )
    h, final = write_sweep(graph, sweep)
    part = graph("Squeeze", _apply_after(graph, level, dir_idx, h), graph.integers(-2))
    results, leaving = [part], [final]
    if ndim > 1:
        counts = [
            graph("ReduceProd", graph("Shape", face, start=1, end=-1), keepdims=1)
            for face in faces[::count]
        ]
        leaving = graph.add_node("Split", ndim, final, graph.concat(counts, axis=0), axis=1)
    for of_axis, like in zip(leaving, of_axes, strict=True):
        pairs = zip(graph.split(of_axis, [1] * count, axis=3), like, strict=True)
        results += [graph("Reshape", state, graph("Shape", face)) for state, face in pairs]
    output_names = ["part", *(f"{name}_n" for name in names)]
    rename(graph.nodes, dict(zip((value.name for value in results), output_names, strict=True)))
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.initializers)
    # The extents of x and those after the window differ, so they have different names.
    extents = [f"extent_{d}" if size == 1 else f"windows_{d}" for d, size in enumerate(level.window)]
    shapes: list[list[str | int]] = [
        ["batch", *extents[:d], *extents[d + 1 :], n] for d in range(ndim) for _ in range(count)
    ]
    model.graph.input.extend(map(_declared, names, shapes))
    del model.graph.output[:]
    shapes.insert(0, ["batch", *extents, level.features])
    model.graph.output.extend(map(_declared, output_names, shapes))


def _declared(name: str, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    """The declaration of a value; a free extent has a name."""
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _apply_after(graph: Graph, level: _Level, dir_idx: int, h: Value) -> Value:
    """The share of one direction in the output of its level, from its h (…, n)."""
    layer, after = level.layer, level.after
    share = 1 / len(layer.directions) if layer.merge == "mean" else 1.0
    if after is None:
        return h if share == 1 else h * share
    n = layer.hidden_size
    weight = after.weight.detach().numpy().T  # (dirs·n, F), or (n, F) if the directions are merged before
    if layer.merge == "concat":
        weight = weight[dir_idx * n : (dir_idx + 1) * n]
    part = graph("MatMul", h, graph.constant((weight * share).astype(np.float32)))
    if after.bias is None or dir_idx > 0:
        return part
    return part + graph.constant(after.bias.detach().numpy())
