"""`describe_model`: what an exported model is, from its metadata."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import TILED_EXPORT
from mdlstm_tk.runtime.io import is_tiled
from mdlstm_tk.runtime.io.npy import byte_limit, read_model_file
from mdlstm_tk.runtime.model_discovery import read_metadata
from mdlstm_tk.runtime.staleness import note_if_stale


@checked
def describe_model(path: str | Path, max_bytes: int | None = None) -> dict[str, Any]:
    """Describe an exported model, as `mdlstm info` prints it. The model is not loaded.

    Args:
        path: an `.onnx` or `.tiles` file.
        max_bytes: maximum size of the file in bytes. None: 1 GiB.

    Returns:
        "bytes", the size of the file; all fields of its `Metadata`, "kind" being that of its task; "stale",
        what `note_if_stale` returns; and of a tiled model "stages", the layers that tiles pass through. All
        values are JSON values.

    Raises:
        InputError: the file cannot be read, is larger, or is no such model.
    """
    path, limit = Path(path), byte_limit(max_bytes)
    stages = {}
    if is_tiled(path):
        from mdlstm_tk.runtime.tiles.archive import parse_archive  # imported late: most models are .onnx

        archive = parse_archive(read_model_file(path, limit, TILED_EXPORT), str(path))
        metadata = archive.metadata
        stages["stages"] = [
            {
                "window": format_size(stage.window),
                "directions": len(stage.sweeps),
                "units": stage.units,
                "channels": stage.channels,
                "stored": stage.outputs,
            }
            for stage in archive.stages
        ]
    else:
        metadata = read_metadata(path, limit)
    stale = note_if_stale(path, metadata)
    return {"bytes": path.stat().st_size, **asdict(metadata), "stale": stale, **stages}
