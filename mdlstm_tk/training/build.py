"""From a config to its task and its network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mdlstm_tk.data import (
    KINDS,
    DiagonalTask,
    Digits,
    DigitStrings,
    GaussianField,
    Task,
    TaskSpec,
    Textures,
)
from mdlstm_tk.data.user_data import DEFAULTS, read_data
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import Normalized, TextRecognizer, create, model_options
from mdlstm_tk.training.config import TrainConfig

NETWORK = ("layers", "cell", "directions", "layer_norm", "windows", "dropout")  # options it may lack
BUILT_IN: dict[str, tuple[type[Task], Callable[[TrainConfig], Task]]] = {
    "diagonal": (DiagonalTask, lambda c: DiagonalTask(c.grid)),
    "digits": (Digits, lambda c: Digits(c.seed, c.validation, c.augment)),
    "digit-strings": (DigitStrings, lambda c: DigitStrings(c.seed, c.validation, c.augment)),
    "gaussian-field": (GaussianField, lambda c: GaussianField(c.grid)),
    "gaussian-field-anisotropic": (GaussianField, lambda c: GaussianField(c.grid, anisotropic=True)),
    "textures": (Textures, lambda c: Textures(c.grid, c.augment)),
}


def default_config(task: str, data: str = "", model: str | None = None) -> TrainConfig:
    """What a task is trained with if nothing else is said.

    Args:
        task: a built-in one, or the kind of the data.
        data: its path, or "".
        model: a network that may lack options for which the task has settings.

    Raises:
        InputError: there is no such task, kind of data, or network for it.
    """
    known = KINDS if data else tuple(BUILT_IN)
    if task not in known:
        raise InputError(
            f"--data takes --task {', '.join(KINDS)}, got '{task}'"
            if data
            else f"there is no task '{task}'; choose one of {', '.join(known)}"
            + ("; or give --data" if task in KINDS else "")
        )
    values = dict(DEFAULTS[task] if data else BUILT_IN[task][0].defaults)  # type: ignore[index]
    if data.endswith(".npz"):
        values["augment"] = 0.0  # arrays may be anything, not only images
    if model:
        lacking = set(NETWORK) - set(model_options(model, task if data else BUILT_IN[task][0].kind))
        values = {"model": model} | {key: v for key, v in values.items() if key not in lacking | {"model"}}
    return TrainConfig(task=task, data=data).updated(values, task)


def make_task(config: TrainConfig) -> Task:
    """The task of a config.

    Raises:
        InputError: there is no such task, it cannot have that size, or its data cannot be read.
        MissingExtraError: its data comes from a package that is not installed.
    """
    default_config(config.task, config.data)
    if config.data:
        return read_data(Path(config.data), config.task, config.validation, config.seed, config.augment)  # type: ignore[arg-type]
    return BUILT_IN[config.task][1](config)


def build_network(config: TrainConfig, spec: TaskSpec) -> nn.Module:
    """The untrained network of a config, the same each time.

    Raises:
        InputError: no such network or option, or it is not for this kind of task.
    """
    options = config.network_options()
    if spec.target_std and "linear" in model_options(config.model, spec.kind):
        options["linear"] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = create(config.model, spec.channels, spec.outputs, kind=spec.kind, **options)
    set_initial_prediction = getattr(network, "set_initial_prediction", None)
    if spec.base_rate is not None and callable(set_initial_prediction):
        set_initial_prediction(spec.base_rate)
    if spec.mean:
        network = Normalized(network, spec.mean, spec.std, spec.target_mean, spec.target_std)
    return network


def build(config: TrainConfig) -> tuple[nn.Module, Task]:
    """The untrained network of a config, and its task.

    Raises:
        InputError: as `make_task` and `build_network`.
    """
    task = make_task(config)
    return build_network(config, task.spec), task


def too_long(network: nn.Module, task: Task) -> list[str]:
    """Return the names of the samples whose text needs more steps than the network makes of the image."""
    inner = network.network if isinstance(network, Normalized) else network
    if not isinstance(inner, TextRecognizer):
        return []
    columns_per_step = inner.stride[1]
    extents = getattr(task, "text_extents", ())
    return [e.name for e in extents if -(-e.width // columns_per_step) < e.ctc_steps]
