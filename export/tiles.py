"""`export_tiles`: export a network as an archive that ONNX Runtime runs tile by tile, on any grid."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from mdlstm_tk._util.text import to_json
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.export.arguments import read_spec
from mdlstm_tk.export.interface import eval_copy
from mdlstm_tk.export.model_file import (
    ExportReport,
    check_folder,
    check_onnx,
    operators_to_trust,
    write_file,
)
from mdlstm_tk.export.tile_graphs import Level, head_model, levels_of, sweep_models
from mdlstm_tk.export.verification.export_verifier import verify_export
from mdlstm_tk.export.verification.parity import ATOL, RTOL
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.tiles.archive import INDEX, SCHEMA, SUFFIX
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.tiling.stages import TileStages, stages_of


def export_tiles(
    module: nn.Module,
    path: str | Path,
    *,
    channels: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    atol: float | None = None,
) -> ExportReport:
    """Export a network as one archive with a graph for each sweep, to be run on grids of any size in tiles.

    The archive appears only after `onnx.checker` has accepted each graph and a `TiledSession`, on grids of
    several tiles, has agreed with the network's own forward in float64 within atol·s + 1e-5·|y|, where s is
    the largest output of a feature, at least 1. The module is left unchanged.

        >>> export_tiles(net, "net.tiles")

    `docs/tiled_networks.md` says which networks can be exported, and shows how to write one.

    Args:
        module: a network with a method `tile_stages`, see `mdlstm_tk.tiling.TileStages`, or an `MDLSTM`. It
            maps x (N, *grid, C) to y.
        path: the file to write, which ends in `.tiles`; an existing file is replaced.
        channels: C. None: the input size of the first layer.
        metadata: more fields of `mdlstm_tk.runtime.Metadata`, as for `export_onnx`.
        atol: allowed absolute error in units of the scale s; 1e-5 if None.

    Returns:
        What was written.

    Raises:
        InputError: the network cannot run in tiles, or does not say how; the message has the reason.
        MDLSTMError: the network cannot be exported, or the file cannot be written.
        ParityError: the graphs in tiles disagree with the network. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    start = time.perf_counter()
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"the name of a tiles export ends in {SUFFIX}, got {path}")
    check_folder(path)
    levels_of(stages_of(eval_copy(module)))  # before the network runs, which takes longer
    name, spec = type(module).__name__, read_spec(module, any_size=True, channels=channels)
    if not spec.channels_last:
        raise InputError(
            f"{name} takes x as (N, C, *grid), but tiles are for networks that take (N, *grid, C); wrap it "
            "in a module that moves the axis"
        )
    if len(spec.output_names) > 1:
        raise InputError(
            f"{name} returns {len(spec.output_names)} outputs, but tiles are for networks with one"
        )
    archive_metadata = spec.metadata("tiles", "float32", metadata or {})
    index, graphs = _write_parts(stages_of(spec.interface.module), spec.channels, archive_metadata.outputs)
    atol = ATOL if atol is None else atol
    with TiledSession(_archive(index, archive_metadata, graphs), "cpu", trusted=True) as session:
        max_abs = verify_export(session, spec, atol, path)
    archive_metadata = replace(archive_metadata, parity={"atol": atol, "rtol": RTOL, "max_abs": max_abs})
    data = _archive(index, archive_metadata, graphs)
    write_file(path, data)
    nodes, needs_trust = (
        sum(len(m.graph.node) for m in graphs.values()),
        operators_to_trust(*graphs.values()),
    )
    seconds = time.perf_counter() - start
    return ExportReport(path, archive_metadata, nodes, len(data), max_abs, seconds, needs_trust)


def check_tile_options(
    *grids: Sequence[int | None] | None,
    padded: bool = False,
    multiple_of: int | Sequence[int] | None = None,
    dtype: str = "float32",
    functions: bool = False,
) -> None:
    """Refuse the options of an export that do not go together with form "tiles".

    Raises:
        InputError: names the first of them.
    """
    options = {
        "a size": any(grids),
        "padded samples": padded,
        "multiple_of": multiple_of is not None,
        f"dtype {dtype}": dtype != "float32",
        "functions": functions,
    }
    if name := next((name for name, is_there in options.items() if is_there), None):
        raise InputError(
            f"form 'tiles' is for any size, in float32, and does not go together with {name}; leave that "
            "out"
        )


def _write_parts(
    stages: TileStages, channels: int, outputs: int
) -> tuple[dict[str, Any], dict[str, onnx.ModelProto]]:
    """The content of tiles.json without metadata, and the graphs of a network by name.

    Raises:
        MDLSTMError: torch cannot export a part of it, or the result is not valid ONNX.
    """
    entries: list[dict[str, Any]] = []
    graphs: dict[str, onnx.ModelProto] = {}
    for number, level in enumerate(levels_of(stages)):
        entry, of_level = _write_level(level, channels, f"stage-{number}")
        entries.append(entry)
        graphs |= of_level
        channels = level.stored_features
    head = head_model(stages, channels, outputs)
    if head is not None:
        graphs["head.onnx"] = head
    for name, model in graphs.items():
        check_onnx(model, f"{name} of the exported archive")
    index = {
        "schema": SCHEMA,
        "stages": entries,
        "pool": list(stages.pool),
        "head": None if head is None else {"file": "head.onnx"},
        "upsample": list(stages.upsample),
    }
    return index, graphs


def _write_level(
    level: Level, channels: int, name: str
) -> tuple[dict[str, Any], dict[str, onnx.ModelProto]]:
    """The entry of a level in tiles.json, and its graphs by name."""
    models = list(sweep_models(level, channels, name))
    files = [f"{name}/sweep-{k}.onnx" for k in range(len(models))]
    sweeps = [
        {"file": file, "direction": list(direction)}
        for file, direction in zip(files, level.layer.directions, strict=True)
    ]
    entry = {
        "window": list(level.window),
        "channels": channels,
        "features": level.features,
        "units": level.layer.hidden_size,
        "sum": level.adds_parts,
        "sweeps": sweeps,
    }
    return entry, dict(zip(files, models, strict=True))


def _archive(index: Mapping[str, Any], metadata: Metadata, graphs: Mapping[str, onnx.ModelProto]) -> bytes:
    """The content of the file: a ZIP archive without compression, the same for the same graphs."""
    members = {INDEX: to_json({**index, "metadata": metadata.to_props()}).encode()}
    members |= {name: model.SerializeToString() for name, model in graphs.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)  # of 1980, so that equal content gives equal bytes
    return buffer.getvalue()
