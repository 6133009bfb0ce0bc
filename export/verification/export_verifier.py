"""What an export is put to before it is written: grids, batches and sizes of all kinds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.spec import Grid, Subject
from mdlstm_tk.export.verification.inputs import odd_grids, random_inputs
from mdlstm_tk.export.verification.parity import (
    Doubles,
    Floats,
    Parity,
    compare,
    float64_reference,
    measure,
)
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.sizes import format_size


class Trial:
    """An exported model beside the network it came from."""

    def __init__(self, session: Session, subject: Subject, atol: float) -> None:
        self.session = session
        self.subject = subject
        self.atol = atol
        self._exact = float64_reference(subject.module)

    def run(self, inputs: Mapping[str, Floats]) -> dict[str, Parity]:
        """Measure on `inputs`, on random ones of each grid, and on samples of mixed sizes."""
        subject, cases = self.subject, dict(inputs)
        for grid in [subject.grid] if subject.grid else self._grids():
            drawn = random_inputs(grid, subject.channels, channels_last=subject.channels_last)
            cases |= {f"{format_size(grid)}, {name}": x for name, x in drawn.items()}
        # What further inputs hold depends on a sample's place in its batch, so batches stay what they are.
        parts = [{name: x} for name, x in cases.items()] if subject.others else [cases]
        results: dict[str, Parity] = {}
        for part in parts:
            results |= measure(self._model, self._reference, part, self.atol)
        return results | self._sizes() if subject.sizes else results

    def _grids(self) -> list[Grid]:
        """Odd ones, of those that the network takes: a convolution may need a few rows."""
        return [self.subject.example_grid, *filter(self._takes, odd_grids(self.subject.ndim))]

    def _takes(self, grid: Grid) -> bool:
        try:
            self._reference(np.zeros(self.subject.shape(grid, 1), np.float32))
        except (RuntimeError, ValueError):
            return False
        return True

    def _sizes(self) -> dict[str, Parity]:
        """Padded samples, with other numbers where the padding is, against the samples alone."""
        subject, rng = self.subject, np.random.default_rng(0)
        limit = subject.example_grid
        drawn = rng.integers(1, [extent + 1 for extent in limit], (3, subject.ndim))
        sizes = np.asarray([limit, *drawn, (1,) * subject.ndim])
        x = rng.standard_normal(subject.shape(limit, len(sizes))).astype(np.float32)
        named = self._named(len(x))
        y = self.session(x, sizes=sizes, **named)
        shapes, results = Shapes(self.session.metadata), {}
        for k, size in enumerate(map(tuple, sizes.tolist())):
            inner = [slice(None)] * x.ndim
            for axis, extent in zip(subject.grid_axes, size, strict=True):
                inner[axis] = slice(extent)
            own = {name: value[k : k + 1] for name, value in named.items()}
            alone = self._alone(x[k : k + 1][tuple(inner)], own)
            padded = shapes.cropped(y[k : k + 1], size)
            if subject.window is None:  # a text's steps go on into the padding, and say blank
                padded = padded[tuple(map(slice, alone.shape))]
            results[f"{format_size(size)} in {format_size(limit)}"] = compare(padded, alone, self.atol)
        return results

    def _model(self, x: Floats) -> Floats:
        named = self._named(len(x))
        try:
            return self.session(x, **named)
        except MDLSTMError as error:
            raise MDLSTMError(
                f"{type(self.subject.module).__name__} cannot be exported so: torch fixed the batch or an "
                f"extent in it, and x {x.shape} does not run ({error}); export it for one grid "
                "(of an nn.LSTM torch fixes the length; use MDLSTM with ndim=1)"
            ) from error

    def _reference(self, x: Floats) -> Doubles:
        return self._alone(x, self._named(len(x)))

    def _alone(self, x: Floats, named: dict[str, npt.NDArray[Any]]) -> Doubles:
        """The network's y for x without padding: without sizes, unless it must have them."""
        parameter = inspect.signature(self.subject.module.forward).parameters.get("sizes")
        if parameter is not None and parameter.default is parameter.empty:
            extents = [x.shape[axis] for axis in self.subject.grid_axes]
            named = {"sizes": np.asarray([extents] * len(x)), **named}
        return self._exact(x, **named)

    def _named(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        return {name: value.numpy() for name, value in self.subject.named(batch).items()}
