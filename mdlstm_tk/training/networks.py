"""The network of a configuration, and its windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.task import Dataset, Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.models.normalized import Normalized
from mdlstm_tk.models.registry import create, default_windows, model_options
from mdlstm_tk.training.config import TrainConfig, parse_windows
from mdlstm_tk.training.tasks import NETWORK_OPTIONS

MAX_POSITIONS = 4096  # that the first level of a network sweeps, unless the user chooses the windows


def build_network(config: TrainConfig, spec: TaskSpec) -> nn.Module:
    """The untrained network of a configuration; equal arguments give equal weights.

    Raises:
        InputError: there is no such network, cell or option, or the network does not fit the kind of task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _bare(config, spec)
    set_initial_prediction: Any = getattr(network, "set_initial_prediction", None)
    if spec.target_mean and not spec.target_std and set_initial_prediction:
        set_initial_prediction(spec.target_mean)
    if spec.mean or spec.target_std:
        mean, std = spec.mean or (0.0,) * spec.channels, spec.std or (1.0,) * spec.channels
        target_mean = spec.target_mean if spec.target_std else ()
        network = Normalized(network, mean, std, target_mean, spec.target_std)
    return network


def _bare(config: TrainConfig, spec: TaskSpec) -> nn.Module:
    """The network for standardised numbers. An option that it lacks is refused if it was asked for."""
    known, ndim = model_options(config.model, spec.kind), len(spec.size)
    options: dict[str, Any] = {"hidden": config.hidden}
    for name in NETWORK_OPTIONS:
        value = getattr(config, name)
        if value != "" and (name in known or value != getattr(TrainConfig, name)):
            options[name] = value
    if config.directions == "1":
        options["directions"] = 1
    if config.windows:
        options["windows"] = parse_windows(config.windows, ndim)
    if ndim != 2:
        if "ndim" not in known:
            raise InputError(
                f"{config.model} is for grids of two axes, the data have {ndim}; use --model md"
            )
        options["ndim"] = ndim
    if spec.target_std and "linear" in known:
        options["linear"] = True
    return create(config.model, spec.channels, spec.outputs, kind=spec.kind, **options)


def head_names(config: TrainConfig, spec: TaskSpec) -> set[str]:
    """The names of the tensors that have rows for each output."""
    with torch.device("meta"):
        one, other = (
            _bare(config, replace(spec, outputs=count)).state_dict()
            for count in (spec.outputs, spec.outputs + 1)
        )
    return {name for name in one if one[name].shape != other[name].shape}


def with_windows(config: TrainConfig, task: Task) -> TrainConfig:
    """The configuration with windows that leave at most `MAX_POSITIONS` of each of the user's samples."""
    is_md = config.model == "md" and "windows" in model_options("md", task.spec.kind)
    if config.windows or not config.data or not is_md or not isinstance(task, Dataset):
        return config
    ndim = len(task.spec.size)
    first, *later = (default_windows("md", task.spec.kind) if ndim == 2 else None) or ((1,) * ndim,)
    window = np.array(first)
    while (-(-task.extents // window)).prod(axis=1).max() > MAX_POSITIONS:
        window *= 2
    chosen = [tuple(window.tolist()), *later]
    return config if chosen[0] == first else replace(config, windows=",".join(map(format_size, chosen)))


def count_parameters(network: nn.Module) -> int:
    """The number of trainable and other parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
