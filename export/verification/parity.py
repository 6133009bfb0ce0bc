"""Parity: the errors of a runtime against the network in float64.

An error is within tolerance if it is at most atol·s + rtol·|y|. The scale s of a feature of y is its
largest absolute value on all inputs of a verification. A regression whose outputs are in the thousands, or
in millionths, is thus held to the same share of its outputs as a network with outputs in (0, 1).

Runtimes round the numbers of size 1 that outputs below 1 are made of. So where an error is larger than
that, the graph of the file is evaluated in float64: unless this explains the error, s is at least 1.

A sweep carries an error along to all later wavefronts, so the first wrong one is where to look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named

Float64Array = npt.NDArray[np.float64]

ATOL = 1e-5
ATOLS: dict[str, float] = {"float32": ATOL, "float16": 5e-3}  # by dtype of the file
RTOL = 1e-5
SMALLEST = float(np.finfo(np.float32).tiny) / ATOL  # numbers that are off by less have fewer digits
UNEXPLAINED = 0.1  # of an error, if the graph makes it: what the runtime adds to that by rounding


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
        error: the absolute error where that ratio is largest.
        scale: the scale of the feature where it is largest.
        scales: those of all features, which broadcast against the output.
        output: the name of the output, that which is furthest out of tolerance if there are several.
        first_divergence: the first wavefront of the first output that is out of tolerance; None if there is
            none, or that output has no grid.
    """

    max_abs: float
    max_ratio: float
    error: float
    scale: float = 1.0
    scales: Float64Array | float = field(default=1.0, compare=False, repr=False)
    output: str = "y"
    first_divergence: Divergence | None = None

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
    scales = dict[str, Float64Array]()
    for name in metadata.output_names:
        references = [outputs[name] for outputs in expected.values()]
        scales[name] = feature_scale(references, metadata.class_axis(references[0]))
    return scales


def compare(
    output: Array, reference: Float64Array, atol: float = ATOL, scale: Float64Array | float = 1.0
) -> Parity:
    """The error of an output against the expected one, which has its shape; `atol` is in units of the scale
    of each feature."""
    error = np.abs(output.astype(np.float64) - reference)
    tolerance = atol * scale + RTOL * np.abs(reference)
    with np.errstate(divide="ignore"):  # atol may be 0
        ratio = np.divide(error, tolerance, out=np.zeros_like(error), where=error != 0)
    worst = int(np.argmax(ratio))  # the first NaN, if there is one
    at_worst, scale_there = float(error.flat[worst]), float(np.broadcast_to(scale, error.shape).flat[worst])
    return Parity(float(error.max()), float(ratio.max()), at_worst, scale_there, scale)


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
    graph: Runtime | None = None,
) -> dict[str, Parity]:
    """The error of a runtime on each case, by the names of cases.

    `expected` has the outputs of the reference by the names of cases, and may have those of more cases: the
    scale of an output is that of all. `atol` is in units of that scale. Integers may be any that the
    reference, if it is known, makes of floats within that tolerance. `graph` evaluates the graph of the
    file in float64; if it is None, or fails, the file is not to blame for errors that are small beside 1.

    Raises:
        ParityError: the runtime returns another shape than the reference.
        MDLSTMError: it fails.
    """
    scales, found = output_scales(expected, metadata), dict[str, Outputs]()
    for case in cases:
        exact = expected[case.name]
        found[case.name] = outputs = _without_padding(run(case.inputs), exact, metadata)
        for name, y in exact.items():
            if outputs[name].shape != y.shape:
                shape = outputs[name].shape
                raise ParityError(f"output '{name}' has shape {shape} on {case.name}, expected {y.shape}")

    def errors(scales: Mapping[str, Float64Array], least: float) -> dict[str, Parity]:
        result: dict[str, Parity] = {}
        for case in cases:
            exact = expected[case.name]
            outputs = _settled(found[case.name], exact, case.inputs, atol, reference, least)
            result[case.name] = _error(outputs, exact, metadata, atol, scales)
        return result

    result = errors(scales, 0.0)
    failed = [case for case in cases if not result[case.name].passed]
    if not failed:
        return result
    least = {name: np.ones_like(scale) for name, scale in scales.items()}
    for case in failed:
        if not isfinite(result[case.name].max_ratio):
            continue  # no scale allows it
        evaluated = _evaluated(graph, case, expected[case.name], metadata)
        for name, y in evaluated.items():
            is_of_graph = _is_of_graph(found[case.name][name], expected[case.name][name], y, scales[name])
            least[name] = np.where(is_of_graph, 0.0, least[name])
    integers = [name for name, y in expected[cases[0].name].items() if y.dtype.kind != "f"]
    scales = {name: np.maximum(scale, least[name]) for name, scale in scales.items()}
    return errors(scales, min((float(least[name].min()) for name in integers), default=1.0))


def _without_padding(outputs: Outputs, exact: Outputs, metadata: Metadata) -> Outputs:
    """Outputs of a kind whose steps continue into the padding, cut to those of the reference."""
    if not (metadata.takes_sizes and kind_named(metadata.kind).reads_lines):
        return outputs
    return {name: y[tuple(map(slice, exact[name].shape))] for name, y in outputs.items()}


def _evaluated(graph: Runtime | None, case: Case, exact: Outputs, metadata: Metadata) -> Outputs:
    """The outputs of the graph in float64; {} if it cannot be evaluated."""
    if graph is None:
        return {}
    try:
        outputs = _without_padding(graph(case.inputs), exact, metadata)
    except Exception:  # of all kinds: the evaluator lacks operators, and has some in part
        return {}
    return {name: y for name, y in outputs.items() if y.shape == exact[name].shape}


def _is_of_graph(
    output: Array, exact: Array, evaluated: Array, scale: Float64Array
) -> npt.NDArray[np.bool_]:
    """True for each feature whose error the graph makes, and not the runtime, in the shape of `scale`."""
    of_features = tuple(k for k, extent in enumerate(scale.shape) if extent == 1)
    error, rounding = (
        np.abs(output.astype(np.float64) - other.astype(np.float64)).max(axis=of_features, keepdims=True)
        for other in (exact, evaluated)
    )
    return np.asarray(rounding < UNEXPLAINED * error)


def _error(
    outputs: Outputs,
    exact: Outputs,
    metadata: Metadata,
    atol: float,
    scales: Mapping[str, Float64Array],
) -> Parity:
    """The error of outputs that have the shapes of the expected ones: that of the worst output."""
    axes = range(1, metadata.ndim + 1) if metadata.channels_last else range(2, metadata.ndim + 2)
    parities = [
        replace(compare(outputs[name], y, atol, scales[name]), output=name) for name, y in exact.items()
    ]
    first, divergence = metadata.output_names[0], None
    if metadata.window is not None:
        divergence = first_divergence(outputs[first], exact[first], axes, atol, scales[first])
    return replace(max(parities, key=lambda parity: parity.severity), first_divergence=divergence)


def _settled(
    outputs: Outputs,
    exact: Outputs,
    inputs: Inputs,
    atol: float,
    reference: Interface | None,
    least: float,
) -> Outputs:
    """Outputs in which integers are the expected ones wherever the reference makes them, too, of floats
    that are off by `atol` in units of the largest one, or of `least`."""
    unequal = [k for k, y in exact.items() if y.dtype.kind != "f" and not np.array_equal(outputs[k], y)]
    if reference is None or not unequal:
        return outputs
    bounds = [exact]
    for share in (-atol, atol):
        with Nudged(share, least):
            bounds.append(reference.run(inputs))
    for name in unequal:
        possible, y = np.stack([of_all[name] for of_all in bounds]), outputs[name]
        is_possible = (possible.min(axis=0) <= y) & (y <= possible.max(axis=0))
        outputs = {**outputs, name: np.where(is_possible, exact[name], y)}
    return outputs
