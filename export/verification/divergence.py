"""Where does an output first go wrong? A sweep carries each error along, so that is where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mdlstm_tk.export.verification.parity import ATOL, RTOL, Doubles, Floats


@dataclass(frozen=True)
class Divergence:
    """The first wavefront that is off.

    Attributes:
        wavefront: its number, from 0.
        wavefronts: how many there are.
        corner: the position that they are counted from.
    """

    wavefront: int
    wavefronts: int
    corner: tuple[int, ...]

    def __str__(self) -> str:
        return f"first off at wavefront {self.wavefront} of {self.wavefronts}, counted from {self.corner}"


def wavefront_errors(output: Floats, reference: Doubles, axes: Sequence[int]) -> list[float]:
    """Largest absolute error on each wavefront, counted from position (0, …, 0).

    Args:
        output: of a runtime.
        reference: what it should be, of the same shape.
        axes: those of the grid.
    """
    errors = _over_grid(np.abs(output.astype(np.float64) - reference), axes)
    sums = np.indices(errors.shape).sum(axis=0)
    return [float(errors[sums == k].max()) for k in range(int(sums.max()) + 1)]


def first_divergence(
    output: Floats, reference: Doubles, axes: Sequence[int], atol: float = ATOL, rtol: float = RTOL
) -> Divergence | None:
    """The first wavefront with an element further off than it may be; None if there is none.

    Wavefronts are counted from that corner of the grid from which the first that is off comes last: a
    sweep that starts there, and does all right up to it, explains all the errors.

    Args:
        output: of a runtime; what is not finite is off.
        reference: what it should be, of the same shape.
        axes: those of the grid.
        atol: absolute error that is allowed, and
        rtol: what is allowed in addition, as a share of the reference.
    """
    error = np.abs(output.astype(np.float64) - reference)
    off = _over_grid(~(error <= atol + rtol * np.abs(reference)), axes)
    if not off.any():
        return None
    ends = np.asarray(off.shape) - 1
    places = np.argwhere(off)  # (K, D)
    corners = [np.asarray(corner) for corner in product(*((0, end) for end in ends))]
    corner = max(corners, key=lambda corner: np.abs(places - corner).sum(axis=1).min())
    first = np.abs(places - corner).sum(axis=1).min()
    return Divergence(int(first), int(ends.sum()) + 1, tuple(corner.tolist()))


def _over_grid(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The largest of all samples and channels, at each position."""
    result: np.ndarray = values.max(axis=tuple(k for k in range(values.ndim) if k not in axes))
    return result
