"""A network on its way: one step, and how well it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from mdlstm_tk.data import Batch, Split, Task, batches
from mdlstm_tk.data.spec import Floats
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.training.build import build_network
from mdlstm_tk.training.checkpoint import Checkpoint, save_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import Ranks
from mdlstm_tk.training.losses import adam, learning_rate, loss_of

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Progress:
    """Where training is.

    Attributes:
        step: optimiser steps done.
        loss: of the step's batch, before the step; see `loss_of`.
        errors: of the step's batch, by name; see `Task.measure`.
        lr: the learning rate of the step.
        validation: errors after the step, where there was an evaluation.
    """

    step: int
    loss: float = math.nan
    errors: dict[str, float] = field(default_factory=dict)
    lr: float = math.nan
    validation: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """A line of `metrics.jsonl`."""
        record: dict[str, Any] = {"step": self.step, "loss": self.loss, **self.errors, "lr": self.lr}
        return record | ({"validation": self.validation} if self.validation else {})


class Trainer:
    """Network, running average and optimiser, and what a step does to them.

    Args:
        config: what to train.
        task: what on.
        ranks: this process among those that train together.

    Attributes:
        step: optimiser steps done.
        score: the lowest so far.
        best_step: the step that had it.
    """

    def __init__(self, config: TrainConfig, task: Task, ranks: Ranks) -> None:
        self.config, self.task, self.ranks = config, task, ranks
        self.network = build_network(config, task.spec).to(ranks.device)
        self.average: AveragedModel | None = None
        if config.average:
            self.average = AveragedModel(self.network, multi_avg_fn=partial(_average, config.average))
        self.optimizer = adam(self.network, config)
        self.parallel: nn.Module = self.network
        if ranks.world > 1:
            self.parallel = DistributedDataParallel(self.network)
        self.step, self.score, self.best_step = 0, math.inf, 0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was."""
        checkpoint.restore(self.network, self.average, self.optimizer)
        self.step, self.score = checkpoint.step, checkpoint.score
        self.best_step = checkpoint.best_step

    def save(self, *paths: Path) -> None:
        """Write checkpoints, if this process leads."""
        if self.ranks.leads:
            state = Checkpoint(self.config, self.task.spec, self.step, self.score, self.best_step, {})
            for path in paths:
                save_checkpoint(path, state, self.network, self.average, self.optimizer)

    def learn(self, batch: Batch, stop: bool) -> tuple[Progress, bool]:
        """A step on this process's part of a batch. Says as well if any process was told to stop.

        Raises:
            MDLSTMError: loss or gradients are not finite. The weights stay what they were.
        """
        config = self.config
        # dropout too is a function of the step: a resumed run draws what it would have drawn
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 1009 + self.ranks.rank)
        lr = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.network.train()
        prediction = predict(self.parallel, batch, self.ranks.device, config.precision)
        loss = loss_of(prediction, batch, self.task.spec)
        self.optimizer.zero_grad()
        loss.backward()
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        if config.clip:
            norm = clip_grad_norm_(parameters, config.clip)
        else:
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        measured = self.task.measure(prediction.detach().cpu().numpy(), batch)
        flat = [value for pair in measured.values() for value in pair]
        mean, stops, *sums = self.ranks.total([float(loss.detach()) / self.ranks.world, float(stop), *flat])
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise MDLSTMError(self._diverged(mean, float(norm)))
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1
        return Progress(self.step, mean, _ratios(measured, sums), lr), stops > 0

    def judge(self) -> dict[str, float]:
        """The errors on the validation split, and with them whether these are the best weights so far.

        The score is the first of them. A network that is meant for grids of any size is scored by the
        worst of all sizes that the task has for that. The weights judged are the averaged ones, if any.
        """
        judged = self.network if self.average is None else self.average.module
        tasks = self.task.any_size_tasks() if getattr(judged, "any_size", False) else (self.task,)
        errors = [evaluate(judged, task, "validation", self.config, self.ranks) for task in tasks]
        if not errors[0]:  # nothing to choose by: the last are the best
            self.best_step = self.step
        elif (score := max(next(iter(each.values())) for each in errors)) <= self.score:
            self.score, self.best_step = score, self.step
        return errors[0]

    def _diverged(self, loss: float, norm: float) -> str:
        config = self.config
        tries = [f"a smaller --lr (it was {config.lr:g})"]
        tries += [] if config.clip else ["--set clip=1"]
        tries += [] if config.warmup else ["--set warmup=100"]
        tries += ["--set precision=fp32"] if config.precision != "fp32" else []
        tries += [] if config.cell in ("stable", "leaky") else ["--cell stable"]
        return (
            f"training diverged in step {self.step + 1}: the loss is {loss:g}, the gradient {norm:g}; "
            f"try {', '.join(tries[:-1])} or {tries[-1]}"
        )


@torch.no_grad()
def _average(decay: float, averages: Any, weights: Any, count: Tensor) -> None:
    """Move averages towards weights. The first steps count for more: the start should be forgotten soon."""
    past = float(count)
    torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + past) / (10 + past)))


def predict(network: nn.Module, batch: Batch, device: torch.device, precision: str = "fp32") -> Tensor:
    """What a network makes of a batch, in float32."""
    inputs = [torch.from_numpy(batch.x).to(device)]
    if batch.sizes is not None:
        inputs.append(torch.from_numpy(batch.sizes).to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        prediction: Tensor = network(*inputs)
    return prediction.float()


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    split: Split,
    config: TrainConfig,
    ranks: Ranks | None = None,
    look: Callable[[Batch, Floats], None] = lambda batch, prediction: None,
) -> dict[str, float]:
    """The errors of a network on all that a split is judged by; {} if there is nothing.

    `look` is shown each batch and what the network makes of it.
    """
    device = next(network.parameters()).device
    ranks = ranks or Ranks(0, 1, device)
    network.eval()
    measured: dict[str, tuple[float, float]] = {}
    share = slice(ranks.rank, None, ranks.world)
    if task.count(split) == 0:
        return {}
    for batch in batches(task, split, config.seed, EVALUATION_BATCH, share):
        prediction = predict(network, batch, device, config.precision).cpu().numpy()
        look(batch, prediction)
        for name, (total, count) in task.measure(prediction, batch).items():
            before = measured.get(name, (0.0, 0.0))
            measured[name] = (before[0] + total, before[1] + count)
    names = ranks.leader(list(measured))  # there may be too few batches for the others to have any
    measured = {name: measured.get(name, (0.0, 0.0)) for name in names}
    return _ratios(measured, ranks.total([value for pair in measured.values() for value in pair]))


def _ratios(measured: Mapping[str, tuple[float, float]], sums: Sequence[float]) -> dict[str, float]:
    """The errors by name, of sums and counts in turn."""
    return {
        name: total / count if count else math.nan
        for name, total, count in zip(measured, sums[::2], sums[1::2], strict=True)
    }
