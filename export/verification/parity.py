"""Does an exported model compute what the network does? Measured against float64, cell by cell."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk.errors import MDLSTMError
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
    """Measure `output` against `reference`.

    Raises:
        MDLSTMError: they differ in shape.
    """
    if output.shape != reference.shape:
        raise MDLSTMError(f"what came out has shape {output.shape}, and should have {reference.shape}")
    error = np.abs(output.astype(np.float64) - reference)
    return Parity(float(error.max()), float((error / (atol + rtol * np.abs(reference))).max()))


def float64_reference(module: nn.Module) -> Callable[..., Doubles]:
    """The network in float64, each of its layers swept cell by cell: the truth. Takes x, others by name."""
    exact = copy.deepcopy(module).cpu().double().eval()
    for layer in exact.modules():
        if isinstance(layer, MDLSTM):
            layer.backend = "reference"

    @torch.no_grad()
    def run(x: Floats, **others: npt.NDArray[Any]) -> Doubles:
        named = {name: _double(value) for name, value in others.items()}
        y: Doubles = exact(_double(x), **named).numpy()
        return y

    return run


def _double(array: npt.NDArray[Any]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor


def measure(
    run: Callable[[Floats], Floats],
    reference: Callable[[Floats], Doubles],
    inputs: Mapping[str, Floats],
    atol: float = ATOL,
) -> dict[str, Parity]:
    """Measure a runtime on each input. The reference gets those of one shape in one batch: going through
    the cells is what takes its time."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, x in inputs.items():
        alike.setdefault(x.shape[1:], []).append(name)
    exact: dict[str, Doubles] = {}
    for names in alike.values():
        ends = np.cumsum([len(inputs[name]) for name in names])
        together = reference(np.concatenate([inputs[name] for name in names]))
        exact.update(zip(names, np.split(together, ends[:-1]), strict=True))
    return {name: compare(run(x), exact[name], atol) for name, x in inputs.items()}
