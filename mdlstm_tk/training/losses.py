"""The loss of several predictions, and the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk.data import Batch, TaskSpec
from mdlstm_tk.kinds import training_of
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.config import TrainConfig

AUXILIARY_WEIGHT = 0.3  # in the loss, relative to the prediction itself


def total_loss(
    predictions: Sequence[Tensor], batch: Batch, spec: TaskSpec, columns: int | None = None
) -> Tensor:
    """The loss of the prediction, plus `AUXILIARY_WEIGHT` times that of each auxiliary one."""
    kind = training_of(spec.kind)
    losses = [kind.loss(prediction.float(), batch, spec, columns) for prediction in predictions]
    loss, *auxiliary = losses
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
