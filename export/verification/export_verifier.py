"""The checks that `export_onnx` makes before it writes a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.outputs import named_outputs
from mdlstm_tk.export.spec import ExportSpec
from mdlstm_tk.export.verification.inputs import random_inputs
from mdlstm_tk.export.verification.parity import (
    RTOL,
    Array,
    Float32Array,
    Float64Array,
    Parity,
    by_name,
    compare,
    feature_scale,
    float64_reference,
    with_required_sizes,
    worst,
)
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.shapes import Shapes


@dataclass(frozen=True)
class _Comparison:
    """What the model computed for one input, and what is right, by the names of outputs.

    Attributes:
        x: the input; None if it is a sample that was padded.
    """

    x: Float32Array | None
    computed: dict[str, Array]
    expected: dict[str, Float64Array]


class ExportVerifier:
    """Compares an exported model with the network that it was exported from.

    Args:
        session: the exported model.
        spec: the network and its inputs.
        atol: allowed absolute error in units of each output's scale.
    """

    def __init__(self, session: Session, spec: ExportSpec, atol: float) -> None:
        self.session = session
        self.spec = spec
        self.atol = atol
        self._shapes = Shapes(session.metadata)
        self._exact = float64_reference(spec.module, spec.output_names)
        self._comparisons: dict[str, _Comparison] = {}
        self._scales: dict[str, Float64Array] = {}

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Parity]:
        """Compare on `inputs`, on random inputs of each grid and on padded samples of several sizes.

        Returns:
            The error on each input, by name: that of its worst output.
        """
        spec, cases = self.spec, dict(inputs)
        for grid, _ in spec.shapes:
            random = random_inputs(grid, spec.channels, channels_last=spec.channels_last)
            cases |= {f"{format_size(grid)}, {name}": x for name, x in random.items()}
        expected = self._expected(cases)
        for name, x in cases.items():
            self._comparisons[name] = _Comparison(x, self._run_model(x), expected[name])
        if spec.padded:
            self._comparisons |= self._compare_padded()
        for output in spec.output_names:
            references = [comparison.expected[output] for comparison in self._comparisons.values()]
            self._scales[output] = feature_scale(references, self._shapes.feature_axis(references[0]))
        return {
            name: worst(self._parities(comparison.computed, comparison.expected))[1]
            for name, comparison in self._comparisons.items()
        }

    def explanation(self, name: str) -> str:
        """What is wrong with the input `name`, on which the model is out of tolerance.

        The error of PyTorch in float32 on the same input tells whether the graph or the precision is to
        blame.
        """
        comparison = self._comparisons[name]
        output, parity = worst(self._parities(comparison.computed, comparison.expected))
        of_output = "" if len(self.spec.output_names) == 1 else f" of output '{output}'"
        scale = f"{self.atol:g}" if parity.scale == 1 else f"{self.atol:g}·{parity.scale:.3g}"
        text = (
            f"error {parity.max_abs:.1e}{of_output} of ONNX Runtime against float64 on {name}, "
            f"allowed is {scale} + {RTOL:g}·|y|; "
        )
        if comparison.x is None:
            return text + "a padded sample differs from the sample alone: the network reads the padding"
        dtype = self.session.metadata.dtype
        if dtype != "float32":
            return (
                f"{text}{dtype} is not precise enough for this network; export float32, or allow more "
                "with --atol"
            )
        in_torch = self._parities(self._run_float32(comparison.x), comparison.expected)[output]
        if in_torch.severity > 0.3 * parity.severity:
            cells = {getattr(module, "cell", None) for module in self.spec.module.modules()}
            advice = (
                ", or use a cell whose state stays bounded (stable, leaky)" if "graves" in cells else ""
            )
            return (
                f"{text}PyTorch in float32 is off by {in_torch.max_abs:.1e}, too, so the network itself "
                f"needs more precision than float32 has; allow more with --atol{advice}"
            )
        return (
            f"{text}PyTorch in float32 is off by {in_torch.max_abs:.1e} only, so the exported graph "
            "computes something else than the network; does its forward depend on more than its inputs?"
        )

    def _parities(
        self, computed: Mapping[str, Array], expected: Mapping[str, Float64Array]
    ) -> dict[str, Parity]:
        return {
            name: compare(computed[name], exact, self.atol, scale=self._scales[name])
            for name, exact in expected.items()
        }

    def _expected(self, cases: Mapping[str, Float32Array]) -> dict[str, dict[str, Float64Array]]:
        """The reference's outputs on each case.

        The reference computes all cases of one grid in one batch, since its time depends on the number of
        positions and hardly on the batch.
        """
        groups: dict[object, list[str]] = {}
        for name, x in cases.items():
            # Extra inputs depend on the index of a sample in its batch, so with them each case is alone.
            groups.setdefault(name if self.spec.extra_inputs else x.shape[1:], []).append(name)
        expected: dict[str, dict[str, Float64Array]] = {}
        for names in groups.values():
            x = np.concatenate([cases[name] for name in names])
            outputs = self._run_unpadded(x, self._extra_batch(len(x)))
            start = 0
            for name in names:
                end = start + len(cases[name])
                expected[name] = {output: y[start:end] for output, y in outputs.items()}
                start = end
        return expected

    def _compare_padded(self) -> dict[str, _Comparison]:
        """Samples padded with random numbers, and the same samples alone."""
        spec, rng = self.spec, np.random.default_rng(0)
        limit = spec.example_grid
        units = [extent // m for extent, m in zip(limit, spec.multiple_of, strict=True)]
        random_units = rng.integers(1, [unit + 1 for unit in units], (3, spec.ndim))
        sizes = np.asarray([units, *random_units, (1,) * spec.ndim]) * np.asarray(spec.multiple_of)
        x = rng.standard_normal(spec.x_shape(limit, len(sizes))).astype(np.float32)
        extra = self._extra_batch(len(x))
        padded = by_name(self.session(x, sizes=sizes, **extra), spec.output_names)
        comparisons = {}
        for k, size in enumerate(map(tuple, sizes.tolist())):
            valid = [slice(None)] * x.ndim
            for axis, extent in zip(spec.grid_axes, size, strict=True):
                valid[axis] = slice(extent)
            sample_extra = {name: value[k : k + 1] for name, value in extra.items()}
            alone = self._run_unpadded(x[k : k + 1][tuple(valid)], sample_extra)
            sample = self._shapes.cropped({name: y[k : k + 1] for name, y in padded.items()}, size)
            for name, y in sample.items():
                if self.session.metadata.windows[name] is None:
                    # The steps of a transcription continue into the padding, as blanks.
                    sample[name] = y[tuple(map(slice, alone[name].shape))]
            comparisons[f"{format_size(size)} in {format_size(limit)}"] = _Comparison(None, sample, alone)
        return comparisons

    def _run_model(self, x: Float32Array) -> dict[str, Array]:
        extra = self._extra_batch(len(x))
        try:
            return by_name(self.session(x, **extra), self.spec.output_names)
        except MDLSTMError as error:
            raise MDLSTMError(
                f"{type(self.spec.module).__name__} cannot be exported this way: torch fixed the batch or "
                f"an extent, and an x of shape {x.shape} does not run ({error}); export it for one grid "
                "(torch fixes the length of an nn.LSTM; use MDLSTM with ndim=1 instead)"
            ) from error

    @torch.no_grad()
    def _run_float32(self, x: Float32Array) -> dict[str, Array]:
        """The network itself."""
        inputs = self._with_required_sizes(x, self._extra_batch(len(x)))
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        result = self.spec.module(torch.from_numpy(x), **tensors)
        outputs = named_outputs(result, type(self.spec.module).__name__, self.spec.output_names)
        return {name: y.numpy() for name, y in outputs.items()}

    def _run_unpadded(self, x: Float32Array, extra: dict[str, Array]) -> dict[str, Float64Array]:
        """The reference on x without padding."""
        return by_name(self._exact(x, **self._with_required_sizes(x, extra)), self.spec.output_names)

    def _with_required_sizes(self, x: Float32Array, extra: dict[str, Array]) -> dict[str, Array]:
        grid = [x.shape[axis] for axis in self.spec.grid_axes]
        return with_required_sizes(self.spec.module, x, grid, extra)

    def _extra_batch(self, batch: int) -> dict[str, Array]:
        return {name: value.numpy() for name, value in self.spec.extra_batch(batch).items()}
