"""The checks that `export_onnx` makes before it writes a file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.spec import ExportSpec, Grid
from mdlstm_tk.export.verification.inputs import odd_grids, random_inputs
from mdlstm_tk.export.verification.parity import (
    Float32Array,
    Float64Array,
    Parity,
    compare,
    compare_all,
    float64_reference,
)
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.sizes import format_size


class ExportVerifier:
    """Compares an exported model with the network that it was exported from.

    Args:
        session: the exported model.
        spec: the network and its inputs.
        atol: allowed absolute error.
    """

    def __init__(self, session: Session, spec: ExportSpec, atol: float) -> None:
        self.session = session
        self.spec = spec
        self.atol = atol
        self._exact = float64_reference(spec.module)

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Parity]:
        """Compare on `inputs`, on random inputs of each grid and on padded samples of several sizes.

        Returns:
            The error on each input, by name.
        """
        spec, cases = self.spec, dict(inputs)
        for grid in [spec.grid] if spec.grid else self._grids():
            random = random_inputs(grid, spec.channels, channels_last=spec.channels_last)
            cases |= {f"{format_size(grid)}, {name}": x for name, x in random.items()}
        # Extra inputs depend on the index of a sample in its batch, so with them batches cannot be merged.
        batches = [{name: x} for name, x in cases.items()] if spec.extra_inputs else [cases]
        results: dict[str, Parity] = {}
        for batch in batches:
            results |= compare_all(self._run_model, self._run_reference, batch, self.atol)
        return results | self._compare_padded() if spec.padded else results

    def _grids(self) -> list[Grid]:
        """The example grid and the odd grids that the network accepts; a convolution may need more rows."""
        return [self.spec.example_grid, *filter(self._accepts, odd_grids(self.spec.ndim))]

    def _accepts(self, grid: Grid) -> bool:
        try:
            self._run_reference(np.zeros(self.spec.x_shape(grid, 1), np.float32))
        except (RuntimeError, ValueError):
            return False
        return True

    def _compare_padded(self) -> dict[str, Parity]:
        """Compare samples padded with random numbers with the same samples alone."""
        spec, rng = self.spec, np.random.default_rng(0)
        limit = spec.example_grid
        random_sizes = rng.integers(1, [extent + 1 for extent in limit], (3, spec.ndim))
        sizes = np.asarray([limit, *random_sizes, (1,) * spec.ndim])
        x = rng.standard_normal(spec.x_shape(limit, len(sizes))).astype(np.float32)
        extra = self._extra_batch(len(x))
        y = self.session(x, sizes=sizes, **extra)
        shapes, results = Shapes(self.session.metadata), {}
        for k, size in enumerate(map(tuple, sizes.tolist())):
            valid = [slice(None)] * x.ndim
            for axis, extent in zip(spec.grid_axes, size, strict=True):
                valid[axis] = slice(extent)
            sample_extra = {name: value[k : k + 1] for name, value in extra.items()}
            alone = self._run_unpadded(x[k : k + 1][tuple(valid)], sample_extra)
            padded = shapes.cropped(y[k : k + 1], size)
            if spec.window is None:  # the steps of a transcription continue into the padding, as blanks
                padded = padded[tuple(map(slice, alone.shape))]
            results[f"{format_size(size)} in {format_size(limit)}"] = compare(padded, alone, self.atol)
        return results

    def _run_model(self, x: Float32Array) -> Float32Array:
        extra = self._extra_batch(len(x))
        try:
            return self.session(x, **extra)
        except MDLSTMError as error:
            raise MDLSTMError(
                f"{type(self.spec.module).__name__} cannot be exported this way: torch fixed the batch or "
                f"an extent, and an x of shape {x.shape} does not run ({error}); export it for one grid "
                "(torch fixes the length of an nn.LSTM; use MDLSTM with ndim=1 instead)"
            ) from error

    def _run_reference(self, x: Float32Array) -> Float64Array:
        return self._run_unpadded(x, self._extra_batch(len(x)))

    def _run_unpadded(self, x: Float32Array, extra: dict[str, npt.NDArray[Any]]) -> Float64Array:
        """The network on x without padding; `sizes` are given only if the network requires them."""
        parameter = inspect.signature(self.spec.module.forward).parameters.get("sizes")
        if parameter is not None and parameter.default is parameter.empty:
            extents = [x.shape[axis] for axis in self.spec.grid_axes]
            extra = {"sizes": np.asarray([extents] * len(x)), **extra}
        return self._exact(x, **extra)

    def _extra_batch(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        return {name: value.numpy() for name, value in self.spec.extra_batch(batch).items()}
