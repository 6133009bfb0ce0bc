"""Checkpoints: one safetensors file with weights, optimizer state, configuration and task. No pickle.

The data, the dropout masks and the learning rate of a step depend on the configuration and the step alone,
so a checkpoint does not store them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mdlstm_tk._version import __version__
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.networks import build_network

SCHEMA = 1
KEY = "mdlstm"  # safetensors metadata maps text to text; this key holds a JSON object


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after a step.

    Attributes:
        config: configuration of the run.
        spec: description of its task.
        step: optimizer steps done.
        score: lowest validation score so far (see `Trainer.validate`), infinity before the first one.
        best_step: step at which that score was reached.
        tensors: the weights as "model.*", their running average, if any, as "average.*", and the state of
            Adam for parameter i as "optimizer.{i}.*".
    """

    config: TrainConfig
    spec: TaskSpec
    step: int
    score: float
    best_step: int
    tensors: dict[str, Tensor] = field(repr=False)

    def network(self) -> nn.Module:
        """Create the trained network, in eval mode. The data it was trained on is not needed.

        Raises:
            InputError: the weights do not fit the network that the configuration describes.
        """
        network = build_network(self.config, self.spec)
        self.load_model(network)
        return network.eval()

    def load_model(self, network: nn.Module) -> None:
        """Copy the averaged weights, or the weights if there is no average, into `network`.

        Raises:
            InputError: the weights do not fit `network`.
        """
        averaged = self._tensors_with("average.module.")
        self._load(network, averaged or self._tensors_with("model."))

    def restore(
        self, network: nn.Module, average: AveragedModel | None, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy weights, averages and optimizer state into these objects."""
        self._load(network, self._tensors_with("model."))
        if average is not None:
            self._load(average, self._tensors_with("average."))
        parameters = list(_parameters(optimizer))
        for name, tensor in self._tensors_with("optimizer.").items():
            index, key = name.split(".")
            parameter = parameters[int(index)]
            on_cpu = key == "step"
            optimizer.state[parameter][key] = tensor if on_cpu else tensor.to(parameter.device)

    def _tensors_with(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def _load(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        try:
            module.load_state_dict(weights)
        except RuntimeError:
            raise InputError(
                f"the checkpoint's weights do not fit the network '{self.config.model}'; "
                "was the run's config.toml or the network's code changed?"
            ) from None


def save_checkpoint(
    path: Path,
    state: Checkpoint,
    network: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        state: everything but the tensors.
        network: its weights are saved.
        average: its averaged weights are saved, if any.
        optimizer: its state is saved.

    Raises:
        MDLSTMError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value
    header = {
        "schema": SCHEMA,
        "version": __version__,
        "step": state.step,
        "score": state.score,
        "best_step": state.best_step,
        "config": asdict(state.config),
        "spec": asdict(state.spec),
    }
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={KEY: json.dumps(header)},
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: there is no such file, it is damaged, or it is not a checkpoint of mdlstm-tk.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train one with: mdlstm train")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {header['schema']}, this version reads {SCHEMA}")
        config = TrainConfig().updated(header["config"], str(path))
        spec = TaskSpec.from_json(header["spec"])
        step, score = int(header["step"]), float(header["score"])
        return Checkpoint(config, spec, step, score, int(header["best_step"]), tensors)
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is damaged or not a checkpoint of mdlstm-tk; give another one, or train again"
        ) from None


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
