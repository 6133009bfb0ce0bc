"""One training step and one validation of a network."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mdlstm_tk.data import Batch
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.checkpoint import Checkpoint, save_checkpoint
from mdlstm_tk.training.evaluation import (
    evaluate,
    has_own_measures,
    mean_errors,
    measure,
    predictions,
    score,
)
from mdlstm_tk.training.job import TrainingJob
from mdlstm_tk.training.losses import adam, total_loss
from mdlstm_tk.training.networks import columns_per_step
from mdlstm_tk.training.progress import Progress
from mdlstm_tk.training.run_state import RunState

BOUNDED_CELLS = {"stable", "leaky", "slstm"}  # their states do not grow with the number of paths
UNREAD_STEPS = 20  # on a GPU, steps whose metrics stay there until they are read together


class Trainer:
    """Network, running average of the weights, and optimizer of a training run.

    Args:
        job: the run. Its network is moved to the device of the run and trained.

    Attributes:
        state: how far the run has come.
        is_whole: the weights, their average and the moments are all of `state.step`; they are not where an
            interrupt has torn a step apart.
        best_weights: state dict of the network at `state.best_step`; None before there was a score.
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
        self.state = RunState(validated_on=job.validated_on)
        self.is_whole = True
        self.best_weights: dict[str, Tensor] | None = None
        if job.checkpoint is not None:
            job.checkpoint.restore(self.network, self.average, self.optimizer)
            self.state = job.checkpoint.state
            if job.best is not None and self.state.best_step:
                self.best_weights = job.best.weights()
        self._buffers = list(self.network.buffers())  # such as running statistics, which a forward changes
        self._kept = [buffer.clone() for buffer in self._buffers]  # as they were before the step
        # A task's own measures may have names that depend on the samples of a process.
        self._names_vary = has_own_measures(self.task)
        self.parallel: nn.Module = self.network
        if self.context.world_size > 1:
            self.parallel = DistributedDataParallel(self.network)
        self._unread: list[tuple[RunState, list[str], Tensor | list[float]]] = []
        self._diverged = torch.zeros((), device=self.context.device)

    def save(self, *paths: Path) -> None:
        """Write checkpoints if this is the main process."""
        if self.context.is_main:
            spec = replace(self.task.spec, mixed_sizes=self.task.has_mixed_sizes)
            checkpoint = Checkpoint(self.config, spec, self.state, {})
            for path in paths:
                save_checkpoint(path, checkpoint, self.network, self.average, self.optimizer)

    def train_step(self, batch: Batch, interrupted: bool) -> bool:
        """Do one optimizer step on this process's shard of a batch.

        Args:
            batch: the shard.
            interrupted: was this process asked to stop?

        Returns:
            True if the metrics of the steps so far should be read now, see `read_metrics`.

        Raises:
            MDLSTMError: on a CPU, the loss or the gradient is not finite. Then, and after any other
                exception, weights, averages and buffers are as before the step, or `is_whole` is false.
        """
        before = self.state
        lr = before.rate(self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)
        try:
            names, values = self._backward(batch, interrupted)
            if isinstance(values, list):
                self._require_finite(before, values)
        except BaseException:
            for kept, buffer in zip(self._kept, self._buffers, strict=True):
                buffer.copy_(kept)
            raise
        if not isinstance(values, list):  # from a step that diverges on, everything stays as it was
            self._diverged += ~torch.isfinite(values[:2].sum())
            self.optimizer.found_inf = self._diverged.clamp(max=1)  # type: ignore[attr-defined]
            for kept, buffer in zip(self._kept, self._buffers, strict=True):
                buffer.copy_(torch.where(self._diverged > 0, kept, buffer))
        self.is_whole = False
        self.optimizer.step()
        if self.average is not None and not self._diverged:  # which waits for the step, as the update does
            # Faster in the first steps, to forget the initial weights.
            decay = min(self.config.average, (1 + before.step) / (10 + before.step))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.average.update_parameters(self.network)
        self._unread.append((before, names, values))
        self.state = replace(before, step=before.step + 1, lr=lr)
        self.is_whole = True
        return isinstance(values, list) or len(self._unread) >= UNREAD_STEPS

    def _backward(self, batch: Batch, interrupted: bool) -> tuple[list[str], Tensor | list[float]]:
        """Compute the gradients of a batch.

        Returns:
            The names of its errors; and summed over all processes its loss, the norm of its gradient, how
            many were interrupted, and a sum and a count for each error.
        """
        config = self.config
        # Dropout is seeded by the step, so a resumed run draws what an uninterrupted one draws.
        self._seed(((config.seed * 1_000_003 + self.state.step) * 1009 + self.context.rank) % 2**63)
        if not self.network.training:  # as a validation leaves it
            self.network.train()
        outputs = predictions(self.parallel, batch, self.context.device, config.precision, self.task.spec)
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
        names = self.context.all_names(measured) if self._names_vary else list(measured)
        sums = [value for name in names for value in measured.get(name, (0.0, 0.0))]
        return names, self.context.sum_on_device([loss.detach(), norm, float(interrupted), *sums])

    def read_metrics(self) -> Iterator[tuple[Progress, bool]]:
        """Read loss and errors of the steps since the last call, in order, and whether any process was then
        asked to stop.

        Raises:
            MDLSTMError: on a GPU, the loss or the gradient of a step is not finite; the weights are those
                before that step.
        """
        while self._unread:
            before, names, values = self._unread.pop(0)
            numbers = values if isinstance(values, list) else values.tolist()
            self._require_finite(before, numbers)
            loss, _, interruptions, *sums = numbers
            loss, errors = loss / self.context.world_size, mean_errors(names, sums)
            yield Progress(before.step + 1, loss, errors, before.rate(self.config)), interruptions > 0

    def _require_finite(self, before: RunState, sums: Sequence[float]) -> None:
        """Go back to the state before a step, and raise an error, if its loss or gradient is not finite."""
        loss, norm = (value / self.context.world_size for value in sums[:2])
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.state, self._unread, config = before, [], self.config
        remedies = [f"a smaller --lr (it was {config.lr:g})"]
        remedies += [] if config.clip else ["--clip 1"]
        remedies += [] if config.warmup else ["--warmup 100"]
        remedies += ["--precision fp32"] if config.precision != "fp32" else []
        cells = {module.cell for module in self.network.modules() if isinstance(module, MDLSTM)}
        remedies += ["--cell stable"] if cells - BOUNDED_CELLS else []
        raise MDLSTMError(
            f"training diverged in step {before.step + 1}: the loss is {loss:g}, the gradient norm "
            f"{norm:g}; try {', or '.join(remedies)}"
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
        """Measure the errors on the validation split, and update the state and the best weights.

        Without a validation split, the latest weights count as the best.
        """
        self.context.share_buffers(self.network_to_validate)
        errors, chosen_by = self._measure(self.network_to_validate)
        self.state = self.state.after_validation(chosen_by)
        if self.state.best_step == self.state.step:
            self.keep_best()
        return errors

    def measure_best_again(self, validated_on: str) -> None:
        """Measure the best weights on the present validation data, which have this digest.

        A score on other data cannot be compared with later ones.
        """
        chosen_by = None
        if self.best_weights is not None:
            best = copy.deepcopy(self.network_to_validate)
            best.load_state_dict(self.best_weights)
            chosen_by = self._measure(best)[1]
        self.state = self.state.measured_again(chosen_by, validated_on)

    def _measure(self, network: nn.Module) -> tuple[dict[str, float], float | None]:
        """The errors of a network on the validation split, and their score; {} and None without one."""
        errors = evaluate(network, self.task, "validation", self.config, self.context)
        chosen_by = score(self.task, self.config, errors) if errors else None
        if self.config.best_by and chosen_by is not None and math.isnan(chosen_by):
            text = f"{self.config.best_by} is not defined on the validation data, so it chooses no weights"
            warnings.warn(text, stacklevel=3)
        return errors, chosen_by

    def keep_best(self) -> None:
        """Take the present weights for the best ones."""
        state = self.network_to_validate.state_dict()
        self.best_weights = {name: tensor.clone() for name, tensor in state.items()}
