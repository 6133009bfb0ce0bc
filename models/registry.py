"""Networks by name: the built-in ones, and those in a user's own file."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mdlstm_tk.errors import InputError

Factory = Callable[..., nn.Module]
F = TypeVar("F", bound=Factory)

_FACTORIES: dict[str, Factory] = {}
_ALIASES: dict[str, str] = {}


def register(name: str, *aliases: str) -> Callable[[F], F]:
    """Make a network known by `name` and `aliases`, whatever their case.

    What is decorated is called as `factory(channels, outputs, **options)` and returns a module from
    (N, *grid, channels) to (N, *grid, outputs). A second registration of a name replaces the first.
    """

    def add(factory: F) -> F:
        _FACTORIES[name.lower()] = factory
        _ALIASES.update({alias.lower(): name.lower() for alias in aliases})
        return factory

    return add


def names() -> list[str]:
    """The registered names, without aliases."""
    return list(_FACTORIES)


def resolve(name: str) -> str:
    """The name a network is registered under, given it, an alias, or "file.py:name".

    The file is run, so that its `@register` lines take effect.

    Raises:
        InputError: no such file or network.
    """
    path, colon, inner = name.rpartition(":")
    if colon and path.endswith(".py"):
        if not Path(path).is_file():
            raise InputError(f"--model {name}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        if spec is None or spec.loader is None:
            raise InputError(f"--model {name}: {path} cannot be loaded as Python")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        name = inner
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key not in _FACTORIES:
        known = ", ".join(_FACTORIES)
        raise InputError(f"there is no model '{name}'; choose one of {known}, or your own as file.py:name")
    return key


def create(name: str, channels: int, outputs: int, **options: Any) -> nn.Module:
    """Build a network from (N, *grid, channels) to (N, *grid, outputs).

    Args:
        name: as for `resolve`.
        channels: features at each position of the input.
        outputs: features at each position of the output.
        **options: what the network takes beside them, such as hidden, layers, cell, directions.

    Raises:
        InputError: no such network, or it has no such option.
    """
    factory = _FACTORIES[key := resolve(name)]
    accepted = inspect.signature(factory).parameters
    for option in options:
        if option not in accepted:
            known = ", ".join(p for p in accepted if p not in ("channels", "outputs"))
            raise InputError(f"model '{key}' has no option '{option}'; it has {known}")
    return factory(channels, outputs, **options)
