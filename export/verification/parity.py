"""Parity: the error of an output against its network in float64, and the first wavefront that is wrong.

An error is within tolerance if it is at most atol·s + rtol·|y|. The scale s of a feature of y is its
largest absolute value on all inputs of a verification, or 1 if that is smaller. A regression whose outputs
are in the thousands is thus held to the same share of its outputs as a network with outputs in (0, 1).

A sweep carries an error along to all later wavefronts, so the first wrong one is where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import MDLSTMError

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

ATOL = 1e-5
RTOL = 1e-5


@dataclass(frozen=True)
class Parity:
    """The error of one runtime against the float64 reference on one input.

    Attributes:
        max_abs: largest absolute error.
        max_ratio: largest ratio of an error to its tolerance; NaN if the output is not finite.
        scale: the largest scale of a feature, at least 1.
    """

    max_abs: float
    max_ratio: float
    scale: float = 1.0

    @property
    def passed(self) -> bool:
        """True if every element is within tolerance."""
        return self.max_ratio <= 1

    @property
    def severity(self) -> float:
        """The ratio, or infinity if the output is not finite; for finding the worst one."""
        return np.inf if np.isnan(self.max_ratio) else self.max_ratio


@dataclass(frozen=True)
class Divergence:
    """The first wavefront on which an output is out of tolerance.

    Attributes:
        wavefront: its number, from 0.
        wavefronts: T, the number of wavefronts.
        corner: the position on wavefront 0.
    """

    wavefront: int
    wavefronts: int
    corner: tuple[int, ...]

    def __str__(self) -> str:
        return f"first wrong at wavefront {self.wavefront} of {self.wavefronts}, counted from {self.corner}"


def feature_scale(references: Sequence[Float64Array], feature_axis: int = -1) -> Float64Array:
    """The scale of each feature of one output.

    Args:
        references: the output (N, …) on all inputs of a verification.
        feature_axis: the axis that holds the features.

    Returns:
        An array that broadcasts against the output: one scale for each feature, or one for all if the
        output has no features or a number of them that depends on the grid.
    """
    magnitudes = []
    for y in references:
        axes = tuple(k for k in range(y.ndim) if k != feature_axis % y.ndim) if y.ndim > 1 else None
        magnitudes.append(np.abs(y).max(axis=axes, keepdims=True))
    if len({magnitude.shape for magnitude in magnitudes}) > 1:
        magnitudes = [magnitude.max(keepdims=True) for magnitude in magnitudes]
    scale: Float64Array = np.maximum(np.maximum.reduce(magnitudes), 1.0)
    return scale


def compare(
    output: Array,
    reference: Float64Array,
    atol: float = ATOL,
    rtol: float = RTOL,
    scale: Float64Array | float = 1.0,
) -> Parity:
    """Measure the error of `output` against `reference`.

    Args:
        output: the output of a runtime.
        reference: the expected output, of the same shape.
        atol: allowed error in units of `scale`.
        rtol: allowed error as a share of the element, in addition to `atol`.
        scale: the scale of each feature, see `feature_scale`.

    Raises:
        MDLSTMError: the two differ in shape.
    """
    if output.shape != reference.shape:
        raise MDLSTMError(f"the output has shape {output.shape}, expected {reference.shape}")
    error = np.abs(output.astype(np.float64) - reference)
    ratio = error / (atol * scale + rtol * np.abs(reference))
    return Parity(float(error.max()), float(ratio.max()), float(np.max(scale)))


def wavefront_errors(output: Array, reference: Float64Array, axes: Sequence[int]) -> list[float]:
    """The largest absolute error on each wavefront, counted from position (0, …, 0).

    Args:
        output: the output of a runtime.
        reference: the expected output, of the same shape.
        axes: the grid axes of both.
    """
    errors = _max_per_position(np.abs(output.astype(np.float64) - reference), axes)
    front_of_position = np.indices(errors.shape).sum(axis=0)
    return [float(errors[front_of_position == t].max()) for t in range(int(front_of_position.max()) + 1)]


def first_divergence(
    output: Array,
    reference: Float64Array,
    axes: Sequence[int],
    atol: float = ATOL,
    rtol: float = RTOL,
    scale: Float64Array | float = 1.0,
) -> Divergence | None:
    """The first wavefront with an element out of tolerance; None if there is none.

    The sweep that made the error is unknown, and so is the corner that it started from. Wavefronts are
    counted from the corner that makes the first wrong one come latest: a sweep from there that is right up
    to that wavefront explains all the errors.

    Args:
        output: the output of a runtime; values that are not finite count as wrong.
        reference: the expected output, of the same shape.
        axes: the grid axes of both.
        atol, rtol, scale: as for `compare`.
    """
    error = np.abs(output.astype(np.float64) - reference)
    is_wrong = _max_per_position(~(error <= atol * scale + rtol * np.abs(reference)), axes)
    if not is_wrong.any():
        return None
    ends = np.asarray(is_wrong.shape) - 1
    wrong_positions = np.argwhere(is_wrong)  # (M, D)

    def first_wavefront(corner: np.ndarray) -> int:
        return int(np.abs(wrong_positions - corner).sum(axis=1).min())

    corners = [np.asarray(corner) for corner in product(*((0, end) for end in ends))]
    corner = max(corners, key=first_wavefront)
    return Divergence(first_wavefront(corner), int(ends.sum()) + 1, tuple(corner.tolist()))


def _max_per_position(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The maximum over all axes but the grid axes."""
    result: np.ndarray = values.max(axis=tuple(k for k in range(values.ndim) if k not in axes))
    return result
