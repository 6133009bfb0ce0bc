"""Tasks by name: the built-in ones and the user's data, each with the settings that suit it. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mdlstm_tk.data import (
    KINDS,
    DiagonalTask,
    Digits,
    DigitStrings,
    GaussianField,
    Kind,
    Task,
    Textures,
)
from mdlstm_tk.data.user_data import DEFAULTS, read_data
from mdlstm_tk.errors import InputError
from mdlstm_tk.training.config import TrainConfig, suggest

# settings that some networks do not have; they are left out of a task's defaults for such a network
OPTIONAL_NETWORK_SETTINGS = ("layers", "cell", "directions", "layer_norm", "windows", "dropout")
BUILT_IN: dict[str, tuple[type[Task], Callable[[TrainConfig], Task]]] = {
    "diagonal": (DiagonalTask, lambda c: DiagonalTask(c.grid)),
    "digits": (Digits, lambda c: Digits(c.seed, c.validation, c.augment)),
    "digit-strings": (DigitStrings, lambda c: DigitStrings(c.seed, c.validation, c.augment)),
    "gaussian-field": (GaussianField, lambda c: GaussianField(c.grid)),
    "gaussian-field-anisotropic": (GaussianField, lambda c: GaussianField(c.grid, anisotropic=True)),
    "textures": (Textures, lambda c: Textures(c.grid, c.augment)),
}


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
    if data:
        kind = cast("Kind", task)
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
    return TrainConfig(task=task, data=data).updated(values, task)


def _check_task(task: str, data: str) -> None:
    if data and task not in KINDS:
        raise InputError(f"--data takes --task {', '.join(KINDS)}, got '{task}'")
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
    if config.data:
        kind = cast("Kind", config.task)
        return read_data(Path(config.data), kind, config.validation, config.seed, config.augment)
    return BUILT_IN[config.task][1](config)
