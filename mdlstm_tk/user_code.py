"""Python files of the user's that define cells or networks: "file.py:name"."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from mdlstm_tk.errors import InputError


def split_reference(reference: str) -> tuple[Path | None, str]:
    """ "file.py:name" → (its resolved path, "name"); any other text → (None, the text)."""
    path, colon, name = reference.rpartition(":")
    return (Path(path).resolve(), name) if colon and path.endswith(".py") else (None, reference)


@cache
def import_file(path: Path) -> ModuleType:
    """Run a Python file as a module; once per process, however often it is named.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
