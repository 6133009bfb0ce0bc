"""The source tree: its Python files, the modules they become, and copies to build from."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("mdlstm_tk", "models", "cli", "export")  # what is installed, as one package
BUILT = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "runs")


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its installed name, `mdlstm_tk.models.blocks` for models/blocks.py."""
    result = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):  # does not follow the links mdlstm_tk/models, …
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "mdlstm_tk" else ("mdlstm_tk", *parts)
            result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


def copy_checkout(destination: Path) -> Path:
    """Copy the working tree without what was built in it."""
    by_name = shutil.ignore_patterns(*BUILT)

    def ignore(folder: str, names: list[str]) -> set[str]:
        environments = {name for name in names if Path(folder, name, "pyvenv.cfg").exists()}
        return environments | by_name(folder, names)

    return Path(shutil.copytree(ROOT, destination, symlinks=True, ignore=ignore))
