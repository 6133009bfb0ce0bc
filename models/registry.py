"""Networks by name: the built-in ones, and those that a user registers. Importing this imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named

if TYPE_CHECKING:
    from torch import nn

Factory = Callable[..., "nn.Module"]
F = TypeVar("F", bound=Factory)

# name, and kind of task or None for all → factory, or the place of a built-in one
_FACTORIES: dict[tuple[str, str | None], Factory | str] = {
    ("md", "grid"): "models.grids:MDNet",
    ("md", "classify"): "models.heads:Classifier",
    ("md", "segment"): "models.heads:Segmenter",
    ("md", "transcribe"): "text.networks:TextRecognizer",
    ("horizontal", "grid"): "models.grids:HorizontalNet",
    ("snake", "grid"): "models.grids:SnakeNet",
    ("raster", "grid"): "models.grids:RasterNet",
    ("pixel", "density"): "density.pixel:PixelNet",
    ("pages", "baselines"): "text.baselines_training:LineFinder",
    ("lines", "transcribe"): "text.networks:LineRecognizer",
}


def register(name: str, *, kind: str | None = None) -> Callable[[F], F]:
    """Register a network under a name. A second registration replaces the first.

    The decorated class or function is called as `factory(channels, outputs, **options)`. It returns a
    module that takes x (N, *grid, channels), and `sizes=None` if it supports samples of different extents.
    The shape of the result depends on the kind of task. In training mode it may be a tuple: the result, and
    auxiliary ones which only the loss sees.

    Args:
        name: of the network.
        kind: of the tasks it is for; None: of all kinds.
    """

    def add(factory: F) -> F:
        for key in [key for key in _FACTORIES if key[0] == name and kind is None]:
            del _FACTORIES[key]
        _FACTORIES[name, kind] = factory
        return factory

    return add


def model_names(kind: str | None = None) -> list[str]:
    """The registered names, of one kind of task or of all."""
    names = dict.fromkeys(name for name, _ in _FACTORIES)
    return [name for name in names if kind is None or _find(name, kind)]


def create(name: str, channels: int, outputs: int, *, kind: str = "grid", **options: Any) -> nn.Module:
    """Build a network.

    Args:
        name: of the network.
        channels: features at each position of the input.
        outputs: features of the output.
        kind: of the task, see `register`.
        **options: of the network, such as hidden, layers, cell and directions.

    Raises:
        InputError: there is no such network, it is for tasks of another kind, or it has no such option.
    """
    known = model_options(name, kind)
    if unknown := [option for option in options if option not in known]:
        raise InputError(f"model '{name}' has no option '{unknown[0]}'; it has {', '.join(known)}")
    return _factory(name, kind)(channels, outputs, **options)


def model_options(name: str, kind: str) -> list[str]:
    """The names of a network's options. Errors are as of `create`."""
    parameters = [*inspect.signature(_factory(name, kind)).parameters.values()][2:]  # channels, outputs
    return [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def default_windows(name: str, kind: str) -> Sequence[Any] | None:
    """The windows of a network's levels unless the user chooses others; None if it has no windows."""
    return getattr(_factory(name, kind), "default_windows", None)


def _factory(name: str, kind: str) -> Factory:
    if name not in model_names():
        raise InputError(not_registered("model", name, model_names()))
    factory = _find(name, kind)
    if factory is None:
        others = ", ".join(model_names(kind))
        raise InputError(f"model '{name}' is for other tasks than those of kind {kind}; choose {others}")
    if isinstance(factory, str):
        module, attribute = factory.split(":")
        factory = getattr(import_module(f"mdlstm_tk.{module}"), attribute)
    return factory


def _find(name: str, kind: str) -> Factory | str | None:
    """The factory for a kind of task, or for the kind whose networks it takes, too."""
    get = _FACTORIES.get
    return get((name, kind)) or get((name, kind_named(kind).networks)) or get((name, None))
