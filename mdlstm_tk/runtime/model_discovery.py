"""Find the exported models to choose from where none is named, or a folder; see `model_choice`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from mdlstm_tk.errors import TILED_EXPORT, Argument, InputError
from mdlstm_tk.runtime.io import TILED_SUFFIX, is_tiled
from mdlstm_tk.runtime.io.npy import read_model_file
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.model_check import check_model

RUNS = Path("runs")


def find_models(model: str | Path | None, *, tiled: bool = False) -> list[Path]:
    """The models among which the grids of the inputs choose, the oldest first.

    These places are searched in turn: `model`, $MDLSTM_MODEL, the run below runs/ that was exported last,
    and the current folder, if it holds exactly one `.onnx`.

    Args:
        model: a file or a folder of them; None to search.
        tiled: search for `.tiles` files rather than `.onnx` files.

    Returns:
        At least one path; a file that is named need not exist.

    Raises:
        InputError: there is no model, or several in the current folder.
    """
    suffix = TILED_SUFFIX if tiled else ".onnx"
    name = model or os.environ.get("MDLSTM_MODEL")
    if name:
        path = Path(name)
        if not os.path.isdir(path):
            return [path]
        return _exports(path, tiled) or _fail(f"the folder {path} holds no {suffix} model", tiled)
    exports = sorted((model for run in _runs() for model in _exports(run, tiled)), key=_modified)
    if exports:
        return _exports(exports[-1].parent, tiled)
    models = _exports(Path(), tiled)
    if len(models) > 1:
        several = f"this folder holds {len(models)} {suffix} models; choose one with "
        raise InputError(several, Argument("model"))
    return models or _fail(f"there is no {'tiled' if tiled else 'exported'} model here", tiled)


def read_metadata(model: Path, max_bytes: int) -> Metadata:
    """The metadata in an `.onnx` or `.tiles` file."""
    if is_tiled(model):
        from mdlstm_tk.runtime.tiles.archive import parse_archive  # imported late: most models are .onnx

        return parse_archive(read_model_file(model, max_bytes, TILED_EXPORT), str(model)).metadata
    data = read_model_file(model, max_bytes, "mdlstm export")
    return Metadata.from_props(check_model(data, str(model), max_bytes=max_bytes, trusted=True), str(model))


def models_in(folder: Path) -> list[Path]:
    """The `.onnx` files in a folder, the oldest first; neither hidden files nor folders or named pipes."""
    return _files(folder, "*.onnx")


def archives_in(folder: Path) -> list[Path]:
    """The tiled exports in a folder, the oldest first; as `models_in`."""
    return _files(folder, f"*{TILED_SUFFIX}")


def newer_run_without_export(model: Path) -> Path | None:
    """The newest run folder, if `find_models` passed it over because it holds no export; else None.

    Args:
        model: one that `find_models(None)` returned.
    """
    if os.environ.get("MDLSTM_MODEL") or model.parent.parent != RUNS:
        return None
    configs = sorted((config for run in _runs() for config in run.glob("config.toml")), key=_modified)
    if not configs or _exports(configs[-1].parent, is_tiled(model)):
        return None
    return configs[-1].parent


def _exports(folder: Path, tiled: bool) -> list[Path]:
    """The exports in a folder, the oldest first; tiled ones if they are asked for, or are the only ones."""
    return archives_in(folder) if tiled else models_in(folder) or archives_in(folder)


def _files(folder: Path, pattern: str) -> list[Path]:
    files = (path for path in folder.glob(pattern) if not path.name.startswith(".") and path.is_file())
    return sorted(files, key=_modified)


def _runs() -> list[Path]:
    return [path for path in RUNS.glob("*") if path.is_dir() and not path.name.startswith(".")]


def _modified(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, str(path)  # files that were unpacked together have one time


def _fail(reason: str, tiled: bool) -> NoReturn:
    export = TILED_EXPORT if tiled else "mdlstm export"
    made = ", or make one with: mdlstm train, then ", export
    raise InputError(f"{reason}; give one with ", Argument("model"), *made)
