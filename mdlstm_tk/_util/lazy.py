"""Public names of a package that are loaded when they are first used, so that importing it is fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from mdlstm_tk.errors import require


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]], extra: str | None = None
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """The `__all__`, `__getattr__` and `__dir__` of a package whose modules are imported late.

    Args:
        package: its name.
        modules: the public names in each module.
        extra: the optional dependencies that the modules need; see `mdlstm_tk.errors.require`.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module = f"{package}.{module_of[name]}"
        return getattr(require(module, extra) if extra else import_module(module), name)

    names = sorted(module_of)
    return names, load, lambda: names
