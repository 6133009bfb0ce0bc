"""Parity: the error of an output against the same network in float64, computed position by position.

An error is within tolerance if it is at most atol·s + rtol·|y|. The scale s of a feature of y is its
largest absolute value on all inputs of a verification, or 1 if that is smaller. A regression whose outputs
are in the thousands is thus held to the same share of its outputs as a network with outputs in (0, 1).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.copies import eval_copy
from mdlstm_tk.export.outputs import named_outputs
from mdlstm_tk.layer import MDLSTM

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
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
        """Whether every element is within tolerance."""
        return self.max_ratio <= 1

    @property
    def severity(self) -> float:
        """The ratio, or infinity if the output is not finite; for finding the worst one."""
        return np.inf if np.isnan(self.max_ratio) else self.max_ratio


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


def tolerances(
    reference: Float64Array,
    atol: float = ATOL,
    rtol: float = RTOL,
    scale: Float64Array | float = 1.0,
) -> Float64Array:
    """The tolerance of each element: atol·scale + rtol·|reference|."""
    tolerance: Float64Array = atol * scale + rtol * np.abs(reference)
    return tolerance


def compare(
    output: Array,
    reference: Float64Array,
    atol: float = ATOL,
    rtol: float = RTOL,
    scale: Float64Array | float = 1.0,
) -> Parity:
    """Measure the error of `output` against `reference`.

    Args:
        output: what a runtime computed.
        reference: what is right, of the same shape.
        atol: allowed error in units of `scale`.
        rtol: allowed error as a share of the element, in addition to `atol`.
        scale: the scale of each feature, see `feature_scale`.

    Raises:
        MDLSTMError: the two differ in shape.
    """
    if output.shape != reference.shape:
        raise MDLSTMError(f"the output has shape {output.shape}, expected {reference.shape}")
    error = np.abs(output.astype(np.float64) - reference)
    ratio = error / tolerances(reference, atol, rtol, scale)
    return Parity(float(error.max()), float(ratio.max()), float(np.max(scale)))


def float64_reference(module: nn.Module, output_names: Sequence[str] | None = None) -> Callable[..., Any]:
    """The ground truth: the network in float64, its MDLSTM layers computed position by position.

    Args:
        module: the network; it is copied.
        output_names: names of its outputs, if it has several; None: as for `export_onnx`.

    Returns:
        A function of x, and of further inputs by name, all NumPy arrays. Like a `Session`, it returns an
        array, or a dict of arrays if the network has several outputs.
    """
    exact = eval_copy(module).double()
    for layer in exact.modules():
        if isinstance(layer, MDLSTM):
            layer.backend = "reference"

    @torch.no_grad()
    def run(x: Array, **inputs: Array) -> Any:
        result = exact(_to_double(x), **{name: _to_double(value) for name, value in inputs.items()})
        outputs = named_outputs(result, type(exact).__name__, output_names)
        arrays = {name: y.numpy() for name, y in outputs.items()}
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))

    return run


def with_required_sizes(
    module: nn.Module, x: Array, grid: Sequence[int], further: Mapping[str, Array]
) -> dict[str, Array]:
    """The inputs of a network after x (N, …) without padding: `sizes` are among them only if it requires
    them."""
    parameter = inspect.signature(module.forward).parameters.get("sizes")
    if parameter is None or parameter.default is not parameter.empty:
        return dict(further)
    return {"sizes": np.asarray([grid] * len(x)), **further}


def by_name(outputs: Any, names: Sequence[str]) -> dict[str, Array]:
    """What a session or a reference returned, as a dict in any case."""
    return outputs if isinstance(outputs, dict) else {names[0]: outputs}


def worst(parities: Mapping[str, Parity]) -> tuple[str, Parity]:
    """The entry that is furthest out of tolerance."""
    return max(parities.items(), key=lambda item: item[1].severity)


def _to_double(array: Array) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor
