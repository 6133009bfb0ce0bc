"""Parity: run runtimes on cases, and measure their errors against the network in float64.

An error is within tolerance if it is at most atol·s + rtol·|y|. The scale s of a feature of y is its
largest absolute value on all inputs of a verification, or 1 if that is smaller. A regression whose outputs
are in the thousands is thus held to the same share of its outputs as a network with outputs in (0, 1).

A sweep carries an error along to all later wavefronts, so the first wrong one is where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import Export, InputError, MDLSTMError, ParityError
from mdlstm_tk.export.interface import Interface, Nudged
from mdlstm_tk.export.verification.cases import Case
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.shapes import Grid, Shapes
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.training import Run

Float64Array = npt.NDArray[np.float64]
Inputs = dict[str, Array]
Outputs = dict[str, Array]
Runtime = Callable[[Inputs], Outputs]

ATOL = 1e-5
ATOLS: dict[str, float] = {"float32": ATOL, "float16": 5e-3}  # by dtype of the file
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


def check_atol(atol: float | None) -> None:
    """Check the argument `atol` of an export.

    Raises:
        InputError: it is negative or not finite.
    """
    if atol is not None and not 0 <= atol < inf:
        raise InputError(f"atol must be a finite number of at least 0, got {atol}")


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
    scale: Float64Array = np.maximum(np.maximum.reduce(magnitudes), 1.0)
    return scale


def compare(
    output: Array, reference: Float64Array, atol: float = ATOL, scale: Float64Array | float = 1.0
) -> Parity:
    """The error of an output against the expected one; `atol` is in units of the scale of each feature.

    Raises:
        MDLSTMError: the two differ in shape.
    """
    if output.shape != reference.shape:
        raise MDLSTMError(f"the output has shape {output.shape}, expected {reference.shape}")
    error = np.abs(output.astype(np.float64) - reference)
    tolerance = atol * scale + RTOL * np.abs(reference)
    with np.errstate(divide="ignore"):  # atol may be 0
        ratio = np.divide(error, tolerance, out=np.zeros_like(error), where=error != 0)
    return Parity(float(error.max()), float(ratio.max()), float(np.max(scale)))


def wavefront_errors(output: Array, reference: Float64Array, axes: Sequence[int]) -> list[float]:
    """The largest absolute error on each wavefront of the grid axes, counted from position (0, …, 0)."""
    errors = _max_per_position(np.abs(output.astype(np.float64) - reference), axes)
    front_of_position = np.indices(errors.shape).sum(axis=0)
    return [float(errors[front_of_position == t].max()) for t in range(int(front_of_position.max()) + 1)]


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
    is_wrong = _max_per_position(~(error <= atol * scale + RTOL * np.abs(reference)), axes)
    if not is_wrong.any():
        return None
    ends = np.asarray(is_wrong.shape) - 1
    distances = {
        corner: int(np.abs(np.argwhere(is_wrong) - corner).sum(axis=1).min())
        for corner in product(*((0, end) for end in ends.tolist()))
    }
    corner = max(distances, key=distances.__getitem__)
    return Divergence(distances[corner], int(ends.sum()) + 1, corner)


def _max_per_position(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The maximum over all axes but the grid axes."""
    result: np.ndarray = values.max(axis=tuple(k for k in range(values.ndim) if k not in axes))
    return result


@dataclass(frozen=True)
class Outcome:
    """The errors of one runtime on one case.

    Attributes:
        output: the name of the output that is furthest out of tolerance.
        parity: its error.
        wavefronts: largest absolute error of the first output on each wavefront; None if it has no grid.
        first_divergence: the first wavefront out of tolerance; None if there is none.
    """

    output: str
    parity: Parity
    wavefronts: list[float] | None
    first_divergence: Divergence | None

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON values; an error that is not finite becomes None."""

        def finite(error: float) -> float | None:
            return error if isfinite(error) else None

        return {
            "max_abs": finite(self.parity.max_abs),
            "scale": finite(self.parity.scale),
            "passed": self.parity.passed,
            "wavefronts": self.wavefronts and [finite(error) for error in self.wavefronts],
            "first_divergence": self.first_divergence and asdict(self.first_divergence),
        }


def compare_all(
    runtimes: Mapping[str, Runtime],
    expected: Mapping[str, Outputs],
    cases: Sequence[Case],
    metadata: Metadata,
    atol: float,
    reference: Interface | None = None,
) -> dict[str, dict[str, Outcome]]:
    """The outcome of each runtime on each case, by their names.

    `expected` has the outputs of the reference by the names of cases, and may have those of more cases: the
    scale of an output is that of all. `atol` is in units of that scale. Integers may be any that the
    reference, if it is known, makes of floats within that tolerance.

    Raises:
        MDLSTMError: a runtime fails, or returns another shape than the reference.
    """
    shapes = Shapes(metadata)
    scales = {
        name: feature_scale(references, shapes.feature_axis(references[0]))
        for name in metadata.output_names
        for references in [[outputs[name] for outputs in expected.values()]]
    }
    axes = range(1, metadata.ndim + 1) if metadata.channels_last else range(2, metadata.ndim + 2)
    first = metadata.output_names[0]

    def outcome(outputs: Outputs, exact: Outputs) -> Outcome:
        if shapes.takes_sizes and kind_named(metadata.kind).steps_are_columns:
            # Steps continue into the padding.
            outputs = {name: y[tuple(map(slice, exact[name].shape))] for name, y in outputs.items()}
        parities = {name: compare(outputs[name], y, atol, scales[name]) for name, y in exact.items()}
        worst = max(parities, key=lambda name: parities[name].severity)
        if metadata.window is None:
            return Outcome(worst, parities[worst], None, None)
        return Outcome(
            worst,
            parities[worst],
            wavefront_errors(outputs[first], exact[first], axes),
            first_divergence(outputs[first], exact[first], axes, atol, scales[first]),
        )

    def settled(outputs: Outputs, exact: Outputs, inputs: Inputs) -> Outputs:
        unequal = [k for k, y in exact.items() if y.dtype.kind != "f" and not np.array_equal(outputs[k], y)]
        if reference is None or not unequal:
            return outputs
        bounds = [exact]
        for share in (-atol, atol):
            with Nudged(share):
                bounds.append(reference.run(inputs))
        for name in unequal:
            possible, y = np.stack([of_all[name] for of_all in bounds]), outputs[name]
            is_possible = (possible.min(axis=0) <= y) & (y <= possible.max(axis=0))
            outputs = {**outputs, name: np.where(is_possible, exact[name], y)}
        return outputs

    return {
        runtime: {
            case.name: outcome(settled(run(case.inputs), exact, case.inputs), exact)
            for case in cases
            for exact in [expected[case.name]]
        }
        for runtime, run in runtimes.items()
    }


def expected_outputs(run: Runtime, cases: Iterable[Case], together: bool = True) -> dict[str, Outputs]:
    """The outputs of a reference on each case, by the names of cases.

    All cases of one grid are computed in one batch if `together`, since the time of the float64 reference
    depends on the number of positions and hardly on the batch.
    """
    groups: dict[object, list[Case]] = {}
    for case in cases:
        shapes = tuple((name, value.shape[1:]) for name, value in case.inputs.items())
        groups.setdefault(shapes if together else case.name, []).append(case)
    expected: dict[str, Outputs] = {}
    for group in groups.values():
        batch = {name: np.concatenate([case.inputs[name] for case in group]) for name in group[0].inputs}
        outputs, start = run(batch), 0
        for case in group:
            end = start + len(case.inputs["x"])
            expected[case.name] = {name: y[start:end] for name, y in outputs.items()}
            start = end
    return expected


def session_run(session: Session | TiledSession) -> Runtime:
    """Runs a session; tiles are of two windows along each axis, so that small grids have several."""
    first = session.metadata.output_names[0]
    if isinstance(session, TiledSession):
        tile = tuple(2 * extent for extent in session.archive.total_window)
        return lambda inputs: {first: session(inputs["x"], tile)}

    def run(inputs: Inputs) -> Outputs:
        outputs = session(**inputs)
        return outputs if isinstance(outputs, dict) else {first: outputs}

    return run


def with_padding(run: Runtime, metadata: Metadata, limit: Grid) -> Runtime:
    """Runs a model that takes `sizes` on smaller grids.

    The samples are padded with their values again to the grid `limit`, after a first sample that fills
    it, so that one batch has several sizes. A model that reads the padding returns something else than for
    the samples alone.
    """
    shapes = Shapes(metadata)

    def run_padded(inputs: Inputs) -> Outputs:
        x = inputs["x"]
        grid = shapes.grid(x)
        padded = np.resize(x, (1 + len(x), *shapes.sample_shape(limit))).astype(x.dtype)
        padded[1:, *map(slice, x.shape[1:])] = x
        sizes = np.asarray([limit, *[grid] * len(x)], np.int64)
        further = {
            name: np.concatenate([value[:1], value]) for name, value in inputs.items() if name != "x"
        }
        outputs = run({"x": padded, "sizes": sizes, **further})
        return shapes.crop({name: y[1:] for name, y in outputs.items()}, grid, limit)

    return run_padded


@dataclass(frozen=True)
class VerificationReport:
    """The result of `verify_model`; `print` shows a line for each runtime.

    Attributes:
        model: the file, or the folder with the files.
        models: the metadata of each file that was verified, by its path.
        reference: what the files were compared with, in words.
        run: the run that they were compared with; None if it was something else.
        groups: names of the cases in each group: of one file, see `Case`; of several, one group for each.
        outcomes: by runtime, then by the name of the case.
        stale: a line for each file that was exported from another checkpoint.
    """

    model: Path
    models: dict[Path, Metadata]
    reference: str
    run: Run | None
    groups: dict[str, list[str]]
    outcomes: dict[str, dict[str, Outcome]]
    stale: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """Names of the runtimes that are out of tolerance on at least one case."""
        return [runtime for runtime in self.outcomes if not self.passed(runtime)]

    def passed(self, runtime: str) -> bool:
        """True if a runtime is within tolerance on all cases."""
        return all(outcome.parity.passed for outcome in self.outcomes[runtime].values())

    def worst_errors(self, runtime: str) -> dict[str, float]:
        """The largest absolute error of a runtime in each group of cases; NaN if one of them is NaN."""
        outcomes = self.outcomes[runtime]
        errors = {
            group: [outcomes[name].parity.max_abs for name in names if name in outcomes]
            for group, names in self.groups.items()
        }
        return {group: float(np.max(of_group)) for group, of_group in errors.items() if of_group}

    def title(self) -> str:
        """The file with its form and grid, or the folder with the number of its files."""
        if len(self.models) > 1:
            return f"{self.model} ({len(self.models)} models)"
        ((path, metadata),) = self.models.items()
        grid = format_size(metadata.grid) if metadata.grid else "any size"
        return f"{path} ({metadata.form}, {grid})"

    def __str__(self) -> str:
        """The title, and a line for each runtime with its largest error."""
        lines = [f"{self.title()}: largest error against {self.reference} in float64"]
        for runtime in self.outcomes:
            error = np.max(list(self.worst_errors(runtime).values()))
            verdict = "within tolerance" if self.passed(runtime) else "out of tolerance"
            lines.append(f"{runtime}: {error:.1e}, {verdict}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All outcomes as JSON values, by runtime and case."""
        return {
            runtime: {case: outcome.as_dict() for case, outcome in outcomes.items()}
            for runtime, outcomes in self.outcomes.items()
        }

    def raise_if_failed(self) -> None:
        """Do nothing if all runtimes passed.

        Raises:
            ParityError: a runtime failed; names the case, and the first wavefront that is wrong.
        """
        if not self.failed:
            return
        outcomes = self.outcomes[self.failed[0]]
        case, worst = next((name, o) for name, o in outcomes.items() if not o.parity.passed)
        where = f" ({worst.first_divergence})" if worst.first_divergence else ""
        advice: tuple[object, ...] = ()
        if self.stale:
            where, advice = "", ("; ", self.stale[0])
        elif self.run is not None:
            advice = (
                "; if the model was exported from another run or checkpoint, name that, else export it "
                "again with: ",
                Export({"force": True}, str(self.run.folder)),
            )
        raise ParityError(
            f"{', '.join(self.failed)}: error {worst.parity.max_abs:.1e} against {self.reference} on "
            f"{case}{where}, {worst.parity.max_ratio:.3g} times what the tolerance of the export allows",
            *advice,
        )
