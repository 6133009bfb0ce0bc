"""`describe_model`: what an exported model is, from its metadata."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.runtime.io import is_tiled
from mdlstm_tk.runtime.session import Session


def describe_model(path: str | Path, max_bytes: int | None = None) -> dict[str, Any]:
    """Describe an exported model, as `mdlstm info` prints it.

    Args:
        path: an `.onnx` or `.tiles` file.
        max_bytes: maximum size of the file in bytes. None: 1 GiB.

    Returns:
        "bytes", the size of the file; all fields of its `Metadata`, "kind" being that of its task; and of
        a tiled model "stages", the layers that tiles pass through. All values are JSON values.

    Raises:
        InputError: the file cannot be read, is larger, or is no such model.
        MissingExtraError: ONNX Runtime is not installed.
    """
    from mdlstm_tk.runtime.tiles.session import TiledSession

    path = Path(path)
    if not is_tiled(path):
        with Session(path, "cpu", max_bytes=max_bytes) as session:
            return {"bytes": path.stat().st_size, **asdict(session.metadata)}
    with TiledSession(path, "cpu", max_bytes=max_bytes) as tiled:
        stages = [
            {
                "window": format_size(stage.window),
                "directions": len(stage.sweeps),
                "units": stage.units,
                "channels": stage.channels,
                "stored": stage.outputs,
            }
            for stage in tiled.archive.stages
        ]
        return {"bytes": path.stat().st_size, **asdict(tiled.metadata), "stages": stages}
