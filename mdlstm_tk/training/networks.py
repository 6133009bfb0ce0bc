"""Create the network of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import one_line
from mdlstm_tk.data import Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import training_of
from mdlstm_tk.models import Normalized, create, model_options
from mdlstm_tk.models.blocks import Window, combine_windows
from mdlstm_tk.models.registry import default_windows, resolve
from mdlstm_tk.training.config import TrainConfig, parse_windows
from mdlstm_tk.training.tasks import make_task

MAX_POSITIONS = 4096  # that the first level of a network sweeps, unless the user chooses the windows


def build_network(config: TrainConfig, spec: TaskSpec) -> nn.Module:
    """Create the untrained network of a configuration; equal arguments give equal weights.

    Raises:
        InputError: there is no such network, cell or option, or the network does not fit the kind of task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _create(config, spec, spec.outputs)
    set_initial_prediction = getattr(network, "set_initial_prediction", None)
    if spec.target_mean and not spec.target_std and callable(set_initial_prediction):
        set_initial_prediction(spec.target_mean)
    if spec.mean or spec.target_std:
        mean, std = spec.mean or (0.0,) * spec.channels, spec.std or (1.0,) * spec.channels
        target_mean = spec.target_mean if spec.target_std else ()
        network = Normalized(network, mean, std, target_mean, spec.target_std)
    return network


def _create(config: TrainConfig, spec: TaskSpec, outputs: int) -> nn.Module:
    """Create the network of a configuration, for raw numbers, with some number of outputs."""
    ndim = len(spec.size)
    names = model_options(config.model, spec.kind)
    options = config.network_options(names, ndim)
    if ndim != 2:
        if "ndim" not in names:
            raise InputError(
                f"model '{config.model}' is for grids of two axes, and the data have {ndim}; "
                "choose the model md"
            )
        options["ndim"] = ndim
    if spec.target_std and "linear" in names:
        options["linear"] = True
    return create(config.model, spec.channels, outputs, kind=spec.kind, **options)


def names_of_heads(config: TrainConfig, spec: TaskSpec) -> set[str]:
    """Names, in the state dict of the network, of the tensors with rows for each output.

    Raises:
        InputError: the network cannot be built with other numbers of outputs, or it needs values for it.
    """
    try:
        with torch.device("meta"):
            networks = [_create(config, spec, outputs) for outputs in (spec.outputs, spec.outputs + 1)]
    except Exception as error:
        raise InputError(
            f"the network '{config.model}' does not tell which of its weights belong to which output: "
            f"{one_line(error)}; begin with a run of the same outputs"
        ) from error
    shapes, other_shapes = ({k: v.shape for k, v in network.state_dict().items()} for network in networks)
    return {name for name, shape in shapes.items() if shape != other_shapes[name]}


def build(config: TrainConfig) -> tuple[nn.Module, Task]:
    """Create the untrained network and the task of a configuration.

    Raises:
        InputError: see `make_task` and `build_network`.
        MissingExtraError: see `make_task`.
    """
    task = make_task(config)
    return build_network(fit_config(config, task), task.spec), task


def fit_config(config: TrainConfig, task: Task) -> TrainConfig:
    """Fill in what depends on the data: the size, and windows that suit large images.

    Windows are chosen if the configuration names none and the network is one that has windows. Those of its
    first level are doubled until `MAX_POSITIONS` remain, and in columns only as long as every target keeps
    its room. Tasks that bring their own data keep the windows of their settings.
    """
    config = replace(config, size=format_size(task.spec.size))
    if config.windows or not config.data or resolve(config.model) != "md":
        return config
    default = default_windows("md", task.spec.kind)
    if default is None:
        return config
    ndim = len(task.spec.size)
    if ndim != 2:
        window = 1
        while most_windows(task.extents, (window,) * ndim) > MAX_POSITIONS:
            window *= 2
        return replace(config, windows=format_size((window,) * ndim)) if window > 1 else config
    max_columns = training_of(task.spec.kind).widest_step(task)
    (rows, columns), *later_windows = default
    later_columns = combine_windows(default)[1] // columns
    while most_windows(task.extents, (rows, columns)) > MAX_POSITIONS:
        rows *= 2
        if 2 * columns * later_columns <= max_columns:
            columns *= 2
        elif rows >= 2 * task.spec.size[0]:
            break
    windows = [(rows, columns), *later_windows]
    if windows == list(default):
        return config
    return replace(config, windows=",".join(map(format_size, windows)))


def windows_of(config: TrainConfig, spec: TaskSpec) -> Sequence[Window]:
    """The windows of a configuration, or the default ones of the network."""
    ndim = len(spec.size)
    if config.windows:
        return parse_windows(config.windows, ndim)
    return (default_windows(config.model, spec.kind) if ndim == 2 else None) or ((1,) * ndim,)


def most_windows(extents: npt.NDArray[np.int64], window: Window) -> int:
    """The number of windows on the grid that has most, among grids of some extents (M, D)."""
    return int((-(-extents // np.array(window))).prod(axis=1).max())


def count_parameters(network: nn.Module) -> int:
    """The number of trainable and other parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def columns_per_step(network: nn.Module) -> int | None:
    """The columns of x under one step of the output; None for networks that do not say it."""
    network = network.network if isinstance(network, Normalized) else network
    return getattr(network, "columns_per_step", None)
