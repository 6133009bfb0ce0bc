"""Checkpoints: one safetensors file with weights, optimizer state, configuration and task. No pickle.

The data, the dropout masks and the learning rate of a step depend on the configuration and the step alone,
so a checkpoint does not store them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import inf, isnan
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mdlstm_tk._util.regular_files import open_regular
from mdlstm_tk._version import __version__
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.training.config import NO_CODE, Code, TrainConfig
from mdlstm_tk.training.memory import available_memory
from mdlstm_tk.training.networks import build_network, weights_of
from mdlstm_tk.training.tasks import kind_of

SCHEMA = 1  # increase when the layout of the file changes incompatibly
METADATA_KEY = "mdlstm"  # safetensors metadata maps text to text; under this key lies a JSON object
MAX_HEADER_BYTES = 2**24  # of names, shapes and metadata; that of a network of 1000 layers takes 1 MB
MAX_STEPS = 2**53

# What reading a damaged or foreign file raises.
DAMAGED = (
    safetensors.SafetensorError,
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after a step.

    Attributes:
        config: configuration of the run.
        spec: description of its task.
        step: optimizer steps done.
        score: lowest validation error so far (see `mdlstm_tk.training.trainer.Trainer.validate`); infinity
            before the first validation.
        best_step: last step at which that score was reached; without a validation split the latest step.
        tensors: the weights as "model.*", their running average, if any, as "average.*" (the state dict of
            `AveragedModel`), and the optimizer's state as "optimizer.{i}.*" for parameter i, counted across
            groups.
    """

    config: TrainConfig
    spec: TaskSpec
    step: int
    score: float
    best_step: int
    tensors: dict[str, Tensor] = field(repr=False)

    def network(self) -> nn.Module:
        """Create the network with the averaged weights if there are any, else the latest, in eval mode on
        the CPU. The data it was trained on is not needed.

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
        """Copy the latest weights, their average and the optimizer's state into these objects.

        Raises:
            InputError: the weights do not fit.
        """
        self._load(network, self._tensors_with("model."))
        if average is not None:
            self._load(average, self._tensors_with("average."))
        parameters = list(_parameters(optimizer))
        for name, tensor in self._tensors_with("optimizer.").items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)] if _is_index(index, len(parameters)) else None
            if parameter is None or not _is_state(key, tensor, parameter):
                raise InputError(
                    f"the checkpoint's optimizer.{name:.80} is no state of an optimizer of the network "
                    f"'{self.config.model:.100}'; was the checkpoint changed?"
                )
            device = "cpu" if key == "step" else parameter.device  # where Adam keeps them
            # A copy: the optimizer updates its state in place, and this checkpoint must not change.
            optimizer.state[parameter][key] = tensor.to(device, copy=True)

    def _tensors_with(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def _load(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        try:
            module.load_state_dict(weights)
        except (RuntimeError, TypeError):
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
        optimizer: its state per parameter is saved; its settings follow from the configuration.

    Raises:
        MDLSTMError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value
    metadata = {
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
        metadata={METADATA_KEY: json.dumps(metadata)},
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(path: Path, code: Code = NO_CODE) -> Checkpoint:
    """Read a checkpoint, which may come from a stranger: nothing of it is run.

    Its fields are checked one by one and against each other, and its tensors against the network that it
    describes, before that network takes any memory.

    Args:
        path: the file.
        code: the Python files that the user names in this call, by setting ("model", "cell"), if the run
            has a network or a cell of the user's own: {"cell": "mine.py:coupled"}.

    Raises:
        InputError: there is no such file, it is damaged, it is not a checkpoint of mdlstm-tk, or it names a
            Python file that `code` does not name.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train one with: mdlstm train")
    _check_size(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: Any = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["schema"] != SCHEMA:
            raise InputError(
                f"{path} has checkpoint schema {metadata['schema']!r:.20}, but this version reads only "
                f"{SCHEMA}; it was written by mdlstm-tk {metadata['version']!r:.20}"
            )
        config, described = dict(metadata["config"]), dict(metadata["spec"])
        step, score, best_step = (metadata[name] for name in ("step", "score", "best_step"))
    except InputError:
        raise
    except DAMAGED:
        raise InputError(
            f"{path} is damaged or not a checkpoint of mdlstm-tk; give another one, or train again"
        ) from None
    read_config = TrainConfig().updated(config, str(path), code)
    try:
        spec = TaskSpec.from_json(described)
        checkpoint = Checkpoint(read_config, spec, step, score, best_step, tensors)
        _check_fields(checkpoint)
        _check_weights(checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return checkpoint


def _check_size(path: Path) -> None:
    """Refuse a file whose header or tensors would take too much memory; the file need not be that large."""
    with open_regular(path) as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise InputError(
                f"{path} is damaged or not a checkpoint of mdlstm-tk: its header has {header_bytes} bytes, "
                f"expected at most {MAX_HEADER_BYTES}"
            )
        available = available_memory()
        if available is not None and (size := path.stat().st_size) > available:
            raise InputError(f"{path} has {size} bytes, but only {available} bytes of memory are available")


def _check_fields(checkpoint: Checkpoint) -> None:
    """Check the fields beside configuration and task, and that all agree with each other.

    Raises:
        InputError: they do not.
    """
    step, best_step, score = checkpoint.step, checkpoint.best_step, checkpoint.score
    for name, value in (("step", step), ("best_step", best_step)):
        if type(value) is not int or not 0 <= value <= MAX_STEPS:
            raise InputError(f"{name} must be a whole number from 0 to {MAX_STEPS}, got {value!r:.80}")
    if best_step > step:
        raise InputError(f"best_step must be at most step, which is {step}, got {best_step}")
    if type(score) is not float or isnan(score) or score == -inf:
        raise InputError(f"score must be a number, or infinity before a validation, got {score!r:.80}")
    config, spec = checkpoint.config, checkpoint.spec
    if config.grid != spec.size:
        raise InputError(f"the size of its task is {spec.size!s:.80}, but its settings say {config.size}")
    if config.data and kind_of(config.task) != spec.kind:
        raise InputError(f"the kind of its task is {spec.kind}, but its settings say {config.task!r:.80}")


def _check_weights(checkpoint: Checkpoint) -> None:
    """Check that the weights are those of the network that the checkpoint describes.

    Raises:
        InputError: they are not, or there is no such network.
    """
    config = checkpoint.config
    expected = weights_of(config, checkpoint.spec)
    if expected is None:  # a network of the user's own that cannot be built without values
        return
    for prefix in ("model.", "average.module."):
        held = {name: (t.shape, t.dtype) for name, t in checkpoint._tensors_with(prefix).items()}
        if held != expected and (held or prefix == "model."):
            raise InputError(
                f"the weights do not fit the network '{config.model:.100}' that it describes; "
                "was the checkpoint or the network's code changed?"
            )
    if bool(config.average) != any(name.startswith("average.") for name in checkpoint.tensors):
        raise InputError(f"average is {config.average}, which does not agree with its tensors")


def _is_index(text: str, count: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < count


def _is_state(key: str, tensor: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a tensor is what Adam keeps for a parameter."""
    if key == "step":
        return tensor.shape == () and tensor.dtype == torch.float32 and 0 <= tensor.item() <= MAX_STEPS
    is_moment = key in ("exp_avg", "exp_avg_sq")
    return is_moment and tensor.shape == parameter.shape and tensor.dtype == parameter.dtype


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """The parameters in the order that numbers them in a checkpoint."""
    for group in optimizer.param_groups:
        yield from group["params"]
