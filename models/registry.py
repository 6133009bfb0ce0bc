"""Networks by name: the built-in ones, and those that a user registers. Importing this imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named

if TYPE_CHECKING:
    from torch import nn

Factory = Callable[..., "nn.Module"]
F = TypeVar("F", bound=Factory)

# name → kind of task, or None for all → factory, or the place of a built-in one
_FACTORIES: dict[str, dict[str | None, Factory | str]] = {
    "md": {
        "grid": "models.grids:MDNet",
        "classify": "models.heads:Classifier",
        "segment": "models.heads:Segmenter",
        "transcribe": "text.networks:TextRecognizer",
    },
    "horizontal": {"grid": "models.grids:HorizontalNet"},
    "snake": {"grid": "models.grids:SnakeNet"},
    "raster": {"grid": "models.grids:RasterNet"},
    "pixel": {"density": "density.pixel:PixelNet"},
    "pages": {"baselines": "text.baseline_network:LineFinder"},
    "lines": {"transcribe": "text.networks:LineRecognizer"},
}
_ALIASES = {"md_lstm": "md", "horizontal_sd_lstm": "horizontal", "snake_sd_lstm": "snake"}  # original names


def register(name: str, *aliases: str, kind: str | None = None) -> Callable[[F], F]:
    """Register a network under `name` and `aliases`, which are not case-sensitive.

    The decorated class or function is called as `factory(channels, outputs, **options)`. It returns a
    module that takes x (N, *grid, channels), and `sizes=None` if it supports samples of different extents.
    The shape of the result depends on the kind of task, see `TrainingKind.rule`. In training mode it may be
    a tuple: the result, and auxiliary ones which only the loss sees.

    Without a kind, the network is used for tasks of all kinds. A second registration replaces the first,
    and one without a kind those of all kinds.

    Raises:
        InputError: an alias is the name of another network.
    """
    key = name.lower()
    for alias in aliases:
        if alias.lower() in _FACTORIES and alias.lower() != key:
            raise InputError(f"register('{name}') takes other aliases than '{alias}', which is a network")

    def add(factory: F) -> F:
        kinds = _FACTORIES.setdefault(key, {})
        if kind is None:
            kinds.clear()
        kinds[kind] = factory
        _ALIASES.pop(key, None)  # the name is no longer that of another network
        _ALIASES.update((alias.lower(), key) for alias in aliases)
        return factory

    return add


def model_names(kind: str | None = None) -> list[str]:
    """Return the registered names without aliases, of one kind of task or of all."""
    return [name for name, kinds in _FACTORIES.items() if kind is None or _find(kinds, kind)]


def resolve(name: str) -> str:
    """Return the name that a network is registered under.

    Args:
        name: a registered name or an alias.

    Raises:
        InputError: there is no such network.
    """
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key not in _FACTORIES:
        raise InputError(not_registered("model", name, [*_FACTORIES, *_ALIASES]))
    return key


def create(name: str, channels: int, outputs: int, *, kind: str = "grid", **options: Any) -> nn.Module:
    """Build a network.

    Args:
        name: as in `resolve`.
        channels: features at each position of the input.
        outputs: features of the output.
        kind: kind of the task, see `register`.
        **options: options of the network, such as hidden, layers, cell and directions.

    Raises:
        InputError: there is no such network, it is for tasks of another kind, or it has no such option.
    """
    key = resolve(name)
    factory = _get_factory(key, kind)
    accepted = _factory_options(factory)
    for option in options:
        if option not in accepted:
            named = f"its options are {', '.join(accepted)}" if accepted else "its factory names none"
            raise InputError(f"model '{key}' has no option '{option}'; {named}")
    return factory(channels, outputs, **options)


def model_options(name: str, kind: str) -> list[str]:
    """Return the names of a network's options.

    Raises:
        InputError: there is no such network, or it is for tasks of another kind.
    """
    return _factory_options(_get_factory(resolve(name), kind))


def default_windows(name: str, kind: str) -> Sequence[Any] | None:
    """The windows of a network's levels unless the user chooses others; None if it has no windows.

    Raises:
        InputError: there is no such network, or it is for tasks of another kind.
    """
    return getattr(_get_factory(resolve(name), kind), "default_windows", None)


def _factory_options(factory: Factory) -> list[str]:
    """The options that a factory names: nobody knows which ones `**options` takes."""
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(factory).parameters.values()
    return [
        each.name
        for each in parameters
        if each.kind not in variable and each.name not in ("channels", "outputs")
    ]


def _get_factory(key: str, kind: str) -> Factory:
    kinds = _FACTORIES[key]
    factory = _find(kinds, kind)
    if factory is None:
        raise InputError(
            f"model '{key}' is for tasks of kind {', '.join(map(str, kinds))}, but the task is of kind "
            f"{kind}; choose one of {', '.join(model_names(kind))}"
        )
    if isinstance(factory, str):
        module, attribute = factory.split(":")
        built_in: Factory = getattr(import_module(f"mdlstm_tk.{module}"), attribute)
        return built_in
    return factory


def _find(kinds: Mapping[str | None, Factory | str], kind: str) -> Factory | str | None:
    """The factory for a kind of task, or for the kind whose networks it takes, too."""
    related = kind_named(kind).networks_of
    return kinds.get(kind) or kinds.get(related) or kinds.get(None)
