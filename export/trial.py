"""What an export is put to before it is written: grids, batches and sizes of all kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.export.parity import (
    Doubles,
    Floats,
    Parity,
    compare,
    float64_reference,
    measure,
    odd_grids,
    random_inputs,
)
from mdlstm_tk.export.subject import Grid, Subject
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.sizes import show_size


class Trial:
    """An exported model beside the network it came from."""

    def __init__(self, session: Session, subject: Subject, atol: float) -> None:
        self.session = session
        self.subject = subject
        self.atol = atol
        self._exact = float64_reference(subject.module)

    def run(self, inputs: Mapping[str, Floats]) -> dict[str, Parity]:
        """Measure on `inputs`, on random ones of each grid, and on samples of mixed sizes."""
        results = measure(self._model, self._reference, inputs, self.atol)
        subject = self.subject
        for grid in [subject.grid] if subject.grid else self._grids():
            cases = random_inputs(grid, subject.channels, channels_last=subject.channels_last)
            for name, case in measure(self._model, self._reference, cases, self.atol).items():
                results[f"{show_size(grid)}, {name}"] = case
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
            alone = self._exact(x[k : k + 1][tuple(inner)], **own)
            padded = shapes.cropped(y[k : k + 1], size)
            results[f"{show_size(size)} in {show_size(limit)}"] = compare(padded, alone, self.atol)
        return results

    def _model(self, x: Floats) -> Floats:
        return self.session(x, **self._named(len(x)))

    def _reference(self, x: Floats) -> Doubles:
        return self._exact(x, **self._named(len(x)))

    def _named(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        return {name: value.numpy() for name, value in self.subject.named(batch).items()}
