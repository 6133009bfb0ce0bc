"""The loss of each kind of task, and the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.data import UNLABELLED, Batch, TaskSpec
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.text_errors import line_steps

AUXILIARY_WEIGHT = 0.3  # in the loss, relative to the prediction itself


def loss_of(prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None = None) -> Tensor:
    """The mean over the samples of the loss of each sample, as a float32 scalar.

    By kind of task, the loss of a sample is

        "grid"        the squared error averaged over valid positions; divided by the variance of the
                      targets where the spec has it
        "classify"    cross entropy
        "segment"     cross entropy averaged over labelled positions
        "transcribe"  CTC (Graves et al. 2006), divided by the length of the text; samples without room for
                      their text are left out
        "density"     negative log-probability in nats, averaged over the values at valid positions

    Args:
        prediction: (N, *grid, outputs), (N, classes), (N, T, 1 + characters) or (N, *grid, C), as the kind
            demands.
        batch: holds the targets.
        spec: of the task.
        columns: of kind "transcribe", the columns of x under one step; None if the network does not say it.
    """
    prediction = prediction.float()
    y = torch.from_numpy(batch.y).to(prediction.device)
    if spec.kind == "classify":
        return F.cross_entropy(prediction, y)
    if spec.kind == "transcribe":
        lengths = torch.from_numpy(line_steps(batch, prediction.shape[1], columns))
        return _ctc_loss(prediction, y, lengths.to(y.device))
    if spec.kind == "segment":
        labelled = y != UNLABELLED
        losses = F.cross_entropy(prediction.movedim(-1, 1), y, ignore_index=UNLABELLED, reduction="none")
        return (losses.flatten(1).sum(1) / labelled.flatten(1).sum(1).clamp(min=1)).mean()
    if spec.kind == "density":
        return _mean_of_positions(-prediction, batch)
    error = prediction - y
    if spec.target_std:
        error = error / error.new_tensor(spec.target_std)
    return _mean_of_positions(error.square(), batch)


def _mean_of_positions(losses: Tensor, batch: Batch) -> Tensor:
    """The mean over the samples of the mean of each sample's losses (N, *grid, outputs)."""
    if batch.sizes is None:
        return losses.mean()
    sizes = torch.from_numpy(batch.sizes).to(losses.device)
    valid = losses.mean(-1) * valid_mask(losses.shape[1:-1], sizes)  # (N, *grid)
    return (valid.flatten(1).sum(1) / sizes.prod(1)).mean()


def _ctc_loss(logits: Tensor, y: Tensor, lengths: Tensor) -> Tensor:
    """CTC loss of logits (N, T, 1 + characters), of which `lengths` (N,) steps count, and texts (N, L) that
    end with zeros."""
    log_probabilities = logits.log_softmax(-1).transpose(0, 1)  # (T, N, 1 + characters)
    characters = (y > 0).sum(1)
    repeats = ((y[:, 1:] == y[:, :-1]) & (y[:, 1:] > 0)).sum(1)
    has_room = characters + repeats <= lengths
    losses = F.ctc_loss(log_probabilities, y, lengths, characters, reduction="none", zero_infinity=True)
    return (losses * has_room / characters.clamp(min=1)).sum() / has_room.sum().clamp(min=1)


def total_loss(
    predictions: Sequence[Tensor], batch: Batch, spec: TaskSpec, columns: int | None = None
) -> Tensor:
    """The loss of the prediction, plus `AUXILIARY_WEIGHT` times that of each auxiliary one."""
    loss, *auxiliary = [loss_of(prediction, batch, spec, columns) for prediction in predictions]
    for other in auxiliary:
        loss = loss + AUXILIARY_WEIGHT * other
    return loss


def adam(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on the recurrent weights of MDLSTM layers only."""
    layers = (module for module in network.modules() if isinstance(module, MDLSTM))
    decayed = {p for layer in layers for name, p in layer.named_parameters() if "weight_hh" in name}
    parameters = sorted(network.parameters(), key=lambda p: p in decayed)  # the order that checkpoints have
    number = len(parameters) - len(decayed)
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": 0.0}]
    if config.weight_decay and decayed:  # a step with two groups takes longer
        groups = [
            {"params": parameters[:number], "weight_decay": 0.0},
            {"params": parameters[number:], "weight_decay": config.weight_decay},
        ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
