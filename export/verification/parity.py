"""Parity: the errors of a runtime against the network in float64.

An error is within tolerance if it is at most atol·s + rtol·|y|. The scale s of a feature of y is its
largest absolute value on all inputs of a verification. A regression whose outputs are in the thousands, or
in millionths, is thus held to the same share of its outputs as a network with outputs in (0, 1).

Outputs below 1 may be small differences of large numbers, of which float32 keeps few digits. So where an
error is larger than that, the scale is raised, to 1 at most, until it allows what rounding does to the
outputs of PyTorch.

A sweep carries an error along to all later wavefronts, so the first wrong one is where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import ParityError
from mdlstm_tk.export.interface import Interface, Nudged
from mdlstm_tk.export.verification.cases import Case
from mdlstm_tk.export.verification.runtimes import Inputs, Outputs, Runtime
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.shapes import Shapes

Float64Array = npt.NDArray[np.float64]
Rounding = Callable[[], Iterable[Runtime]]

ATOL = 1e-5
ATOLS: dict[str, float] = {"float32": ATOL, "float16": 5e-3}  # by dtype of the file
RTOL = 1e-5
SMALLEST = float(np.finfo(np.float32).tiny) / ATOL  # numbers that are off by less have fewer digits
ROUNDING_SHARE = 0.3  # of an error that rounding explains: operators of ONNX Runtime round more


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


@dataclass(frozen=True)
class Parity:
    """The error of one runtime against the float64 reference on one input.

    Attributes:
        max_abs: largest absolute error.
        max_ratio: largest ratio of an error to its tolerance; NaN if the output is not finite.
        scales: the scale of each feature, which broadcasts against the output.
        output: the name of the output, that which is furthest out of tolerance if there are several.
        first_divergence: the first wavefront of the first output that is out of tolerance; None if there is
            none, or that output has no grid.
    """

    max_abs: float
    max_ratio: float
    scales: Float64Array | float = field(default=1.0, compare=False, repr=False)
    output: str = "y"
    first_divergence: Divergence | None = None

    @property
    def scale(self) -> float:
        """The largest scale of a feature."""
        return float(np.max(self.scales))

    @property
    def passed(self) -> bool:
        """True if every element is within tolerance."""
        return self.max_ratio <= 1

    @property
    def severity(self) -> float:
        """The ratio, or infinity if the output is not finite; for finding the worst one."""
        return np.inf if np.isnan(self.max_ratio) else self.max_ratio

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON values; a number that is not finite becomes None."""
        return {
            "max_abs": self.max_abs if isfinite(self.max_abs) else None,
            "scale": self.scale if isfinite(self.scale) else None,
            "passed": self.passed,
            "first_divergence": self.first_divergence and asdict(self.first_divergence),
        }


def feature_scale(references: Sequence[Float64Array], feature_axis: int = -1) -> Float64Array:
    """The scale of each feature of an output (N, …), from the output on all inputs of a verification.

    It broadcasts against the output, and is one for all features if the output has none or a number of them
    that depends on the grid. NaN and infinite values do not count: they would allow any error elsewhere.
    """
    magnitudes = []
    for y in references:
        axes = tuple(k for k in range(y.ndim) if k != feature_axis % y.ndim) if y.ndim > 1 else None
        magnitudes.append(np.abs(np.where(np.isfinite(y), y, 0)).max(axis=axes, keepdims=True))
    if len({magnitude.shape for magnitude in magnitudes}) > 1:
        magnitudes = [magnitude.max(keepdims=True) for magnitude in magnitudes]
    scale: Float64Array = np.maximum(np.maximum.reduce(magnitudes), SMALLEST)
    return scale


def output_scales(expected: Mapping[str, Outputs], metadata: Metadata) -> dict[str, Float64Array]:
    """The scale of each output by its name, from the outputs of the reference by the names of cases."""
    shapes, scales = Shapes(metadata), dict[str, Float64Array]()
    for name in metadata.output_names:
        references = [outputs[name] for outputs in expected.values()]
        scales[name] = feature_scale(references, shapes.feature_axis(references[0]))
    return scales


def rounding_scales(
    runs: Iterable[Runtime],
    expected: Mapping[str, Outputs],
    cases: Sequence[Case],
    metadata: Metadata,
    atol: float,
) -> dict[str, Float64Array]:
    """The scale of each output, at most 1, that allows the errors which rounding makes in it: those of
    `runs`, PyTorch with rounded weights, on the cases."""
    errors: dict[str, Outputs] = {}
    for number, run in enumerate(runs):
        for case in cases:
            differences = {
                name: y.astype(np.float64) - expected[case.name][name]
                for name, y in run(case.inputs).items()
            }
            # States that outgrow float32 may err in any way.
            errors[f"{number} {case.name}"] = {
                name: np.nan_to_num(y, nan=1, posinf=1, neginf=1) for name, y in differences.items()
            }
    share = ROUNDING_SHARE * atol
    with np.errstate(divide="ignore"):  # atol may be 0
        return {
            name: np.minimum(scale / share, 1.0) for name, scale in output_scales(errors, metadata).items()
        }


def compare(
    output: Array, reference: Float64Array, atol: float = ATOL, scale: Float64Array | float = 1.0
) -> Parity:
    """The error of an output against the expected one, which has its shape; `atol` is in units of the scale
    of each feature."""
    error = np.abs(output.astype(np.float64) - reference)
    tolerance = atol * scale + RTOL * np.abs(reference)
    with np.errstate(divide="ignore"):  # atol may be 0
        ratio = np.divide(error, tolerance, out=np.zeros_like(error), where=error != 0)
    return Parity(float(error.max()), float(ratio.max()), scale)


def first_divergence(
    output: Array,
    reference: Float64Array,
    axes: Sequence[int],
    atol: float = ATOL,
    scale: Float64Array | float = 1.0,
) -> Divergence | None:
    """The first wavefront of the grid axes with an element out of tolerance; None if there is none.

    The sweep that made the error is unknown, and so is the corner that it started from. Wavefronts are
    counted from the corner that makes the first wrong one come latest: a sweep from there that is right up
    to that wavefront explains all the errors. Values that are not finite count as wrong.
    """
    error = np.abs(output.astype(np.float64) - reference)
    others = tuple(k for k in range(error.ndim) if k not in axes)
    is_wrong = np.asarray((~(error <= atol * scale + RTOL * np.abs(reference))).any(axis=others))
    if not is_wrong.any():
        return None
    ends = np.asarray(is_wrong.shape) - 1
    distances = {
        corner: int(np.abs(np.argwhere(is_wrong) - corner).sum(axis=1).min())
        for corner in product(*((0, end) for end in ends.tolist()))
    }
    corner = max(distances, key=distances.__getitem__)
    return Divergence(distances[corner], int(ends.sum()) + 1, corner)


def compare_cases(
    run: Runtime,
    expected: Mapping[str, Outputs],
    cases: Sequence[Case],
    metadata: Metadata,
    atol: float,
    reference: Interface | None = None,
    rounding: Rounding | None = None,
) -> dict[str, Parity]:
    """The error of a runtime on each case, by the names of cases.

    `expected` has the outputs of the reference by the names of cases, and may have those of more cases: the
    scale of an output is that of all. `atol` is in units of that scale. Integers may be any that the
    reference, if it is known, makes of floats within that tolerance. `rounding` returns runs of PyTorch
    with rounded weights; if it is None, nobody knows what rounding does, and scales are raised to 1 where
    that is needed.

    Raises:
        ParityError: the runtime returns another shape than the reference.
        MDLSTMError: it fails.
    """
    shapes, found = Shapes(metadata), dict[str, Outputs]()
    for case in cases:
        exact, outputs = expected[case.name], run(case.inputs)
        if shapes.takes_sizes and kind_named(metadata.kind).steps_are_columns:
            # Steps continue into the padding.
            outputs = {name: y[tuple(map(slice, exact[name].shape))] for name, y in outputs.items()}
        for name, y in exact.items():
            if outputs[name].shape != y.shape:
                shape = outputs[name].shape
                raise ParityError(f"output '{name}' has shape {shape} on {case.name}, expected {y.shape}")
        found[case.name] = _settled(outputs, exact, case.inputs, atol, reference, rounding)
    scales = output_scales(expected, metadata)
    errors = _errors(found, expected, metadata, atol, scales)
    if not all(error.passed for error in errors.values()):
        least: Mapping[str, Float64Array | float] = dict.fromkeys(scales, 1.0)
        if rounding is not None:
            least = rounding_scales(rounding(), expected, cases, metadata, atol)
        scales = {name: np.maximum(scale, least[name]) for name, scale in scales.items()}
        errors = _errors(found, expected, metadata, atol, scales)
    return errors


def _errors(
    found: Mapping[str, Outputs],
    expected: Mapping[str, Outputs],
    metadata: Metadata,
    atol: float,
    scales: Mapping[str, Float64Array],
) -> dict[str, Parity]:
    """The error of the outputs of each case, which have the shapes of the expected ones."""
    axes = range(1, metadata.ndim + 1) if metadata.channels_last else range(2, metadata.ndim + 2)
    first, errors = metadata.output_names[0], dict[str, Parity]()
    for case, outputs in found.items():
        exact = expected[case]
        parities = [
            replace(compare(outputs[name], y, atol, scales[name]), output=name) for name, y in exact.items()
        ]
        worst, divergence = max(parities, key=lambda parity: parity.severity), None
        if metadata.window is not None:
            divergence = first_divergence(outputs[first], exact[first], axes, atol, scales[first])
        errors[case] = replace(worst, first_divergence=divergence)
    return errors


def _settled(
    outputs: Outputs,
    exact: Outputs,
    inputs: Inputs,
    atol: float,
    reference: Interface | None,
    rounding: Rounding | None,
) -> Outputs:
    """Outputs in which integers are the expected ones wherever PyTorch makes them, too, of floats that are
    off by `atol`, or rounded."""
    unequal = [k for k, y in exact.items() if y.dtype.kind != "f" and not np.array_equal(outputs[k], y)]
    if reference is None or not unequal:
        return outputs
    bounds = [exact]
    for share in (-atol, atol):
        with Nudged(share, least=1.0 if rounding is None else 0.0):
            bounds.append(reference.run(inputs))
    if rounding is not None:
        bounds += [run(inputs) for run in rounding()]
    for name in unequal:
        possible, y = np.stack([of_all[name] for of_all in bounds]), outputs[name]
        is_possible = (possible.min(axis=0) <= y) & (y <= possible.max(axis=0))
        outputs = {**outputs, name: np.where(is_possible, exact[name], y)}
    return outputs
