"""Import the user's Python files, which register cells, models and tasks.

Only files that the user names in this call are imported: by `mdlstm --import FILE`. Nothing that is stored,
such as a run, a configuration or a model, names code.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from mdlstm_tk._util.text import suggestion
from mdlstm_tk.errors import InputError

_modules: dict[Path, ModuleType] = {}  # by resolved path


def import_file(path: Path) -> ModuleType:
    """Run a Python file as a module; once per process, however often it is named.

    Raises:
        InputError: there is no such file, or its suffix is not .py; errors in it propagate.
    """
    path = path.resolve()
    if path in _modules:
        return _modules[path]
    # The name is that of no other module, such as `torch` for a file torch.py.
    name = f"{path.stem}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"there is no Python file {path} to import")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    _modules[path] = module
    return module


def imported_files() -> list[Path]:
    """The files that this process has imported, for a process that it starts."""
    return list(_modules)


def not_registered(kind: str, name: str, known: Iterable[str]) -> str:
    """The error message about a name that nothing is registered under.

    Args:
        kind: "cell", "model", "task" or "kind of task".
        name: the name.
        known: the registered names.
    """
    hint = suggestion(name, known)
    hint += "" if hint.endswith("?") else "."
    return f"there is no {kind} '{name}'; {hint} If a Python file of yours registers it: --import FILE"
