"""Tasks by name: those that come with the package, a user's own, and data of a kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.data.task import Task, TaskSpec
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.training.config import TrainConfig

F = TypeVar("F", bound=Callable[..., Any])
NETWORK_OPTIONS = ("layers", "cell", "directions", "layer_norm", "windows", "dropout")
"""Settings that not every network has."""


class Entry(NamedTuple):
    """A task: what makes it, its kind, and the settings that suit it."""

    make: Callable[[TrainConfig], Task]
    kind: str
    defaults: Mapping[str, Any]


FIELDS, DIGITS = "data.builtin.gaussian_field:GaussianField", "density.digits:DigitsDensity"
OF_SAMPLES = ("kind", "seed", "validation", "augment")
# the place of a class, the settings that it is called with, where "kind" is its kind, and further arguments
BUILT_IN: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "diagonal": ("data.builtin.diagonal:DiagonalTask", ("grid",), {}),
    "digits": ("data.builtin.digits:Digits", OF_SAMPLES, {}),
    "gaussian-field": (FIELDS, ("grid",), {}),
    "gaussian-field-anisotropic": (FIELDS, ("grid",), {"anisotropic": True}),
    "textures": ("data.builtin.textures:Textures", ("kind", "grid", "augment"), {}),
    "digit-strings": ("text.digit_strings:DigitStrings", OF_SAMPLES, {}),
    "digits-binary": (DIGITS, OF_SAMPLES[:3], {}),
    "digits-grey": (DIGITS, OF_SAMPLES[:3], {"binary": False}),
}
ONLY_SOME = ("size", "validation", "augment", "resize", "crop", "data", "levels")  # not of every task
_registered: dict[str, Entry] = {}


def register_task(name: str, *, kind: str, defaults: Mapping[str, Any] = {}) -> Callable[[F], F]:
    """Register a task under a name for `mdlstm train --task`. A second registration replaces the first.

    The decorated function is called with the `TrainConfig` and returns a `mdlstm_tk.data.Task`.

    Args:
        name: of the task.
        kind: of the task, which decides about networks and loss.
        defaults: settings that suit the task, by key of `TrainConfig`.
    """

    def add(function: F) -> F:
        _registered[name] = Entry(function, kind, dict(defaults))
        return function

    return add


def task_names() -> list[str]:
    """The names of all registered tasks. Imports no task."""
    return [*dict.fromkeys([*BUILT_IN, *_registered])]


def _entry(name: str) -> Entry:
    if name in _registered:
        return _registered[name]
    if name not in BUILT_IN:
        if name in kind_names():
            raise InputError(f"'{name}' is a kind of data: give data, or one of {', '.join(task_names())}")
        raise InputError(not_registered("task", name, [*task_names(), *kind_names()]))
    place, settings, options = BUILT_IN[name]
    module, attribute = place.split(":")
    task = getattr(require(f"mdlstm_tk.{module}", "train"), attribute)

    def make(config: TrainConfig) -> Task:
        for key in ONLY_SOME:
            default = task.defaults.get(key, getattr(TrainConfig, key))
            is_own = key in settings or (key == "size" and "grid" in settings)
            if not is_own and getattr(config, key) != default:
                raise InputError(f"{name} has no {key} (--{key}); leave it out")
        arguments = [kind_named(task.kind) if key == "kind" else getattr(config, key) for key in settings]
        made: Task = task(*arguments, **options)
        return made

    return Entry(make, task.kind, task.defaults)


def task_defaults(name: str, data: str = "", model: str | None = None) -> dict[str, Any]:
    """The settings that suit a task, or data of a kind, and a network, which may lack some.

    Raises:
        InputError: there is no such task, kind, or network for it.
    """
    from mdlstm_tk.models.registry import model_options

    if data and name in kind_names():
        from mdlstm_tk.data.files import is_npz
        from mdlstm_tk.data.splits import sources

        kind, defaults = name, dict(kind_named(name).defaults)
        path = Path(data)
        if path.exists() and is_npz(sources(path, kind_named(name))["train"]):  # which need not be images
            defaults |= {"augment": 0.0, "resize": ""}
    else:
        _, kind, of_task = _entry(name)
        defaults = dict(of_task)
    if model:
        known = model_options(model, kind)
        for key in NETWORK_OPTIONS:
            if key not in known:
                defaults.pop(key, None)
    return defaults


def make_task(
    config: TrainConfig, learned: Collection[str] | None = None, spec: TaskSpec | None = None
) -> Task:
    """The task of a configuration.

    Args:
        config: what to train.
        learned: of a user's data, see `read_data`; None: what the weights of `init` have learned.
        spec: of a run that goes on.

    Raises:
        InputError: there is no such task, it does not exist in that size, or its data cannot be read.
        MissingExtraError: its data need a package that is not installed.
    """
    if config.task in kind_names() and config.data:
        from mdlstm_tk.data.user_data import read_data

        if config.size:
            raise InputError("size is for tasks that generate grids; leave it out, or use resize or crop")
        if learned is None and config.init:
            from mdlstm_tk.training.checkpoint import load_checkpoint
            from mdlstm_tk.training.run import open_run

            learned = load_checkpoint(open_run(config.init).checkpoint).state.learned
        return read_data(config, kind_named(config.task), learned or (), spec)
    return _entry(config.task).make(config)
