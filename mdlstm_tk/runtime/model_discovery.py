"""Finding the model or run that a bare command means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mdlstm_tk.errors import InputError
from mdlstm_tk.sizes import format_size


def find_model(given: str | None, grids: Sequence[tuple[int, ...]] = ()) -> Path:
    """The model to run.

    In this order: `given`, $MDLSTM_MODEL, an export of the latest run, the only `.onnx` in this
    folder. Where a folder holds several: the one exported for the grid, if all `grids` are the same; else
    one for any, else the newest.

    Raises:
        InputError: there is none.
    """
    named = given or os.environ.get("MDLSTM_MODEL")
    if named:
        path = Path(named)
        if not path.is_dir():
            return path
        return _choose(path, grids) or _none(f"{path} holds no .onnx model")
    runs = sorted(Path("runs").glob("*/*.onnx"), key=_age)
    if runs and (found := _choose(runs[-1].parent, grids)):
        return found
    here = list(Path().glob("*.onnx"))
    if len(here) > 1:
        _none(f"there are {len(here)} .onnx models in this folder; choose one with -m")
    return here[0] if here else _none("there is no exported model here")


def _choose(folder: Path, grids: Sequence[tuple[int, ...]]) -> Path | None:
    models = sorted(folder.glob("*.onnx"), key=_age)
    distinct = list(dict.fromkeys(map(format_size, grids)))
    for size in [*distinct, "any"] if len(distinct) == 1 else ["any", *distinct]:
        if fitting := [path for path in models if path.stem.endswith(f"-{size}")]:
            return fitting[-1]
    return models[-1] if models else None


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _none(reason: str) -> Path:
    raise InputError(f"{reason}; give one with -m, or make one with: mdlstm train, then mdlstm export")
