"""What is minimised: the loss of each kind of task, the optimiser, and its learning rate."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdlstm_tk.backends.tables import valid_mask
from mdlstm_tk.data import UNLABELLED, Batch, TaskSpec
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.config import TrainConfig


def loss_of(prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
    """The mean over samples of each one's loss, in float32.

    "grid": squared error, in units of the targets' variance where that is known, mean over the sample's
    cells. "classify": cross entropy; "segment": its mean over labelled cells. "transcribe": CTC (Graves et
    al. 2006), divided by the text's length.
    """
    prediction = prediction.float()
    y = torch.from_numpy(batch.y).to(prediction.device)
    if spec.kind == "classify":
        return F.cross_entropy(prediction, y)
    if spec.kind == "transcribe":
        return _ctc(prediction, y)
    if spec.kind == "segment":
        known = y != UNLABELLED
        losses = F.cross_entropy(prediction.movedim(-1, 1), y, ignore_index=UNLABELLED, reduction="none")
        return (losses.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)).mean()
    error = prediction - y
    if spec.target_std:
        error = error / error.new_tensor(spec.target_std)
    if batch.sizes is None:
        return error.square().mean()
    sizes = torch.from_numpy(batch.sizes).to(error.device)
    cells = error.square().mean(-1) * valid_mask(error.shape[1:-1], sizes)
    return (cells.flatten(1).sum(1) / sizes.prod(1)).mean()


def _ctc(logits: Tensor, y: Tensor) -> Tensor:
    """Past the end of a sample logits say blank for certain, so that all may count as equally long."""
    steps = logits.log_softmax(-1).transpose(0, 1)  # (T, N, 1 + characters)
    lengths = y.new_full((len(y),), len(steps))
    return F.ctc_loss(steps, y, lengths, (y > 0).sum(1), zero_infinity=True)


def adam(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam; weight decay on the recurrent weights of MDLSTM layers alone."""
    layers = (module for module in network.modules() if isinstance(module, MDLSTM))
    decayed = {p for layer in layers for name, p in layer.named_parameters() if "weight_hh" in name}
    recurrent = [p for p in network.parameters() if p in decayed]
    others = [p for p in network.parameters() if p not in decayed]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    if recurrent:
        groups.append({"params": recurrent, "weight_decay": config.weight_decay})
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of the step after `step` steps: a line up while warming up, then constant or half a cosine to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (1 + cos(pi * min(done, 1.0))) / 2
