"""Sums over the valid positions of a batch, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.data.spec import UNLABELLED, Batch


def targets_like(prediction: Tensor, batch: Batch) -> Tensor:
    """The targets of a batch, on the device of a prediction."""
    return torch.from_numpy(batch.y).to(prediction.device, non_blocking=True)


def sum_of_positions(values: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """The sum of values (N, *grid, K) at valid positions, and their number."""
    if batch.sizes is None:
        return values.sum(), float(values.numel())
    valid = valid_mask(values.shape[1:-1], torch.from_numpy(batch.sizes).to(values.device))
    return (values * valid[..., None]).sum(), float(batch.sizes.prod(1).sum() * values.shape[-1])


def mean_of_positions(losses: Tensor, batch: Batch) -> Tensor:
    """The mean over the samples of the mean of each sample's losses (N, *grid, K)."""
    if batch.sizes is None:
        return losses.mean()
    sizes = torch.from_numpy(batch.sizes).to(losses.device)
    valid = losses.mean(-1) * valid_mask(losses.shape[1:-1], sizes)  # (N, *grid)
    return (valid.flatten(1).sum(1) / sizes.prod(1)).mean()


def wrong_labels(prediction: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """The number of samples or positions that get another label than they have, and of all with a label."""
    y = targets_like(prediction, batch)
    wrong = (prediction.argmax(-1) != y) & (y != UNLABELLED)
    return wrong.sum(), float((batch.y != UNLABELLED).sum())
