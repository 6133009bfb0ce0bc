"""Tasks by name: the built-in ones and the user's data, each with the settings that suit it. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, cast

from mdlstm_tk._util.sizes import format_size, parse_resize, parse_size
from mdlstm_tk.data import (
    KINDS,
    DiagonalTask,
    Digits,
    DigitsDensity,
    DigitStrings,
    Fashion,
    GaussianField,
    Ising,
    Kind,
    Task,
    TaskSpec,
    Textures,
)
from mdlstm_tk.data.builtin.fashion import FOLDER
from mdlstm_tk.data.user_data import DEFAULTS, read_data
from mdlstm_tk.errors import InputError
from mdlstm_tk.training.config import TrainConfig, read_toml, suggest

MAX_POSITIONS = 2**24  # of a grid that a built-in task generates
# settings that some networks do not have; they are left out of a task's defaults for such a network
OPTIONAL_NETWORK_SETTINGS = ("layers", "cell", "directions", "layer_norm", "windows", "dropout")
BUILT_IN: dict[str, tuple[type[Task], Callable[[TrainConfig], Task]]] = {
    "diagonal": (DiagonalTask, lambda c: DiagonalTask(c.grid)),
    "digits": (Digits, lambda c: Digits(c.seed, c.validation, c.augment)),
    "digit-strings": (DigitStrings, lambda c: DigitStrings(c.seed, c.validation, c.augment)),
    "digits-binary": (DigitsDensity, lambda c: DigitsDensity(c.seed, c.validation)),
    "digits-grey": (DigitsDensity, lambda c: DigitsDensity(c.seed, c.validation, binary=False)),
    "fashion": (Fashion, lambda c: Fashion(c.seed, c.validation, Path(c.data) if c.data else FOLDER)),
    "gaussian-field": (GaussianField, lambda c: GaussianField(c.grid)),
    "gaussian-field-anisotropic": (GaussianField, lambda c: GaussianField(c.grid, anisotropic=True)),
    "ising": (Ising, lambda c: Ising(c.grid)),
    "textures": (Textures, lambda c: Textures(c.grid, c.augment)),
}
TAKE_DATA = (*KINDS, "fashion")  # what --data goes with; the files of fashion may lie anywhere


def default_config(task: str, data: str = "", model: str | None = None) -> TrainConfig:
    """The configuration that a task is trained with unless the user changes it.

    Args:
        task: name of a built-in task, or the kind of `data`.
        data: path of the user's data, or "".
        model: a network that may lack options which the task sets; those are left at their defaults.

    Raises:
        InputError: there is no such task, kind of data, or network for it.
    """
    _check_task(task, data)
    if task in KINDS:
        kind = task
        values: dict[str, Any] = dict(DEFAULTS[kind])
        if data.endswith(".npz"):
            values["augment"] = 0.0  # arrays need not be images
    else:
        kind = BUILT_IN[task][0].kind
        values = dict(BUILT_IN[task][0].defaults)
    if model:
        from mdlstm_tk.models import model_options  # imports torch

        missing = set(OPTIONAL_NETWORK_SETTINGS) - set(model_options(model, kind))
        values = {key: value for key, value in values.items() if key not in missing} | {"model": model}
    named = {"model": model} if model else {}
    return TrainConfig(task=task, data=data).updated(values, task, named)


def kind_of(task: str) -> str:
    """The kind of a built-in task; the kind of the user's data is its own."""
    return BUILT_IN[task][0].kind if task in BUILT_IN else task


def _check_task(task: str, data: str) -> None:
    if data and task not in TAKE_DATA:
        raise InputError(f"--data takes --task {', '.join(TAKE_DATA)}, got '{task}'")
    if not data and task not in BUILT_IN:
        hint = suggest(task, BUILT_IN)
        if task in KINDS:
            hint = f"choose one of {', '.join(BUILT_IN)}; or give --data, whose kind '{task}' is"
        raise InputError(f"there is no task '{task}'; {hint}")


def make_task(config: TrainConfig) -> Task:
    """Create the task of a configuration.

    Raises:
        InputError: there is no such task, it does not exist in that size, or its data cannot be read.
        MissingExtraError: its data needs a package that is not installed.
    """
    _check_task(config.task, config.data)
    if config.task in BUILT_IN:
        for key in ("resize", "crop"):
            if getattr(config, key):
                raise InputError(
                    f"--{key} goes with --data of one of the kinds {', '.join(KINDS)}, "
                    f"got the built-in task '{config.task}'"
                )
        if prod(config.grid) > MAX_POSITIONS:
            raise InputError(
                f"--size {config.size} has {prod(config.grid)} positions, but the task '{config.task}' "
                f"generates at most {MAX_POSITIONS}"
            )
        return BUILT_IN[config.task][1](config)
    task = read_data(
        Path(config.data),
        cast("Kind", config.task),
        config.validation,
        config.seed,
        config.augment,
        resize=parse_resize(config.resize) if config.resize else None,
        crop=parse_size(config.crop) if config.crop else None,
        cache_bytes=config.cache * 2**20,
        levels=config.levels,
    )
    if config.size and config.grid != task.spec.size:
        raise InputError(
            f"--size {config.size} is not the size of --data {config.data}, which is "
            f"{format_size(task.spec.size)}; leave it out, or use --resize {config.size}"
        )
    return task


def load_task(config: TrainConfig, spec: TaskSpec, data: str = "") -> Task:
    """Create the task of an existing run.

    A run may come from a stranger, so the user's data are read from where the caller says, not from where
    the run says.

    Args:
        config: configuration of the run.
        spec: the description of the task that the run was trained on.
        data: where the user's data are, if the run was trained on such.

    Raises:
        InputError: the run was trained on the user's data and `data` does not name them, or it does for a
            built-in task; the data cannot be read, or are those of another task.
        MissingExtraError: see `make_task`.
    """
    if config.data and not data:
        raise InputError(
            f"the run was trained on data at {config.data}, which are read only if you name them with "
            "--data PATH"
        )
    if data and not config.data:
        raise InputError(f"the run was trained on the built-in task {config.task}; leave out --data {data}")
    if data:
        config = replace(config, data=data, data_from_run="")
    if config.task in KINDS:
        config = replace(config, size="")  # the data have their own
    task = make_task(config)
    for name in ("kind", "channels", "outputs", "classes", "mask_values", "preprocessing"):
        found, expected = getattr(task.spec, name), getattr(spec, name)
        if found != expected:
            what = f"--data {data}" if data else f"the task {config.task}"
            hint = "give the original data with --data" if data else "the checkpoint was changed"
            raise InputError(
                f"{what} is not what the run was trained on: {name} is {found!s:.80}, "
                f"expected {expected!s:.80}; {hint}"
            )
    return task


def find_data(config: TrainConfig, folder: Path) -> TrainConfig:
    """Correct the path of a run's data: where it was, or at the same place seen from the run folder.

    Args:
        config: configuration of a checkpoint of the run; `data_from_run` is empty if the user has just said
            where the data are.
        folder: the run folder.

    Raises:
        InputError: the data are at neither place.
    """
    candidates = [config.data]
    if config.data_from_run:
        candidates.append(str((folder / config.data_from_run).resolve()))
        latest = folder / "config.toml"  # written later than the last checkpoint, perhaps with another path
        moved = read_toml(latest).get("data") if latest.exists() else None
        candidates += [moved] if isinstance(moved, str) else []
    for data in candidates:
        if not config.data or (data and Path(data).exists()):
            return replace(config, data=data)
    raise InputError(f"the data of {folder} are not at {config.data}; say where they are with --data PATH")


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
