"""Run a function once a package has been imported, without importing it.

torch takes a second to import, PyTorch's FLOP counter as long again, so this package imports them only
where it needs them. What has to be registered with them is registered when somebody else imports them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(name: str, action: Callable[[], object]) -> None:
    """Call `action` as soon as the module `name` has been imported; now if it has been already."""
    if name in sys.modules:
        action()
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.actions.setdefault(name, []).append(action)


class _Finder(MetaPathFinder):
    """Finds modules as the other finders do, and calls the actions after a module has been executed."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Callable[[], object]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                self._act_after(spec)
                return spec
        return None

    def _act_after(self, spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for action in self.actions.pop(spec.name, ()):
                action()

        loader.exec_module = exec_module  # the loader belongs to this import alone


_finder = _Finder()
