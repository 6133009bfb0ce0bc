"""Does an exported model compute what the network does? Measured against float64, cell by cell."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk.layer import MDLSTM

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ATOL = 1e-5
RTOL = 1e-5


@dataclass(frozen=True)
class Parity:
    """How far one runtime is from the float64 reference on one input.

    Attributes:
        max_abs: largest absolute error.
        worst: largest error as a share of what is allowed, atol + rtol·|reference|; not a number if
            the runtime's output is not finite.
    """

    max_abs: float
    worst: float

    @property
    def passed(self) -> bool:
        """Is every element within tolerance?"""
        return self.worst <= 1


def compare(output: Floats, reference: Doubles, atol: float = ATOL, rtol: float = RTOL) -> Parity:
    """Measure `output` against `reference`, of the same shape."""
    error = np.abs(output.astype(np.float64) - reference)
    return Parity(float(error.max()), float((error / (atol + rtol * np.abs(reference))).max()))


def float64_reference(module: nn.Module) -> Callable[[Floats], Doubles]:
    """The network in float64, each of its layers swept cell by cell: the truth."""
    exact = copy.deepcopy(module).cpu().double().eval()
    for layer in exact.modules():
        if isinstance(layer, MDLSTM):
            layer.backend = "reference"

    @torch.no_grad()
    def run(x: Floats) -> Doubles:
        y: Doubles = exact(torch.from_numpy(x).double()).numpy()
        return y

    return run


def random_inputs(grid: tuple[int, ...], channels: int, seed: int = 0) -> dict[str, Floats]:
    """Standard normal inputs (N, *grid, C) for batches of 1 and of 3, by name."""
    rng = np.random.default_rng(seed)
    return {
        f"random × {batch}": rng.standard_normal((batch, *grid, channels)).astype(np.float32)
        for batch in (1, 3)
    }


def measure(
    run: Callable[[Floats], Floats],
    reference: Callable[[Floats], Doubles],
    inputs: Mapping[str, Floats],
    atol: float = ATOL,
) -> dict[str, Parity]:
    """Measure a runtime on each input."""
    return {name: compare(run(x), reference(x), atol) for name, x in inputs.items()}
