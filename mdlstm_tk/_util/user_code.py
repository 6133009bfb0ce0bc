"""Python files of the user's that define cells or networks: "file.py:name".

Whatever is imported here was named by the user, in a call of the library or in this very command. A file of
settings, such as a checkpoint, cannot name one: see `mdlstm_tk.training.config.TrainConfig.updated`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from mdlstm_tk.errors import InputError

_modules: dict[Path, ModuleType] = {}  # those that ran


def split_reference(reference: str) -> tuple[Path | None, str]:
    """ "file.py:name" → (its resolved path, "name"); any other text → (None, the text).

    Raises:
        InputError: a path cannot be resolved.
    """
    path, colon, name = reference.rpartition(":")
    if not colon or not path.endswith(".py"):
        return None, reference
    try:
        return Path(path).resolve(), name
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a zero byte in the name
        raise InputError(f"{reference!r:.200} names no file: {error}") from None


def names_file(reference: str) -> bool:
    """Tell whether a text is of the form "file.py:name"."""
    return split_reference(reference)[0] is not None


def import_file(path: Path) -> ModuleType:
    """Run a Python file as a module; once per process, however often it is named.

    Raises:
        InputError: there is no such file.
    """
    if path in _modules:
        return _modules[path]
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _modules[path] = module
    return module


def cell_name(reference: str) -> str:
    """The name of a cell; for "file.py:name", after the file has been run.

    Raises:
        InputError: there is no such file, or it defines no such cell.
    """
    from mdlstm_tk.cells import cell_names

    file, name = split_reference(reference)
    if file is None:
        return reference
    import_file(file)
    if name not in cell_names():
        raise InputError(
            f"{file} defines no cell '{name}'; decorate its equations with @register_cell('{name}', …)"
        )
    return name
