"""Parity: the error of an output against the same network in float64, computed position by position."""

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

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

ATOL = 1e-5
RTOL = 1e-5


@dataclass(frozen=True)
class Parity:
    """The error of one runtime against the float64 reference on one input.

    Attributes:
        max_abs: largest absolute error.
        max_ratio: largest ratio of an error to its tolerance, atol + rtol·|reference|; NaN if the output
            is not finite.
    """

    max_abs: float
    max_ratio: float

    @property
    def passed(self) -> bool:
        """Whether every element is within tolerance."""
        return self.max_ratio <= 1


def compare(
    output: Float32Array, reference: Float64Array, atol: float = ATOL, rtol: float = RTOL
) -> Parity:
    """Measure the error of `output` against `reference`.

    Raises:
        MDLSTMError: the two differ in shape.
    """
    if output.shape != reference.shape:
        raise MDLSTMError(f"the output has shape {output.shape}, expected {reference.shape}")
    error = np.abs(output.astype(np.float64) - reference)
    return Parity(float(error.max()), float((error / (atol + rtol * np.abs(reference))).max()))


def float64_reference(module: nn.Module) -> Callable[..., Float64Array]:
    """The ground truth: the network in float64, its MDLSTM layers computed position by position.

    Args:
        module: the network; it is copied.

    Returns:
        A function of x, and of further inputs by name, all NumPy arrays.
    """
    exact = copy.deepcopy(module).cpu().double().eval()
    for layer in exact.modules():
        if isinstance(layer, MDLSTM):
            layer.backend = "reference"

    @torch.no_grad()
    def run(x: Float32Array, **inputs: npt.NDArray[Any]) -> Float64Array:
        y: Float64Array = exact(
            _to_double(x), **{name: _to_double(value) for name, value in inputs.items()}
        ).numpy()
        return y

    return run


def _to_double(array: npt.NDArray[Any]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor


def compare_all(
    run: Callable[[Float32Array], Float32Array],
    reference: Callable[[Float32Array], Float64Array],
    inputs: Mapping[str, Float32Array],
    atol: float = ATOL,
) -> dict[str, Parity]:
    """Measure the error of a runtime on each of `inputs`.

    The reference computes all inputs of one grid in one batch, since its time depends on the number of
    positions and hardly on the batch.

    Args:
        run: the runtime.
        reference: the function that `float64_reference` returned.
        inputs: inputs x by name.
        atol: allowed absolute error.
    """
    names_by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, x in inputs.items():
        names_by_shape.setdefault(x.shape[1:], []).append(name)
    expected: dict[str, Float64Array] = {}
    for names in names_by_shape.values():
        ends = np.cumsum([len(inputs[name]) for name in names])
        outputs = reference(np.concatenate([inputs[name] for name in names]))
        expected.update(zip(names, np.split(outputs, ends[:-1]), strict=True))
    return {name: compare(run(x), expected[name], atol) for name, x in inputs.items()}
