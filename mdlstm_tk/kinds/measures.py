"""Measures of classes and of numbers, from sums over all samples."""

from __future__ import annotations

from math import isnan, nan
from typing import Any

import numpy as np

from mdlstm_tk.data.spec import Array, TaskSpec

CLASS_MEASURES = ("recall", "precision", "f1", "iou")


def class_measures(confusion: Array) -> dict[str, Array]:
    """Each of `CLASS_MEASURES` for each class (K,); NaN where one would divide 0 by 0.

    Args:
        confusion: (K, K) counts, true classes in rows, predicted ones in columns.
    """
    right, true, given = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    pairs = ((right, true), (right, given), (2 * right, true + given), (right, true + given - right))
    with np.errstate(invalid="ignore"):
        return {name: part / whole for name, (part, whole) in zip(CLASS_MEASURES, pairs, strict=True)}


def number_measures(sums: Array) -> dict[str, Array]:
    """RMSE, MAE and R² of each output (K,); NaN where all numbers are equal.

    Args:
        sums: as `mdlstm_tk.kinds.sums.number_sums` returns them, added up.
    """
    count, total, squares, errors, distances = sums.T
    variation = squares - total**2 / count
    with np.errstate(invalid="ignore", divide="ignore"):
        # what rounding leaves of equal numbers is no variation
        r2 = np.where(variation > 1e-12 * squares, 1 - errors / variation, nan)
    return {"rmse": np.sqrt(errors / count), "mae": distances / count, "r2": r2}


def mean_of_numbers(values: Array) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else nan


def by_output(spec: TaskSpec, **measures: Array) -> dict[str, dict[str, Any]]:
    """Measures (K,) by name of the output and of the measure; None for NaN, which JSON does not have."""
    return {
        name: {key: None if isnan(values[k]) else float(values[k]) for key, values in measures.items()}
        for k, name in enumerate(spec.classes)
    }
