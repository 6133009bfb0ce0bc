"""Checkpoints: one safetensors file with weights, optimizer state, configuration and task. No pickle.

The data, the dropout masks and the learning rate of a step depend on the configuration and the step alone,
so a checkpoint does not store them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text import counted
from mdlstm_tk._version import __version__
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import open_output
from mdlstm_tk.kinds import training_of
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.networks import build_network, names_of_heads
from mdlstm_tk.training.run_state import RunState

SCHEMA = 4  # increase when the layout of the file changes incompatibly
LATER_STATE = ("validated", "validated_on")  # which the first checkpoints of this layout lack
METADATA_KEY = "mdlstm"  # safetensors metadata maps text to text; under this key lies a JSON object


@dataclass(frozen=True)
class Checkpoint:
    """A training run after a step.

    Attributes:
        config: configuration of the run.
        spec: description of its task.
        state: how far it has come.
        tensors: the weights as "model.*", their running average, if any, as "average.*" (the state dict of
            `AveragedModel`), and the optimizer's state as "optimizer.{i}.*" for parameter i, counted across
            groups.
    """

    config: TrainConfig
    spec: TaskSpec
    state: RunState
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights if there are any, else the latest, as a state dict of the network."""
        return _below("average.module.", self.tensors) or _below("model.", self.tensors)

    def network(self) -> nn.Module:
        """Create the network with `weights`, in eval mode on the CPU. No data are needed.

        Raises:
            InputError: the weights do not fit the network that the configuration describes.
        """
        network = build_network(self.config, self.spec)
        self._load(network, self.weights())
        return network.eval()

    def start(self, network: nn.Module, config: TrainConfig, spec: TaskSpec) -> tuple[str, ...]:
        """Copy `weights` into the network of another run, which may have other classes or characters.

        Outputs that mean the same in both runs, such as a class, keep their rows of the head;
        others keep the weights that they have. Numbers that standardise the data stay those of the new run.

        Args:
            network: of the new run.
            config: of the new run.
            spec: of its task.

        Returns:
            A line that says how many classes or characters both have; none if they are the same.

        Raises:
            InputError: the networks differ in more than that.
        """
        if (spec.kind, spec.channels) != (self.spec.kind, self.spec.channels):
            raise InputError(
                f"init names a run of kind {self.spec.kind} with {counted(self.spec.channels, 'channel')}, "
                f"got {spec.kind} with {spec.channels}"
            )
        old, new = (training_of(each.kind).output_meanings(each) for each in (self.spec, spec))
        pairs = [(k, old.index(output)) for k, output in enumerate(new) if output in old]
        rows, old_rows = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
        heads = names_of_heads(config, spec) if old != new else set()
        weights, state = _unwrapped(self.weights(), self.spec), _unwrapped(network.state_dict(), spec)
        if names := state.keys() ^ weights.keys():
            raise InputError(_difference(self.config, config, min(names)))
        theirs, ours = map(_cells, (build_network(self.config, self.spec), network))
        if theirs != ours:  # weights of several cells have the same shapes
            raise InputError(
                f"init (--init): {config.init} has layers with the cell {', '.join(theirs)}, got "
                f"{', '.join(ours)}; make them equal"
            )
        for name, tensor in state.items():
            source = weights[name]
            if name in heads and len(source) % len(old) == 0:
                tensor = tensor.unflatten(0, (-1, len(new))).transpose(0, 1)  # (outputs, …), a view
                source = source.unflatten(0, (-1, len(old))).transpose(0, 1)
                if source.shape[1:] == tensor.shape[1:]:
                    tensor[rows] = source[old_rows]
                    continue
            if source.shape != tensor.shape:
                raise InputError(_difference(self.config, config, name))
            tensor.copy_(source)
        if old == new:
            return ()
        others = ", the others are new" if len(rows) < len(new) else ""
        return (f"init: the weights of {len(rows)} of {counted(len(new), 'output')} are kept{others}",)

    def restore(
        self, network: nn.Module, average: AveragedModel | None, optimizer: optim.Optimizer
    ) -> None:
        """Copy the latest weights, their average and the optimizer's state into these objects.

        Raises:
            InputError: the tensors do not fit.
        """
        self._load(network, _below("model.", self.tensors))
        if average is not None:
            self._load(average, _below("average.", self.tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, tensor in _below("optimizer.", self.tensors).items():
            index, _, key = name.partition(".")
            # A copy: the optimizer updates its state in place, and this checkpoint must not change. It goes
            # through memory in the order of the parameter, which may be channels-last.
            like = parameters[int(index)] if tensor.dim() else tensor
            moments.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(tensor)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})

    def _load(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        try:
            module.load_state_dict(weights)
        except RuntimeError:
            raise InputError(
                f"the checkpoint's weights do not fit the network '{self.config.model}'; "
                "was its code changed?"
            ) from None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _unwrapped(weights: Mapping[str, Tensor], spec: TaskSpec) -> dict[str, Tensor]:
    """The tensors of a network inside the `Normalized` that wraps it if inputs are standardised."""
    return _below("network." if spec.mean else "", weights)


def _cells(network: nn.Module) -> list[str]:
    """The names of the cells of a network, each once."""
    return sorted({module.cell for module in network.modules() if isinstance(module, MDLSTM)})


def _difference(old: TrainConfig, new: TrainConfig, tensor: str) -> str:
    """Say why the weights of one run do not fit the network of another."""
    init = f"init (--init): {new.init}"
    for key in ("model", "hidden", "layers", "cell", "directions", "windows", "layer_norm"):
        if (old_value := getattr(old, key)) != (new_value := getattr(new, key)):
            return f"{init} has {key} {old_value}, got {new_value}; make them equal"
    return f"{init} holds another network: {tensor} has another shape or is in one of them only"


def save_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    network: nn.Module,
    average: AveragedModel | None,
    optimizer: optim.Optimizer,
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        checkpoint: its configuration, spec and state are written.
        network: its weights are saved.
        average: its averaged weights are saved, if any.
        optimizer: its state per parameter is saved; its settings follow from the configuration.

    Raises:
        MDLSTMError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    metadata = {"schema": SCHEMA, "version": __version__, "state": asdict(checkpoint.state)}
    metadata |= {"config": asdict(checkpoint.config), "spec": asdict(checkpoint.spec)}
    # Copies, as safetensors refuses tensors that share memory, such as one weight of two layers.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    data = safetensors.torch.save(copies, metadata={METADATA_KEY: json.dumps(metadata)})
    with open_output(path) as file:
        file.write(data)


@checked
def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: there is no such file, it is damaged, or it is not a checkpoint of this version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train one with: mdlstm train")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["schema"] != SCHEMA:
            raise InputError(
                f"{path} has checkpoint schema {metadata['schema']}, but this version reads only "
                f"{SCHEMA}; it was written by mdlstm-tk {metadata['version']}: use that one, or train again"
            )
        config = TrainConfig().updated(metadata["config"], str(path))
        spec = TaskSpec.from_json(metadata["spec"])
        start = asdict(RunState())
        values = {name: start[name] for name in LATER_STATE} | metadata["state"]
        state = RunState(**{name: type(default)(values[name]) for name, default in start.items()})
        return Checkpoint(config, spec, state, tensors)
    except InputError:
        raise
    except (
        safetensors.SafetensorError,
        OSError,
        LookupError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        raise InputError(
            f"{path} is damaged or not a checkpoint of mdlstm-tk; give another one, or train again"
        ) from None
