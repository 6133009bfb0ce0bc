"""One training step and one validation of a network."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from mdlstm_tk.data import Batch, Task
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.training.checkpoint import Checkpoint, save_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.evaluation import evaluate, mean_errors, predict
from mdlstm_tk.training.losses import adam, learning_rate, loss_of
from mdlstm_tk.training.networks import build_network
from mdlstm_tk.training.progress import Progress


class Trainer:
    """Network, running average of the weights, and optimizer of a training run.

    Args:
        config: what to train.
        task: the task to train on.
        context: the place of this process among those that train together.

    Attributes:
        step: optimizer steps done.
        score: lowest validation score so far, infinity before the first validation.
        best_step: step at which that score was reached.
    """

    def __init__(self, config: TrainConfig, task: Task, context: DistributedContext) -> None:
        self.config, self.task, self.context = config, task, context
        self.network = build_network(config, task.spec).to(context.device)
        self._parameters = list(self.network.parameters())
        self.average: AveragedModel | None = None
        if config.average:
            self.average = AveragedModel(
                self.network, multi_avg_fn=partial(_update_average, config.average)
            )
        self.optimizer = adam(self.network, config)
        self.parallel: nn.Module = self.network
        if context.world_size > 1:
            self.parallel = DistributedDataParallel(self.network)
        self.step, self.score, self.best_step = 0, math.inf, 0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Return to the state that a checkpoint holds."""
        checkpoint.restore(self.network, self.average, self.optimizer)
        self.step, self.score = checkpoint.step, checkpoint.score
        self.best_step = checkpoint.best_step

    def save(self, *paths: Path) -> None:
        """Write checkpoints if this is the main process."""
        if self.context.is_main:
            state = Checkpoint(self.config, self.task.spec, self.step, self.score, self.best_step, {})
            for path in paths:
                save_checkpoint(path, state, self.network, self.average, self.optimizer)

    def train_step(self, batch: Batch, interrupted: bool) -> tuple[Progress, bool]:
        """Do one optimizer step on this process's shard of a batch.

        Args:
            batch: the shard.
            interrupted: was this process asked to stop?

        Returns:
            The progress, and whether any of the processes was asked to stop.

        Raises:
            MDLSTMError: the loss or the gradient is not finite; the weights stay as they were.
        """
        config = self.config
        # Dropout is seeded by the step, so a resumed run draws what an uninterrupted one draws.
        self._seed(((config.seed * 1_000_003 + self.step) * 1009 + self.context.rank) % 2**63)
        lr = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not self.network.training:  # as a validation leaves it
            self.network.train()
        prediction = predict(self.parallel, batch, self.context.device, config.precision)
        loss = loss_of(prediction, batch, self.task.spec)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        if config.clip:
            norm = clip_grad_norm_(self._parameters, config.clip)
        else:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
        measured = self.task.measure(prediction.detach().cpu().numpy(), batch)
        sums_and_counts = [value for pair in measured.values() for value in pair]
        mean_loss, interruptions, *sums = self.context.all_reduce_sum(
            [float(loss.detach()) / self.context.world_size, float(interrupted), *sums_and_counts]
        )
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            raise MDLSTMError(self._divergence_message(mean_loss, float(norm)))
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1
        return Progress(self.step, mean_loss, mean_errors(measured, sums), lr), interruptions > 0

    def _seed(self, seed: int) -> None:
        """Seed the generators that this process uses.

        `torch.manual_seed` also asks those of all other kinds of device, which takes longer than the
        backward pass of a small layer.
        """
        torch.default_generator.manual_seed(seed)
        if self.context.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def validate(self) -> dict[str, float]:
        """Measure the errors on the validation split, and update `score` and `best_step`.

        The averaged weights are validated if there are any. The score is the first of the errors. A
        network that accepts grids of any size is scored by the worst of the sizes that the task offers
        for that purpose. Without a validation split, the latest weights count as the best.
        """
        network = self.network if self.average is None else self.average.module
        tasks = self.task.any_size_tasks() if getattr(network, "any_size", False) else (self.task,)
        errors = [evaluate(network, task, "validation", self.config, self.context) for task in tasks]
        if not errors[0]:
            self.best_step = self.step
        elif (score := max(next(iter(by_name.values())) for by_name in errors)) <= self.score:
            self.score, self.best_step = score, self.step
        return errors[0]

    def _divergence_message(self, loss: float, norm: float) -> str:
        config = self.config
        remedies = [f"a smaller --lr (it was {config.lr:g})"]
        remedies += [] if config.clip else ["--set clip=1"]
        remedies += [] if config.warmup else ["--set warmup=100"]
        remedies += ["--set precision=fp32"] if config.precision != "fp32" else []
        remedies += [] if config.cell in ("stable", "leaky") else ["--cell stable"]
        *others, last = remedies
        return (
            f"training diverged in step {self.step + 1}: the loss is {loss:g}, the gradient norm {norm:g}; "
            f"try {' or '.join(filter(None, (', '.join(others), last)))}"
        )


@torch.no_grad()
def _update_average(decay: float, averages: Any, weights: Any, count: Tensor) -> None:
    """Move the averages towards the weights; faster in the first steps, to forget the initial weights."""
    updates = float(count)
    torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + updates) / (10 + updates)))
