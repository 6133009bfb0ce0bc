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

_FACTORIES: dict[str, dict[str | None, Factory]] = {}  # by name, then kind of task
_ALIASES: dict[str, str] = {}


def register(name: str, *aliases: str, kind: str | None = None) -> Callable[[F], F]:
    """Make a network known by `name` and `aliases`, whatever their case.

    What is decorated is called as `factory(channels, outputs, **options)` and returns a module from
    x (N, *grid, channels), and `sizes=None` if it can do with samples of different extents, to what
    `kind` of task it is for:

        "grid": (N, *grid, outputs)
        "classify": (N, outputs) logits
        "segment": (N, *grid, outputs) logits
        "transcribe": (N, T, outputs) logits, 0 the blank

    Without a kind it is taken for tasks of all kinds. A second registration replaces the first.
    """

    def add(factory: F) -> F:
        _FACTORIES.setdefault(name.lower(), {})[kind] = factory
        _ALIASES.update({alias.lower(): name.lower() for alias in aliases})
        return factory

    return add


def names(kind: str | None = None) -> list[str]:
    """The registered names, without aliases; those for a kind of task if one is given."""
    return [name for name, kinds in _FACTORIES.items() if kind is None or kind in kinds or None in kinds]


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


def create(name: str, channels: int, outputs: int, *, kind: str = "grid", **options: Any) -> nn.Module:
    """Build a network.

    Args:
        name: as for `resolve`.
        channels: features at each position of the input.
        outputs: features of the output.
        kind: of task, see `register`.
        **options: what the network takes beside them, such as hidden, layers, cell, directions.

    Raises:
        InputError: no such network, it is for tasks of another kind, or it has no such option.
    """
    factory = _factory(key := resolve(name), kind)
    accepted = _options(factory)
    for option in options:
        if option not in accepted:
            raise InputError(f"model '{key}' has no option '{option}'; it has {', '.join(accepted)}")
    return factory(channels, outputs, **options)


def options_of(name: str, kind: str) -> list[str]:
    """The options that a network has.

    Raises:
        InputError: no such network, or it is for tasks of another kind.
    """
    return _options(_factory(resolve(name), kind))


def _options(factory: Factory) -> list[str]:
    accepted = inspect.signature(factory).parameters
    return [option for option in accepted if option not in ("channels", "outputs")]


def _factory(key: str, kind: str) -> Factory:
    kinds = _FACTORIES[key]
    factory = kinds.get(kind) or kinds.get(None)
    if factory is None:
        known = ", ".join(map(str, kinds))
        raise InputError(
            f"model '{key}' is for tasks of kind {known}, this one is of kind {kind}; "
            f"choose one of {', '.join(names(kind))}"
        )
    return factory
