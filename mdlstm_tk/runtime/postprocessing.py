"""Labels, probabilities and masks from the outputs of networks, with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.metadata import Metadata

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


def class_axis(y: npt.NDArray[Any], metadata: Metadata) -> int:
    """The axis of y that holds the outputs, counted from the end: the last one, unless y has a grid and the
    model is channels-first."""
    has_grid = metadata.window is not None and y.ndim > metadata.ndim
    return -1 if metadata.channels_last or not has_grid else -metadata.ndim - 1


def check_scores(logits: npt.NDArray[Any], axis: int = -1) -> None:
    """Check that scores of classes say which class is the most likely one.

    Raises:
        InputError: at some position they hold NaN, infinity, or minus infinity for all classes.
    """
    if not np.isfinite(logits.max(axis=axis)).all():  # the maximum of scores with NaN is NaN
        raise InputError("the scores of the classes hold NaN or infinity; the model diverged")


def probabilities(logits: Floats, axis: int = -1) -> Floats:
    """Softmax over the axis of the classes; the shape stays the same."""
    logits = logits.astype(
        np.result_type(logits.dtype, np.float16), copy=False
    )  # a model may return integers
    exponentials = np.exp(logits - logits.max(axis=axis, keepdims=True))
    result: Floats = exponentials / exponentials.sum(axis=axis, keepdims=True)
    return result


def mask_values(classes: Integers, values: Sequence[int]) -> Integers:
    """Replace class indices by the values that the classes have in masks.

    Args:
        classes: indices of any shape.
        values: the value of each class.

    Returns:
        The same shape, in the smallest integer dtype that holds all values.
    """
    table = np.asarray(values)
    low, high = int(table.min()), int(table.max())
    # Beside a negative value, the largest one needs a signed dtype: one that holds -1 - high.
    dtype = np.result_type(*map(np.min_scalar_type, (low, -1 - high if low < 0 <= high else high)))
    result: Integers = table.astype(dtype)[classes]
    return result
