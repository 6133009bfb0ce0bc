"""The loop that every verification shares: run runtimes on cases, and measure their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from mdlstm_tk.export.verification.cases import Array, Case, Grid
from mdlstm_tk.export.verification.parity import (
    Divergence,
    Parity,
    compare,
    feature_scale,
    first_divergence,
    wavefront_errors,
)
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.runtime.tiles.session import TiledSession

Inputs = dict[str, Array]
Outputs = dict[str, Array]
Run = Callable[[Inputs], Outputs]


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
    runtimes: Mapping[str, Run],
    expected: Mapping[str, Outputs],
    cases: Sequence[Case],
    metadata: Metadata,
    atol: float,
) -> dict[str, dict[str, Outcome]]:
    """The outcome of each runtime on each case.

    Args:
        runtimes: what to compare, by name.
        expected: the outputs of the reference by the names of cases; the scale of an output is that of all.
        cases: the inputs.
        metadata: of the model.
        atol: allowed absolute error in units of each feature's scale.

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
        if shapes.takes_sizes:  # the steps of a transcription continue into the padding, as blanks
            outputs = {name: y[tuple(map(slice, exact[name].shape))] for name, y in outputs.items()}
        parities = {name: compare(outputs[name], y, atol, scale=scales[name]) for name, y in exact.items()}
        worst = max(parities, key=lambda name: parities[name].severity)
        if metadata.window is None:
            return Outcome(worst, parities[worst], None, None)
        return Outcome(
            worst,
            parities[worst],
            wavefront_errors(outputs[first], exact[first], axes),
            first_divergence(outputs[first], exact[first], axes, atol, scale=scales[first]),
        )

    return {
        runtime: {case.name: outcome(run(case.inputs), expected[case.name]) for case in cases}
        for runtime, run in runtimes.items()
    }


def expected_outputs(run: Run, cases: Iterable[Case], together: bool = True) -> dict[str, Outputs]:
    """The outputs of a reference on each case, by the names of cases.

    Args:
        run: the reference.
        cases: the inputs.
        together: compute all cases of one grid in one batch, since the time of the float64 reference
            depends on the number of positions and hardly on the batch.
    """
    groups: dict[object, list[Case]] = {}
    for case in cases:
        shapes = tuple((name, value.shape[1:]) for name, value in case.inputs.items())
        groups.setdefault(shapes if together else case.name, []).append(case)
    expected: dict[str, Outputs] = {}
    for group in groups.values():
        batch = {name: np.concatenate([case.inputs[name] for case in group]) for name in group[0].inputs}
        ends = np.cumsum([len(case.inputs["x"]) for case in group])
        outputs = run(batch)
        for case, end in zip(group, ends, strict=True):
            start = end - len(case.inputs["x"])
            expected[case.name] = {name: y[start:end] for name, y in outputs.items()}
    return expected


def session_run(session: Session | TiledSession) -> Run:
    """Runs a session; tiles are of two windows along each axis, so that small grids have several."""
    first = session.metadata.output_names[0]
    if isinstance(session, TiledSession):
        tile = tuple(2 * extent for extent in session.archive.total_window)
        return lambda inputs: {first: session(inputs["x"], tile)}

    def run(inputs: Inputs) -> Outputs:
        x, *further = inputs.values()
        outputs = session(x, **dict(zip(list(inputs)[1:], further, strict=True)))
        return outputs if isinstance(outputs, dict) else {first: outputs}

    return run


def with_padding(run: Run, metadata: Metadata, limit: Grid) -> Run:
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
        return shapes.cropped({name: y[1:] for name, y in outputs.items()}, grid)

    return run_padded
