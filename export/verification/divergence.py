"""Locate an error: the first wavefront on which an output is wrong.

A sweep carries an error along to all later wavefronts, so the first wrong one is where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mdlstm_tk.export.verification.parity import ATOL, RTOL, Array, Float64Array, tolerances


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
    is_wrong = _max_per_position(~(error <= tolerances(reference, atol, rtol, scale)), axes)
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
