"""Tasks by name: registered ones and the user's data, each with the settings that suit it. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mdlstm_tk._util.sizes import format_size, is_size, parse_resize, parse_size
from mdlstm_tk._util.text import one_line
from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.kinds import kind_names, training_of
from mdlstm_tk.training.config import OPTIONAL_NETWORK_SETTINGS, TrainConfig
from mdlstm_tk.training.run_task import match_run

if TYPE_CHECKING:  # modules of data import NumPy, which the help of the command line does without
    from mdlstm_tk.data import Task, TaskSpec
    from mdlstm_tk.data.spec import SampleId
    from mdlstm_tk.training.run_task import Samples

MAX_POSITIONS = 2**24  # of a grid that a task generates

F = TypeVar("F", bound=Callable[..., Any])


class TaskEntry(NamedTuple):
    """A registered task.

    Attributes:
        make: makes the task of a configuration.
        kind: kind of the task.
        defaults: the settings that suit it.
        takes_data: its files may be in the folder that `TrainConfig.data` names.
    """

    make: Callable[[TrainConfig], Task]
    kind: str
    defaults: Mapping[str, Any]
    takes_data: bool = False


class BuiltInTask(NamedTuple):
    """A task that comes with the package.

    Attributes:
        place: of its class, as module:class below `mdlstm_tk`.
        settings: attributes of a `TrainConfig` that the class is called with.
        options: further arguments.
    """

    place: str
    settings: tuple[str, ...]
    options: Mapping[str, Any] = {}


FIELDS, DENSITY = "data.builtin.gaussian_field:GaussianField", "density.digits:DigitsDensity"
BUILT_IN: dict[str, BuiltInTask] = {
    "diagonal": BuiltInTask("data.builtin.diagonal:DiagonalTask", ("grid",)),
    "digits": BuiltInTask("data.builtin.digits:Digits", ("seed", "validation", "augment")),
    "gaussian-field": BuiltInTask(FIELDS, ("grid",)),
    "gaussian-field-anisotropic": BuiltInTask(FIELDS, ("grid",), {"anisotropic": True}),
    "textures": BuiltInTask("data.builtin.textures:Textures", ("grid", "augment")),
    "digit-strings": BuiltInTask("text.digit_strings:DigitStrings", ("seed", "validation", "augment")),
    "digits-binary": BuiltInTask(DENSITY, ("seed", "validation")),
    "digits-grey": BuiltInTask(DENSITY, ("seed", "validation"), {"binary": False}),
    "fashion": BuiltInTask("density.fashion:Fashion", ("validation", "data")),
    "ising": BuiltInTask("density.ising:Ising", ("grid",)),
}
OF_DATA = ("validation", "augment")  # settings of the user's data that some built-in tasks have
OF_KINDS = {"levels": "density"}  # settings of data of one kind
_registered: dict[str, TaskEntry] = {}


def register_task(name: str, *, kind: str, defaults: Mapping[str, Any] | None = None) -> Callable[[F], F]:
    """Register a task under a name for `mdlstm train --task` and `TrainConfig.task`.

    The decorated function is called as `function(config)` with the `TrainConfig` and returns a
    `mdlstm_tk.data.Task`. A second registration replaces the first.

    Args:
        name: name of the task.
        kind: kind of the task, which decides about networks and loss.
        defaults: settings that suit the task, by key of `TrainConfig`.

    Raises:
        InputError: `name` is a kind of task, or `kind` is none.
    """
    if name in kind_names() or kind not in kind_names():
        raise InputError(
            f"register_task takes another name than {', '.join(kind_names())}, and one of these as kind, "
            f"got name '{name}' and kind '{kind}'"
        )

    def add(function: F) -> F:
        _registered[name] = TaskEntry(function, kind, dict(defaults or {}))
        return function

    return add


def task_names() -> list[str]:
    """The names of all registered tasks. Imports no task."""
    return [*BUILT_IN, *(name for name in _registered if name not in BUILT_IN)]


def find_task(name: str) -> TaskEntry:
    """The registered task of this name.

    Raises:
        InputError: there is none.
    """
    if name in _registered:
        return _registered[name]
    if name not in BUILT_IN:
        if name in kind_names():
            raise InputError(f"'{name}' is a kind of data: give data, or one of {', '.join(task_names())}")
        raise InputError(not_registered("task", name, [*task_names(), *kind_names()]))
    place, settings, options = BUILT_IN[name]
    module, name = place.split(":")
    task = getattr(require(f"mdlstm_tk.{module}", "train"), name)

    def make(config: TrainConfig) -> Task:
        made: Task = task(*(getattr(config, key) for key in settings), **options)
        return made

    return TaskEntry(make, task.kind, task.defaults, task.takes_data)


def task_defaults(name: str) -> tuple[str, dict[str, Any]]:
    """The kind of a registered task, or of the user's own data, and the settings that suit it.

    Raises:
        InputError: there is no such task or kind, or both.
    """
    if name in kind_names():
        if name in task_names():
            raise InputError(f"'{name}' is a task and a kind of task; register yours by another name")
        return name, dict(training_of(name).defaults)
    entry = find_task(name)
    return entry.kind, dict(entry.defaults)


def default_config(task: str, data: str = "", model: str | None = None) -> TrainConfig:
    """The configuration that a task is trained with unless the user changes it.

    Args:
        task: name of a registered task, or the kind of `data`.
        data: path of the user's data, or "".
        model: a network that may lack options which the task sets; those are left at their defaults.

    Raises:
        InputError: there is no such task, kind of data, or network for it.
    """
    if not data:
        find_task(task)  # refuses a kind
    kind, values = task_defaults(task)
    if data and task in kind_names():
        from mdlstm_tk.data.splits import holds_arrays  # see above

        if holds_arrays(Path(data)):  # which need not be images
            values |= {"augment": 0.0, "resize": ""}
    config = TrainConfig(task=task, data=data).updated(values, task)
    return with_model(config, model, kind) if model else config


def check_settings(task: str, values: Mapping[str, Any]) -> None:
    """Check that a task has the settings that were chosen for it, so that none does nothing.

    Raises:
        InputError: a built-in task, or a kind of data, does not have one.
    """
    if task in _registered:
        return
    own = BUILT_IN[task].settings if task in BUILT_IN else OF_DATA
    of_others = [key for key, kind in OF_KINDS.items() if kind != task]
    for key in (key for key in (*OF_DATA, *of_others) if key in values and key not in own):
        raise InputError(f"{task} has no {key}, got {values[key]!r}; leave it out")


def with_model(config: TrainConfig, model: str, kind: str) -> TrainConfig:
    """Replace the network of a configuration. Settings that the new one does not have get their defaults.

    Raises:
        InputError: there is no such network for this kind of task.
    """
    from mdlstm_tk.models import model_options  # imports torch

    missing = set(OPTIONAL_NETWORK_SETTINGS) - set(model_options(model, kind))
    return replace(config, model=model, **{key: getattr(TrainConfig(), key) for key in missing})


def make_task(
    config: TrainConfig, known: Samples | None = None, learned: Sequence[SampleId] | None = None
) -> Task:
    """Create the task of a configuration.

    Args:
        config: what to train.
        known, learned: the samples of a run on the user's data, see `read_data`.

    Raises:
        InputError: there is no such task, it does not exist in that size, or its data cannot be read.
        MissingExtraError: its data needs a package that is not installed.
    """
    if not config.data or config.task not in kind_names():
        entry = find_task(config.task)
        if config.data and not entry.takes_data:
            raise InputError(
                f"data goes with a kind, one of {', '.join(kind_names())}, got the task '{config.task}', "
                "which brings its own"
            )
        for key in ("resize", "crop"):
            if getattr(config, key):
                raise InputError(
                    f"{key} goes with data of one of the kinds {', '.join(kind_names())}, got the task "
                    f"'{config.task}', which brings its own"
                )
        if config.size:
            # One extent alone may mean any number of axes in a task of the user's own.
            positions = prod(config.grid if config.task in BUILT_IN else parse_size(config.size))
            if positions > MAX_POSITIONS:
                most = f"positions, but tasks generate at most {MAX_POSITIONS}"
                raise InputError(f"size {config.size} has {positions} {most}")
        task = entry.make(config)
        if (made := getattr(getattr(task, "spec", None), "kind", None)) != entry.kind:
            what = f"one of kind {made}" if made else one_line(task)
            raise InputError(
                f"the function of the task '{config.task}' returned {what}, expected a task of kind "
                f"{entry.kind}"
            )
        if config.task in BUILT_IN and config.size and not is_size(config.size, task.spec.size):
            raise InputError(
                f"the task {config.task} brings data of size {format_size(task.spec.size)}, got size "
                f"{config.size}; leave it out"
            )
        return task
    from mdlstm_tk.data.user_data import read_data

    task = read_data(
        Path(config.data),
        config.task,
        config.validation,
        config.seed,
        config.augment,
        resize=parse_resize(config.resize) if config.resize else None,
        crop=parse_size(config.crop) if config.crop else None,
        cache_bytes=config.cache * 2**20,
        settings=vars(config),
        known=known,
        learned=learned,
    )
    if config.size and not is_size(config.size, task.spec.size):
        other = f", or use --resize {config.size}" if task.spec.preprocessing else ""
        raise InputError(
            f"size {config.size} is not the size of the data {config.data}, which is "
            f"{format_size(task.spec.size)}; leave it out{other}"
        )
    return task


def load_task(
    config: TrainConfig,
    spec: TaskSpec,
    data: str = "",
    known: Samples | None = None,
    learned: Sequence[SampleId] | None = None,
) -> Task:
    """Create the task of an existing run.

    The user's data are read only where the caller names them, as pages that show samples publish them.

    Args:
        config: configuration of the run.
        spec: the description of the task that the run was trained on.
        data: where the user's data are, if the run was trained on such.
        known, learned: as for `make_task`.

    Raises:
        InputError: the run was trained on the user's data and `data` does not name them, or it does for
            another task; the data cannot be read, or are those of another task.
        MissingExtraError: see `make_task`.
    """
    if config.data and not data:
        raise InputError(
            f"the run was trained on data at {config.data}, which are read only if you name them with "
            "data (--data PATH)"
        )
    if data and not config.data:
        raise InputError(f"the run was trained on the task {config.task}; leave out the data {data}")
    if data:
        config = replace(config, data=data, data_from_run="")
    if config.data:
        config = replace(config, size="")  # the data have their own
    task = make_task(config, known, learned)
    if not config.data and task.spec.name != spec.name:
        raise InputError(
            f"the run was trained on '{spec.name}', but the task {config.task} is '{task.spec.name}'; if "
            "new_job was given the task, give it to resume_job, too, or register the task"
        )
    match_run(task, config, spec)
    return task


def find_data(config: TrainConfig, folder: Path) -> TrainConfig:
    """Correct the path of a run's data: as it was, or as it was relative to the run folder.

    Args:
        config: configuration of a checkpoint of the run; `data_from_run` is empty if the user has just said
            where the data are.
        folder: the run folder.

    Raises:
        InputError: the data are at neither path.
    """
    if not config.data or os.path.exists(config.data):  # no error if the folder above may not be read
        return config
    if config.data_from_run and os.path.exists(data := (folder / config.data_from_run).resolve()):
        return replace(config, data=str(data))
    raise InputError(
        f"the data of {folder} are not at {config.data}; say where they are with data (--data PATH)"
    )


def remember_data(config: TrainConfig, folder: Path) -> TrainConfig:
    """Write the path of the data so that it is found from another folder, or after a move with the run."""
    if not config.data:
        return config
    data = Path(config.data).resolve()
    try:
        from_run = Path(os.path.relpath(data, folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        from_run = ""
    return replace(config, data=str(data), data_from_run=from_run)
