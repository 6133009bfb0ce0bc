"""Measures of classes and of numbers, from sums that can be added up over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING

import numpy as np

from mdlstm_tk.data.task import UNLABELLED, Batch, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array

if TYPE_CHECKING:
    from torch import Tensor


def check_shape(prediction: Tensor, y: Tensor) -> None:
    """Refuse a prediction of another shape than its targets, which would broadcast in silence.

    Raises:
        InputError: the shapes differ.
    """
    if prediction.shape != y.shape:
        shapes = f"{tuple(prediction.shape)}, expected {tuple(y.shape)}"
        raise InputError(f"the network returns a prediction of shape {shapes}, as the targets have")


def class_counts(prediction: Tensor, y: Tensor) -> Tensor:
    """(3, K) for each class: how often it is right, true and predicted. Scores with NaN are wrong."""
    from torch import stack

    classes = prediction.shape[-1]
    known = y != UNLABELLED
    true, given = y[known], prediction.argmax(-1)[known]
    given = given.where(~prediction.isnan().any(-1)[known], (true + 1) % classes)
    return stack([each.bincount(minlength=classes) for each in (true[true == given], true, given)])


def of_classes(counts: Array) -> dict[str, Array]:
    """Measures of each class (K,); NaN where one would divide 0 by 0."""
    right, true, given = counts
    with np.errstate(invalid="ignore"):
        return {
            "count": true,
            "recall": right / true,
            "precision": right / given,
            "f1": 2 * right / (true + given),
            "iou": right / (true + given - right),
        }


def number_sums(prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
    """(K, 5) for each output: the number of targets y, the sums of y and y², y less the mean of training so
    that no digits are lost, of the squared errors and of the absolute ones."""
    from torch import ones_like, stack

    from mdlstm_tk._util.masking import valid_mask

    check_shape(prediction, batch.y)
    y = batch.y.double()
    error, y = prediction.double() - y, y - y.new_tensor(spec.target_mean or (0.0,))
    each = stack([ones_like(y), y, y.square(), error.square(), error.abs()], -1)
    if batch.sizes is not None and y.ndim > 2:
        each = each[valid_mask(y.shape[1:-1], batch.sizes)]
    return each.flatten(0, -3).sum(0)


def of_numbers(sums: Array) -> dict[str, Array]:
    """Measures of each output (K,); R² is NaN where all numbers are equal but for rounding."""
    count, total, squares, errors, distances = sums.T
    variation = squares - total**2 / count
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(variation > 1e-12 * squares, 1 - errors / variation, nan)
    return {"rmse": np.sqrt(errors / count), "mae": distances / count, "r2": r2}


def mean(values: Array) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else nan


def by_output(names: Sequence[str], measures: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Measures (K,) by name of the output and of the measure."""
    return {name: {m: float(v[k]) for m, v in measures.items()} for k, name in enumerate(names)}


def mean_of_positions(losses: Tensor, batch: Batch) -> Tensor:
    """The mean over the samples of the mean of each sample's losses (N, *grid, K) at valid positions."""
    from mdlstm_tk._util.masking import valid_mask

    if batch.sizes is None:
        return losses.mean()
    valid = losses.mean(-1) * valid_mask(losses.shape[1:-1], batch.sizes)
    means: Tensor = valid.flatten(1).sum(1) / batch.sizes.prod(1)
    return means.mean()
