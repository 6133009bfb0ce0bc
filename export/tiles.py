"""Tiles: a network as an archive that ONNX Runtime runs tile by tile, on any grid.

The archive holds a graph for each sweep (stage × direction), and one for the head.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mdlstm_tk._util.text import counted, to_json
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.capture import OPSET, capture
from mdlstm_tk.export.interface import eval_copy
from mdlstm_tk.export.lowering.graph import Graph, Value, rename
from mdlstm_tk.export.lowering.lower import lower
from mdlstm_tk.export.lowering.scan import write_scan
from mdlstm_tk.export.lowering.step import Sweep, parameters_of
from mdlstm_tk.export.model_file import check_onnx
from mdlstm_tk.export.spec import ExportSpec
from mdlstm_tk.export.verification.export_verifier import Candidate
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.io.metadata import Metadata, layout_of
from mdlstm_tk.layer import MDLSTM, space_to_depth
from mdlstm_tk.models.blocks import depth_to_space
from mdlstm_tk.runtime.tiles.archive import INDEX, SCHEMA
from mdlstm_tk.tiling.stages import TileStages, stages_of

EXAMPLE = (5, 7, 4, 3)  # extents, in windows, that graphs are captured with; of further axes 2


def _example(ndim: int) -> Grid:
    return (*EXAMPLE, *(2,) * ndim)[:ndim]


def check_stages(module: nn.Module) -> None:
    """Check what a network says about its stages, before it runs, which takes longer.

    Raises:
        InputError: the network cannot run in tiles, does not say how, or contradicts itself.
    """
    _levels_of(stages_of(eval_copy(module)))


def tiled_candidate(spec: ExportSpec, outputs: int) -> Candidate:
    """The graphs of a network with so many features of y, as the content of a `.tiles` file: a ZIP archive
    without compression, the same for the same graphs.

    Raises:
        InputError: the network takes x in another layout, or has several inputs or outputs.
        MDLSTMError: a graph cannot be made.
    """
    name = spec.interface.name
    if not spec.channels_last:
        raise InputError(
            f"{name} takes x as (N, C, *grid), expected (N, *grid, C) for tiles; move the axis in a module"
        )
    if len(spec.output_names) > 1:
        raise InputError(f"{name} returns {len(spec.output_names)} outputs, expected one for tiles")
    further, is_integer = ", ".join(spec.interface.names), spec.interface.integer
    if further or is_integer or not spec.interface.channel_axis:
        got = f"also {further}" if further else "integers" if is_integer else "x without the axis C"
        raise InputError(f"example_inputs must be x alone for tiles, floats (N, *grid, C), got {got}")
    if spec.interface.mixed:
        raise InputError(f"{name} computes in several precisions, expected float32 for tiles")
    stages = stages_of(spec.interface.module)
    entries: list[dict[str, Any]] = []
    graphs: dict[str, onnx.ModelProto] = {}
    channels = spec.channels
    for number, level in enumerate(_levels_of(stages)):
        files = [f"stage-{number}/sweep-{k}.onnx" for k in range(len(level.layer.directions))]
        graphs |= zip(files, _sweep_models(level, channels, f"stage-{number}"), strict=True)
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
    head = _head_model(stages, channels, outputs)
    if head is not None:
        graphs["head.onnx"] = head
    index = {
        "schema": SCHEMA,
        "stages": entries,
        "pool": list(stages.pool),
        "head": None if head is None else {"file": "head.onnx"},
        "upsample": list(stages.upsample),
    }
    members = {name: check_onnx(model, f"{name} of the exported archive") for name, model in graphs.items()}

    def content(metadata: Metadata) -> bytes:
        index_file = to_json({**index, "metadata": metadata.to_props()}).encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
            for name, data in {INDEX: index_file, **members}.items():
                file.writestr(
                    zipfile.ZipInfo(name), data
                )  # of 1980, so that equal content gives equal bytes
        return buffer.getvalue()

    return Candidate(list(graphs.values()), content)


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
    window: Grid
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


def _levels_of(stages: TileStages) -> list[_Level]:
    """The levels of a network.

    Raises:
        InputError: the description of the network contradicts itself.
    """
    if not stages.stages:
        raise InputError("tile_stages() must name at least one Stage, got none")
    levels: list[_Level] = []
    ndim = stages.stages[0].layer.ndim
    for k, stage in enumerate(stages.stages):
        layer = stage.layer
        if layer.ndim != ndim:
            raise InputError(
                f"all layers of tile_stages() must have the same grid axes, got {layer.ndim} in stage {k} "
                f"and {ndim} in stage 0"
            )
        last = layer.num_layers - 1
        if stage.after is not None and stage.after.in_features != layer.output_size:
            raise InputError(
                f"after of stage {k} must take the {counted(layer.output_size, 'feature')} of its layer, "
                f"got a Linear that takes {stage.after.in_features}"
            )
        levels += [
            _Level(
                layer,
                number,
                layer.window if number == 0 else (1,) * ndim,
                stage.before if number == 0 else None,
                stage.after if number == last else None,
            )
            for number in range(last + 1)
        ]
    if any(axis not in range(ndim) for axis in stages.pool) or len({*stages.pool}) < len(stages.pool):
        raise InputError(f"pool must name different axes from 0 to {ndim - 1}, got {tuple(stages.pool)}")
    if stages.upsample and (len(stages.upsample) != ndim or min(stages.upsample) < 1 or stages.pool):
        raise InputError(
            f"upsample must be {counted(ndim, 'extent')} of at least 1, without pool, got "
            f"{tuple(stages.upsample)}"
        )
    return levels


def _sweep_models(level: _Level, channels: int, part: str) -> Iterator[onnx.ModelProto]:
    """The graph of each direction of a level; `docs/reference.md` lists the inputs and the outputs.

    `channels` are the features of the stored output of the level before, or of x.
    """
    layer = level.layer
    states = ("h", *layer.definition.states)
    faces = [f"{state}{d}" for d in range(layer.ndim) for state in states]
    windows = _windows(level, channels)
    for dir_idx in range(len(layer.directions)):
        model = onnx.ModelProto()
        model.CopyFrom(windows)
        _add_sweep(model, level, dir_idx, faces)
        names = tuple(value.name for value in model.graph.output)
        yield _with_metadata(
            model,
            layer.ndim,
            channels=channels,
            outputs=level.features,
            inputs=("x", *faces),
            window=level.window,
            output_names=names,
            further_windows=(None,) * len(faces),
            part=f"{part}/sweep-{dir_idx}",
        )


def _head_model(stages: TileStages, features: int, outputs: int) -> onnx.ModelProto | None:
    """The graph of the head, or None if there is nothing to do: x (N, *tile, features) → y (N, *tile ·
    upsample, outputs).
    """
    if stages.head is None and prod(stages.upsample) == 1:
        return None
    ndim, upsample = stages.stages[0].layer.ndim, tuple(stages.upsample)
    head = _Mapped(stages.head, (lambda y: depth_to_space(y, upsample)) if upsample else None)
    window = None if upsample else (1,) * ndim
    model = _captured(head, _example(ndim), features, "y")
    return _with_metadata(model, ndim, channels=features, outputs=outputs, window=window, part="head")


def _windows(level: _Level, channels: int) -> onnx.ModelProto:
    """A graph with what comes before the sweeps of a level."""
    ndim, window = level.layer.ndim, level.window
    if level.before is None and prod(window) == 1:  # nothing, for which torch would take its time
        value = _declared("x", ["batch", *(f"extent_{d}" for d in range(ndim)), channels])
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        graph = onnx.helper.make_graph([], "mdlstm", [value], [value])
        return lower(onnx.helper.make_model(graph, opset_imports=opsets))
    before = _Mapped(level.before, (lambda x: space_to_depth(x, window)) if prod(window) > 1 else None)
    extents = [e * w for e, w in zip(_example(len(window)), window, strict=True)]
    return _captured(before, extents, channels, "windows")


class _Mapped(nn.Module):
    """A module, if there is one, and then a function."""

    def __init__(self, module: nn.Module | None, function: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.module is None else self.module(x)
        return y if self.function is None else self.function(y)


def _captured(module: nn.Module, extents: Sequence[int], channels: int, output: str) -> onnx.ModelProto:
    """The graph of a module that takes x on any grid.

    Raises:
        InputError: it decides by an extent, or by the batch.
    """
    free_axes = {"x": dict.fromkeys(range(1, len(extents) + 1), 1)}
    x = torch.zeros(2, *extents, channels, dtype=torch.float32)
    # The tiles of a verification have one window or two along each axis.
    usual = zip(extents, _example(len(extents)), strict=True)
    small = product(*((extent // e, 2 * extent // e) for extent, e in usual))
    model, beyond = capture(module.eval(), {"x": x}, free_axes, (output,), None, [extents, *small])
    if beyond:
        raise InputError(
            "before or head of tile_stages() decides by an extent or the batch, as for x of shape "
            f"{beyond[0]}; each position must be computed from that position alone"
        )
    return lower(model)


def _with_metadata(model: onnx.ModelProto, ndim: int, **fields: Any) -> onnx.ModelProto:
    layout = layout_of(ndim, channels_last=True)
    metadata = Metadata(version=__version__, grid=None, form="tiles", layout=layout, **fields)
    onnx.helper.set_model_props(model, metadata.to_props())
    return model


def _add_sweep(model: onnx.ModelProto, level: _Level, dir_idx: int, names: list[str]) -> None:
    """Add one direction of a level to a graph that computes its input.

    The faces, called `names`, become inputs and outputs of the graph. The part of `after` for this
    direction is applied, and its bias with the first direction.
    """
    layer = level.layer
    ndim, n = layer.ndim, layer.hidden_size
    graph, count = Graph("sweep"), len(names) // ndim  # 1 + S
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
    h, final = write_scan(graph, sweep)
    part = graph("Squeeze", _apply_after(graph, level, dir_idx, h), graph.integers(-2))
    results, leaving = [part], [final]
    if ndim > 1:
        counts = [
            graph("ReduceProd", graph("Shape", face, start=1, end=-1), keepdims=1)
            for face in faces[::count]
        ]
        leaving = graph.add_node("Split", ndim, final, graph.concat(counts, axis=0), axis=1)
    for of_axis, like in zip(leaving, of_axes, strict=True):
        states = graph.split(of_axis, [1] * count, axis=3)
        pairs = zip(states, like, strict=True)
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
