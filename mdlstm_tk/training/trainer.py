"""One training step and one validation of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mdlstm_tk.data import Batch
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.checkpoint import Checkpoint, save_checkpoint
from mdlstm_tk.training.evaluation import evaluate, mean_errors, measure, predictions
from mdlstm_tk.training.job import TrainingJob
from mdlstm_tk.training.losses import adam, learning_rate, total_loss
from mdlstm_tk.training.networks import columns_per_step

BOUNDED_CELLS = {"stable", "leaky", "slstm"}  # their states do not grow with the number of paths
UNREAD_STEPS = 20  # on a GPU, steps whose metrics stay there until they are read together


class StepMetrics(NamedTuple):
    """Loss and errors of a step, computed before the weights changed.

    Attributes:
        step: optimizer steps done after it.
        lr: its learning rate.
        loss: loss of the batch.
        errors: errors of the batch by name.
        interrupted: was any of the processes asked to stop?
    """

    step: int
    lr: float
    loss: float
    errors: dict[str, float]
    interrupted: bool


class Trainer:
    """Network, running average of the weights, and optimizer of a training run.

    Args:
        job: the run. Its network is moved to the device of the run and trained.

    Attributes:
        step: optimizer steps done.
        seconds: time that a run with `minutes` has trained for, validations included, up to the last step.
        score: lowest validation score so far, infinity before the first validation.
        best_step: step at which that score was reached; 0 before.
        best_weights: state dict of the network at that step; None before there was a score.
    """

    def __init__(self, job: TrainingJob) -> None:
        self.config, self.task, self.context = job.config, job.task, job.context
        self.network = job.network.to(job.context.device)
        self._parameters = list(self.network.parameters())
        self._columns = columns_per_step(self.network)
        self.average: AveragedModel | None = None
        if self.config.average:
            self.average = AveragedModel(self.network)
        self.optimizer = adam(self.network, self.config)
        self.step, self.score, self.best_step = 0, math.inf, 0
        self.seconds = 0.0
        self.best_weights: dict[str, Tensor] | None = None
        if job.checkpoint is not None:
            job.checkpoint.restore(self.network, self.average, self.optimizer)
            self.step, self.score = job.checkpoint.step, job.checkpoint.score
            self.best_step, self.seconds = job.checkpoint.best_step, job.checkpoint.seconds
            if job.best is not None and self.best_step:
                self.best_weights = job.best.weights()
        self.parallel: nn.Module = self.network
        if self.context.world_size > 1:
            self.parallel = DistributedDataParallel(self.network)
        self._unread: list[tuple[int, float, list[str], Tensor | list[float]]] = []
        self._diverged = torch.zeros((), device=self.context.device)

    def save(self, *paths: Path) -> None:
        """Write checkpoints if this is the main process."""
        if self.context.is_main:
            state = Checkpoint(
                self.config, self.task.spec, self.step, self.score, self.best_step, self.seconds, {}
            )
            for path in paths:
                save_checkpoint(path, state, self.network, self.average, self.optimizer)

    def train_step(self, batch: Batch, interrupted: bool) -> bool:
        """Do one optimizer step on this process's shard of a batch.

        Args:
            batch: the shard.
            interrupted: was this process asked to stop?

        Returns:
            True if the metrics of the steps so far should be read now, see `read_metrics`.

        Raises:
            MDLSTMError: on a CPU, the loss or the gradient is not finite; the weights stay as they were.
        """
        config = self.config
        # Dropout is seeded by the step, so a resumed run draws what an uninterrupted one draws.
        self._seed(((config.seed * 1_000_003 + self.step) * 1009 + self.context.rank) % 2**63)
        lr = learning_rate(config, self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not self.network.training:  # as a validation leaves it
            self.network.train()
        outputs = predictions(self.parallel, batch, self.context.device, config.precision)
        loss = total_loss(outputs, batch, self.task.spec, self._columns)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        if config.clip:
            norm = clip_grad_norm_(self._parameters, config.clip)
        else:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
        measured = measure(self.task, outputs[0], batch)
        sums = [value for pair in measured.values() for value in pair]
        values = self.context.sum_on_device([loss.detach(), norm, float(interrupted), *sums])
        if isinstance(values, list):
            self._require_finite(self.step + 1, values)
        else:  # from a step that diverges on, the optimizer leaves the weights as they are
            self._diverged += ~torch.isfinite(values[:2].sum())
            self.optimizer.found_inf = self._diverged.clamp(max=1)  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.average is not None:
            # Faster in the first steps, to forget the initial weights. Torch counts the updates, too, but
            # passes their number on the GPU, and reading it would wait for the step.
            decay = min(config.average, (1 + self.step) / (10 + self.step))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.average.update_parameters(self.network)
        self.step += 1
        self._unread.append((self.step, lr, list(measured), values))
        return isinstance(values, list) or len(self._unread) >= UNREAD_STEPS

    def read_metrics(self) -> Iterator[StepMetrics]:
        """Read the metrics of the steps since the last call, in order.

        Raises:
            MDLSTMError: on a GPU, the loss or the gradient of a step is not finite; the weights are those
                before that step.
        """
        unread, self._unread = self._unread, []
        for step, lr, names, values in unread:
            numbers = values if isinstance(values, list) else values.tolist()
            self._require_finite(step, numbers)
            loss, _, interruptions, *sums = numbers
            loss /= self.context.world_size
            yield StepMetrics(step, lr, loss, mean_errors(names, sums), interruptions > 0)

    def _require_finite(self, step: int, sums: Sequence[float]) -> None:
        loss, norm = (value / self.context.world_size for value in sums[:2])
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.step = step - 1
        config = self.config
        remedies = [f"a smaller lr (it was {config.lr:g})"]
        remedies += [] if config.clip else ["clip=1"]
        remedies += [] if config.warmup else ["warmup=100"]
        remedies += ["precision=fp32"] if config.precision != "fp32" else []
        cells = {module.cell for module in self.network.modules() if isinstance(module, MDLSTM)}
        remedies += ["cell=stable"] if cells - BOUNDED_CELLS else []
        raise MDLSTMError(
            f"training diverged in step {step}: the loss is {loss:g}, the gradient norm {norm:g}; try "
            f"{', '.join(remedies[:-1])}{' or ' if remedies[1:] else ''}{remedies[-1]}"
        )

    def _seed(self, seed: int) -> None:
        """Seed the generators that this process uses.

        `torch.manual_seed` also seeds all other kinds of device, which takes longer than the
        backward pass of a small layer.
        """
        torch.default_generator.manual_seed(seed)
        if self.context.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    @property
    def network_to_validate(self) -> nn.Module:
        """The network whose weights are validated: the average, if there is one."""
        return self.network if self.average is None else self.average.module

    def validate(self) -> dict[str, float]:
        """Measure the errors on the validation split, and update `score` and the best weights.

        Without a validation split, the latest weights count as the best.
        """
        self.context.share_buffers(self.network_to_validate)
        errors = evaluate(self.network_to_validate, self.task, "validation", self.config, self.context)
        score = self.task.score(errors) if errors else -math.inf
        if score <= self.score:
            self.score, self.best_step = score if errors else self.score, self.step
            self.keep_best()
        return errors

    def keep_best(self) -> None:
        """Take the present weights for the best ones."""
        state = self.network_to_validate.state_dict()
        self.best_weights = {name: tensor.clone() for name, tensor in state.items()}
