"""Checkpoints: one safetensors file with weights, settings, the task and how far a run has come. No pickle.

`best.safetensors` holds the weights that are validated, evaluated and exported, `last.safetensors` all that
a run goes on with. The data, the dropout masks and the learning rate of a step follow from the
configuration and the step.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf, isnan
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mdlstm_tk._util.text import counted, duration
from mdlstm_tk._version import __version__
from mdlstm_tk.data.task import Split, Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import open_output
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.networks import build_network, head_names

SCHEMA = 5  # increase when the layout of the file changes incompatibly
DIGEST_DIGITS = 16  # of a sample's content, before those of its target
METADATA_KEY = "mdlstm"  # safetensors metadata maps text to text; under this key lies a JSON object


@dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        step: steps done.
        seconds: of training, over all processes that trained it one after another.
        score: the lowest measure of a validation, which chose the weights of `best_step`.
        best_step: the last step with that score; without validation data the last that was saved.
        stale: validations since the score last fell.
        data: digest of all samples.
        learned: digests of the samples that the weights have learned, in this run or the one before.
        validated: of those that chose the weights.
    """

    step: int = 0
    seconds: float = 0.0
    score: float = inf
    best_step: int = 0
    stale: int = 0
    data: str = ""
    learned: Collection[str] = ()
    validated: Collection[str] = ()

    def seen(self, task: Task, split: Split) -> list[int]:
        """The samples of a split that the weights have learned; of test data also those that chose them."""
        known = {*self.learned, *(self.validated if split == "test" else ())}
        return [k for k, digest in enumerate(contents(task, split)) if digest in known]

    def is_complete(self, config: TrainConfig) -> bool:
        """True if all steps are done, or with `minutes` the time is over."""
        return self.seconds >= 60 * config.minutes if config.minutes else self.step >= config.steps

    def is_done(self, config: TrainConfig) -> bool:
        """True if nothing is left to train, or patience is over."""
        return self.is_complete(config) or 0 < config.patience <= self.stale

    def describe(self, config: TrainConfig) -> str:
        """The progress in words, to follow "has"."""
        if not self.is_complete(config) and 0 < config.patience <= self.stale:
            stale = counted(self.stale, "validation")
            return f"stopped at step {self.step}, after {stale} in a row without improvement (patience)"
        steps = f"done {counted(self.step, 'step')}"
        return f"{steps} in {duration(self.seconds)}" if config.minutes else steps

    def after(self, measures: Mapping[str, float], config: TrainConfig, higher: Collection[str]) -> State:
        """The state after a validation; without validation data, the latest weights are the best.

        Args:
            measures: of the validation; the first, of which lower is better, or `config.best_by` counts.
            config: of the run.
            higher: the measures of which higher values are better.

        Raises:
            InputError: the task has no measure `config.best_by`.
        """
        if not measures:
            return replace(self, best_step=self.step)
        name = config.best_by or next(iter(measures))
        if name not in measures:
            raise InputError(f"best_by (--best-by) is {name}, but there are {', '.join(measures)}")
        score = -measures[name] if name in higher else measures[name]
        score = inf if isnan(score) else score
        if score < self.score:
            return replace(self, score=score, best_step=self.step, stale=0)
        best_step = self.step if score == self.score else self.best_step
        return replace(self, best_step=best_step, stale=self.stale + 1)


def contents(task: Task, split: Split) -> list[str]:
    """The digests of the samples of a split, without their targets."""
    return [each[:DIGEST_DIGITS] for each in task.digests.get(split, ())]


@dataclass(frozen=True)
class Checkpoint:
    """A run after a step.

    Attributes:
        config: of the run.
        spec: of its task.
        state: how far it has come.
        tensors: a state dict of the network; of a run that goes on, three, whose names begin with "model.",
            "average." and "optimizer.".
    """

    config: TrainConfig
    spec: TaskSpec
    state: State
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def weights(self) -> Mapping[str, Tensor]:
        """A state dict of the network: of a run that goes on, the average if there is one."""
        goes_on = any(name.startswith("optimizer.") for name in self.tensors)
        weights = _below("average.", self.tensors) or _below("model.", self.tensors)
        return weights if goes_on else self.tensors

    def network(self) -> nn.Module:
        """The network with `weights`, in eval mode on the CPU. No data are needed."""
        network = build_network(self.config, self.spec)
        network.load_state_dict(self.weights())
        return network.eval()

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module | None:
        """Copy what a run goes on with into these, and return the average of the weights, if it has one."""
        average = copy.deepcopy(network).requires_grad_(False) if self.config.average else None
        if not self.tensors:
            return average
        network.load_state_dict(_below("model.", self.tensors))
        if average is not None:
            average.load_state_dict(_below("average.", self.tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, tensor in _below("optimizer.", self.tensors).items():
            index, key = name.split(".")
            # in memory in the order of the parameter, which may be channels-last
            like = parameters[int(index)] if tensor.dim() else tensor
            moments.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(tensor)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return average


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def save(
    path: Path,
    checkpoint: Checkpoint,
    network: nn.Module,
    average: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write a checkpoint, whole or not at all. With an optimizer a run can go on from it."""
    tensors = dict(network.state_dict())
    if optimizer is not None:
        of_average = average.state_dict() if average is not None else {}
        tensors = {f"model.{name}": each for name, each in tensors.items()}
        tensors |= {f"average.{name}": each for name, each in of_average.items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": each for key, each in moments.items()}
    values = {"schema": SCHEMA, "version": __version__, "config": asdict(checkpoint.config)}
    values |= {"spec": asdict(checkpoint.spec), "state": asdict(checkpoint.state)}
    # Copies, as safetensors refuses tensors that share memory, such as one weight of two layers.
    copies = {
        name: each.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, each in tensors.items()
    }
    with open_output(path) as file:
        file.write(safetensors.torch.save(copies, {METADATA_KEY: json.dumps(values)}))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: there is no such file, or it is damaged or no checkpoint of this version.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            values = json.loads(file.metadata()[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if values["schema"] != SCHEMA:
            version = values["version"]
            raise InputError(f"{path} was written by mdlstm-tk {version}; use that one, or train again")
        spec, state = TaskSpec.from_json(values["spec"]), State(**values["state"])
        return Checkpoint(TrainConfig(**values["config"]), spec, state, tensors)
    except InputError:
        raise
    except Exception as error:  # of a file from elsewhere, all kinds of exceptions
        raise InputError(f"{path} is no checkpoint of mdlstm-tk: {error!s:.200}; train again") from None


def start_from(source: Checkpoint, network: nn.Module, config: TrainConfig, spec: TaskSpec) -> None:
    """Copy the weights of another run into a network, which may have other classes or characters.

    Outputs of one name keep their rows of the head; others keep the weights that they have. Numbers that
    standardise the data stay those of the new run.

    Raises:
        InputError: the networks differ in more than that.
    """
    theirs, ours = _unwrapped(source.network(), source.spec), _unwrapped(network, spec)
    old, new = ([*range(each.outputs - len(each.classes)), *each.classes] for each in (source.spec, spec))
    kept = [k for k, name in enumerate(new) if name in old]
    heads = head_names(config, spec) if old != new else set()
    differing = sorted(theirs.state_dict().keys() ^ ours.state_dict().keys())
    differing += ["cell"] * (_cells(theirs) != _cells(ours))
    for name, tensor in ours.state_dict().items() if not differing else ():
        weight = theirs.state_dict()[name]
        if name in heads and len(weight) % len(old) == 0:
            tensor, weight = (  # views (outputs, …)
                each.unflatten(0, (-1, len(names))).transpose(0, 1)
                for each, names in ((tensor, new), (weight, old))
            )
            if weight.shape[1:] == tensor.shape[1:]:
                rows = weight[[old.index(new[k]) for k in kept]]
                weight = tensor.index_copy(0, torch.tensor(kept, dtype=torch.long), rows)
        if weight.shape == tensor.shape:
            tensor.copy_(weight)
        else:
            differing.append(name)
    if differing:
        advice = "give its settings, such as --hidden, --layers, --cell and --windows"
        raise InputError(f"init (--init) has another network ({differing[0]} differs); {advice}")


def _cells(network: nn.Module) -> set[str]:
    """The cells of a network: weights of several cells have the same shapes."""
    return {module.cell for module in network.modules() if isinstance(module, MDLSTM)}


def _unwrapped(network: nn.Module, spec: TaskSpec) -> nn.Module:
    """The network inside the `Normalized` that wraps it if numbers are standardised."""
    return network.get_submodule("network") if spec.mean or spec.target_std else network
