"""Create the network of a configuration."""

from __future__ import annotations

import torch
from torch import nn

from mdlstm_tk.data import Task, TaskSpec
from mdlstm_tk.models import Normalized, TextRecognizer, create, model_options
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.tasks import make_task


def build_network(config: TrainConfig, spec: TaskSpec) -> nn.Module:
    """Create the untrained network of a configuration; equal arguments give equal weights.

    Raises:
        InputError: there is no such network or option, or the network does not fit the kind of task.
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
    """Create the untrained network and the task of a configuration.

    Raises:
        InputError: see `make_task` and `build_network`.
        MissingExtraError: see `make_task`.
    """
    task = make_task(config)
    return build_network(config, task.spec), task


def count_parameters(network: nn.Module) -> int:
    """The number of trainable and other parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def texts_without_room(network: nn.Module, task: Task) -> list[str]:
    """Names of the samples whose text needs more steps than the network makes of the sample's image.

    CTC cannot spell such a text, so the sample contributes no gradient.
    """
    recognizer = network.network if isinstance(network, Normalized) else network
    if not isinstance(recognizer, TextRecognizer):
        return []
    columns_per_step = recognizer.stride[1]
    extents = getattr(task, "text_extents", ())
    return [e.name for e in extents if -(-e.width // columns_per_step) < e.ctc_steps]
