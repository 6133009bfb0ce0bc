"""The graphs of a tiles export: one for each sweep (stage × direction), and one for the head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mdlstm_tk._util.windows import space_to_depth
from mdlstm_tk._version import __version__
from mdlstm_tk.cells import get_cell
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.capture import OPSET, capture
from mdlstm_tk.export.lowering.graph import Graph, Value, rename
from mdlstm_tk.export.lowering.lower import lower
from mdlstm_tk.export.lowering.scan import write_scan
from mdlstm_tk.export.lowering.step import Sweep
from mdlstm_tk.export.verification.parity import Array
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models.blocks import depth_to_space
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.metadata import layout_of
from mdlstm_tk.tiling.stages import TileStages

Grid = tuple[int, ...]
Shape = list[str | int]  # extents, or names of free ones
EXAMPLE = (5, 7, 4, 3, 2)  # extents, in windows, that graphs are captured with


@dataclass(frozen=True)
class Level:
    """One recurrent layer that is not stacked: a stage is one level for each of its stacked layers.

    Attributes:
        layer: the layer, and which of its stacked layers.
        window: of this level.
        before, after: as in `Stage`.
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

    @property
    def stored_features(self) -> int:
        """The features of the output of all directions."""
        return self.features * (1 if self.adds_parts else len(self.layer.directions))


def levels_of(stages: TileStages) -> list[Level]:
    """The levels of a network.

    Raises:
        InputError: the description of the network contradicts itself.
    """
    if not stages.stages:
        raise InputError("tile_stages() must name at least one Stage, got none")
    levels: list[Level] = []
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
                f"after of stage {k} must take the {layer.output_size} features of its layer, got a Linear "
                f"that takes {stage.after.in_features}"
            )
        levels += [
            Level(
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
            f"upsample must be {ndim} extents of at least 1, without pool, got {tuple(stages.upsample)}"
        )
    return levels


def sweep_models(level: Level, channels: int, part: str) -> Iterator[onnx.ModelProto]:
    """The graph of each direction of a level; `docs/tiled_networks.md` lists the inputs and the outputs.

    Args:
        level: the level.
        channels: the features of the stored output of the level before, or of x.
        part: the first part of the name of each graph, for its metadata.

    Raises:
        MDLSTMError: torch cannot export `before`.
    """
    ndim, windows = level.layer.ndim, _windows(level, channels)
    for dir_idx in range(len(level.layer.directions)):
        model = onnx.ModelProto()
        model.CopyFrom(windows)
        names = _add_sweep(model, level, dir_idx)
        metadata = Metadata(
            version=__version__,
            grid=None,
            form="tiles",
            layout=layout_of(ndim, channels_last=True),
            channels=channels,
            outputs=level.features,
            inputs=("x", *face_names(level.layer)),
            window=level.window,
            output_names=names,
            further_windows=(None,) * (len(names) - 1),
            part=f"{part}/sweep-{dir_idx}",
        )
        onnx.helper.set_model_props(model, metadata.to_props())
        yield model


def _windows(level: Level, channels: int) -> onnx.ModelProto:
    """A graph with what comes before the sweeps of a level."""
    ndim = level.layer.ndim
    if level.before is None and prod(level.window) == 1:  # nothing, for which torch would take its time
        value = _declared("x", ["batch", *(f"extent_{d}" for d in range(ndim)), channels])
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        graph = onnx.helper.make_graph([], "mdlstm", [value], [value])
        return lower(onnx.helper.make_model(graph, opset_imports=opsets))
    extents = [e * w for e, w in zip(EXAMPLE[:ndim], level.window, strict=True)]
    x = torch.zeros(2, *extents, channels)
    free_axes = {"x": dict.fromkeys(range(1, ndim + 1), 1)}
    return lower(capture(_Windows(level).eval(), {"x": x}, free_axes, ("windows",)))


def head_model(stages: TileStages, features: int, outputs: int) -> onnx.ModelProto | None:
    """The graph of the head, or None if there is nothing to do: x (N, *tile, features) → y (N, *tile ·
    upsample, outputs).

    Raises:
        MDLSTMError: torch cannot export the head.
    """
    if stages.head is None and prod(stages.upsample) == 1:
        return None
    ndim = stages.stages[0].layer.ndim
    metadata = Metadata(
        version=__version__,
        grid=None,
        form="tiles",
        layout=layout_of(ndim, channels_last=True),
        channels=features,
        outputs=outputs,
        window=None if stages.upsample else (1,) * ndim,
        part="head",
    )
    head = _Head(stages.head, tuple(stages.upsample)).eval()
    x = torch.zeros(2, *EXAMPLE[:ndim], features)
    model = lower(capture(head, {"x": x}, {"x": dict.fromkeys(range(1, ndim + 1), 1)}))
    onnx.helper.set_model_props(model, metadata.to_props())
    return model


class _Windows(nn.Module):
    """The part of a network before the sweeps of a level."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.before, self.window = level.before, level.window

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        return space_to_depth(x, self.window) if prod(self.window) > 1 else x


class _Head(nn.Module):
    def __init__(self, head: nn.Module | None, upsample: Grid) -> None:
        super().__init__()
        self.head, self.upsample = head, upsample

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.head is None else self.head(x)
        return depth_to_space(y, self.upsample) if self.upsample else y


def face_names(layer: MDLSTM) -> list[str]:
    """The names of the faces among the inputs of a sweep, in order; the outputs have the same with "_n"."""
    states = ("h", *get_cell(layer.cell).states)
    return [f"{state}{d}" for d in range(layer.ndim) for state in states]


def _add_sweep(model: onnx.ModelProto, level: Level, dir_idx: int) -> tuple[str, ...]:
    """Add one direction of a level to a graph that computes its input, and return the names of the outputs.

    The faces become inputs and outputs of the graph. The part of `after` for this direction is applied, and
    its bias with the first direction.
    """
    ndim, n = level.layer.ndim, level.layer.hidden_size
    graph, names = Graph("sweep"), face_names(level.layer)
    count = len(names) // ndim  # 1 + S
    faces = [Value(graph, name) for name in names]
    of_axes = [faces[d * count : (d + 1) * count] for d in range(ndim)]
    joined = [graph.reshape(graph.concat(of_axis, axis=-1), 0, -1, 1, count, n) for of_axis in of_axes]
    initial = graph.concat(joined, axis=1)  # (N, F, 1, 1 + S, n)
    h, final = write_scan(graph, _sweep(graph, level, dir_idx, model.graph.output[0].name, initial))
    part = graph("Squeeze", _apply_after(graph, level, dir_idx, h), graph.integers(-2))
    of_states = [
        _split(graph, state, faces[k::count])
        for k, state in enumerate(graph.split(final, [1] * count, axis=3))
    ]
    results = [part, *(state[d] for d in range(ndim) for state in of_states)]
    output_names = ("part", *(f"{name}_n" for name in names))
    rename(graph.nodes, dict(zip((value.name for value in results), output_names, strict=True)))
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.initializers)
    # The extents of x and those after the window differ, so they have different names.
    extents = [f"extent_{d}" if size == 1 else f"windows_{d}" for d, size in enumerate(level.window)]
    shapes: list[Shape] = [
        ["batch", *extents[:d], *extents[d + 1 :], n] for d in range(ndim) for _ in range(count)
    ]
    model.graph.input.extend(map(_declared, names, shapes))
    del model.graph.output[:]
    shapes.insert(0, ["batch", *extents, level.features])
    model.graph.output.extend(map(_declared, output_names, shapes))
    return output_names


def _declared(name: str, shape: Shape) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _sweep(graph: Graph, level: Level, dir_idx: int, x: str, initial: Value) -> Sweep:
    """One direction of a level, which sweeps the value named `x`."""
    layer = level.layer
    parameters = layer._layer_parameters(level.number)
    return Sweep(
        x=Value(graph, x),
        parameters={
            name: _array(parameter[dir_idx : dir_idx + 1])
            for name, parameter in parameters.items()
            if parameter is not None
        },
        grid=(-1,) * layer.ndim,
        directions=[layer.directions[dir_idx]],
        cell=get_cell(layer.cell),
        initial=initial,
    )


def _split(graph: Graph, joined: Value, like: Sequence[Value]) -> list[Value]:
    """(N, F, 1, 1, n) → for each axis the shape of `like`."""
    shapes = [graph("Shape", face) for face in like]
    counts = [graph("ReduceProd", graph("Shape", face, start=1, end=-1), keepdims=1) for face in like]
    parts = [joined]
    if len(like) > 1:
        parts = graph.add_node("Split", len(like), joined, graph.concat(counts, axis=0), axis=1)
    return [graph("Reshape", part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _apply_after(graph: Graph, level: Level, dir_idx: int, h: Value) -> Value:
    """The share of one direction in the output of its level, from its h (…, n)."""
    layer, after = level.layer, level.after
    share = 1 / len(layer.directions) if layer.merge == "mean" else 1.0
    if after is None:
        return h if share == 1 else h * share
    n = layer.hidden_size
    weight = _array(after.weight).T  # (dirs·n, F), or (n, F) if the directions are merged before
    if layer.merge == "concat":
        weight = weight[dir_idx * n : (dir_idx + 1) * n]
    part = graph("MatMul", h, graph.constant((weight * share).astype(np.float32)))
    if after.bias is None or dir_idx > 0:
        return part
    return part + graph.constant(_array(after.bias))


def _array(parameter: Tensor) -> Array:
    array: Array = parameter.detach().cpu().float().numpy()
    return array
