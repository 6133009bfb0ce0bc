"""Checkpoints: one safetensors file with weights, optimiser and all that resuming needs. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.files import replacing
from mdlstm_tk.training.config import TrainConfig

SCHEMA = 1
KEY = "mdlstm"  # safetensors metadata maps text to text; all of ours is JSON under this key


@dataclass(frozen=True)
class Checkpoint:
    """A state of training.

    Attributes:
        config: of the run.
        step: optimiser steps done.
        score: the lowest score so far (see `loop`), infinity before the first.
        tensors: "model.*" the weights, "optimizer.{index}.*" Adam's state, "rng" torch's generator.
    """

    config: TrainConfig
    step: int
    score: float
    tensors: dict[str, Tensor]

    def load_model(self, network: nn.Module) -> None:
        """Copy the weights into `network`.

        Raises:
            InputError: they are those of another network.
        """
        weights = {k.removeprefix("model."): v for k, v in self.tensors.items() if k.startswith("model.")}
        try:
            network.load_state_dict(weights)
        except RuntimeError:
            raise InputError(
                f"the checkpoint's weights do not fit the network '{self.config.model}'; "
                "was the run's config.toml or the network's code changed?"
            ) from None

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the optimiser, and torch's generator, where they were."""
        parameters = list(_parameters(optimizer))
        for name, tensor in self.tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                parameter = parameters[int(index)]
                on_cpu = key == "step"
                optimizer.state[parameter][key] = tensor if on_cpu else tensor.to(parameter.device)
        torch.set_rng_state(self.tensors["rng"])


def save_checkpoint(
    path: Path,
    config: TrainConfig,
    step: int,
    score: float,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        MDLSTMError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value
    tensors["rng"] = torch.get_rng_state()
    about = {
        "schema": SCHEMA,
        "version": __version__,
        "step": step,
        "score": score,
        "config": asdict(config),
    }
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={KEY: json.dumps(about)},
    )
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: there is none, it is damaged, or it is of something else.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train one with: mdlstm train")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {about['schema']}, this version reads {SCHEMA}")
        config = TrainConfig().updated(about["config"], str(path))
        return Checkpoint(config, int(about["step"]), float(about["score"]), tensors)
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is damaged or no mdlstm-tk checkpoint; use another one, or train again"
        ) from None


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
