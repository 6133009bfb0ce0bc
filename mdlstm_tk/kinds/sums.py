"""Sums over the valid positions of a batch, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.data.spec import UNLABELLED, Batch, TaskSpec


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


def number_sums(prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
    """(K, 5) sums for each output, over all samples and valid positions.

    They are the number of targets y; the sum of y and that of y², y less the mean of the training targets,
    so that no digits are lost; the squared errors; and the absolute ones.
    """
    y = targets_like(prediction, batch).double()
    error, y = prediction.double() - y, y - y.new_tensor(spec.target_mean or (0.0,))
    each = torch.stack([torch.ones_like(y), y, y.square(), error.square(), error.abs()], -1)
    if batch.sizes is not None and y.ndim > 2:
        each = each[valid_mask(y.shape[1:-1], torch.from_numpy(batch.sizes).to(y.device))]
    return each.flatten(0, -3).sum(0)


def confusion(prediction: Tensor, batch: Batch) -> Tensor:
    """(K, K) the number of samples or positions by true class (rows) and predicted class (columns). Scores
    with NaN count as another class than the true one."""
    y, classes = targets_like(prediction, batch), prediction.shape[-1]
    predicted = torch.where(prediction.isnan().any(-1), (y + 1) % classes, prediction.argmax(-1))
    labelled = y != UNLABELLED
    pairs = y[labelled] * classes + predicted[labelled]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def wrong_labels(prediction: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """The number of samples or positions that get another label than they have, and of all with a label."""
    y = targets_like(prediction, batch)
    wrong = ((prediction.argmax(-1) != y) | prediction.isnan().any(-1)) & (y != UNLABELLED)
    return wrong.sum(), float((batch.y != UNLABELLED).sum())
