"""The kind `grid`: numbers at every position. The loss is the mean squared error, of images and arrays in
units of the deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.kinds.kind import COMMON, Kind, Labels

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel


class Grid(Kind):
    name = "grid"
    layout = "a folder with images/ and targets/, or an .npz file with x and numbers y of the grid of x"
    defaults = COMMON | {"directions": "all"}
    per_position = True
    higher = frozenset({"r2"})
    targets = "targets"

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import is_npz, of_arrays, of_pairs, read_pixels

        if is_npz(path):
            return of_arrays(path, _read_numbers, "buif", has_grid=True)
        return of_pairs(path, self.targets, partial(read_pixels, label="its target"))

    def summary(self, target: Array) -> Any:
        from mdlstm_tk.data.scan import Moments
        from mdlstm_tk.io.images import scale

        # Decoded grey images have two axes, and further axes are those of numbers.
        moments = Moments.of(scale(target if target.ndim > 2 else target[..., None]))
        if not np.isfinite(moments.squares).all():
            raise InputError("its target contains NaN or infinite values")
        return moments

    def fit(
        self, train: Sequence[Any], every: Sequence[Any], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        from mdlstm_tk.data.scan import mean_and_std

        mean, std = mean_and_std(train)
        if prepare is None and any(len(each.total) != len(mean) for each in every):
            raise InputError("y has other channels in one split than in another")
        return Labels(len(mean), mean=mean, std=std)

    def encoder(self, spec: TaskSpec) -> Callable[[Any], Any] | None:
        from mdlstm_tk.io.images import Preprocessing

        images = spec.preprocessing
        return Preprocessing(spec.outputs, images.resize) if images else None

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        from mdlstm_tk.data.task import pad

        return pad(targets, 0, np.float32)

    def distort(self, samples: Sequence[Any], rngs: Sequence[Any], strength: float) -> list[Any]:
        raise InputError("augment distorts x, but no targets that are numbers; use 0")

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        from mdlstm_tk.kinds.measures import check_shape, mean_of_positions

        check_shape(prediction, batch.y)
        error = prediction - batch.y
        if spec.target_std:
            error = error / error.new_tensor(spec.target_std)
        return mean_of_positions(error.square(), batch)

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.kinds.measures import number_sums

        return {"numbers": number_sums(prediction, batch, spec)}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The squared error, and the mean R² of the outputs. Of several outputs, which may differ in scale,
        the error in units of the deviation comes first."""
        from mdlstm_tk.kinds.measures import mean, of_numbers

        count, _, _, errors, _ = sums["numbers"].T
        mse = float(errors.sum() / count.sum())
        values = {"mse": mse, "rmse": sqrt(mse), "r2": mean(of_numbers(sums["numbers"])["r2"])}
        if len(errors) > 1 and spec.target_std:
            return {"nmse": float((errors / count / np.square(spec.target_std)).mean()), **values}
        return values

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, float]]:
        from mdlstm_tk.kinds.measures import by_output, of_numbers

        names = [f"output {k}" for k in range(spec.outputs)]
        return by_output(names, of_numbers(sums["numbers"])) if spec.outputs > 1 else {}

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        from mdlstm_tk.kinds.panels import Panel, draw_input, draw_values, visible

        x = visible(batch.x, batch)
        output, target = (visible(each, batch)[..., 0] for each in (prediction, batch.y))
        error, ends = np.abs(output - target), (float(target.min()), float(target.max()))
        return [
            Panel("input", draw_input(x)),
            Panel("prediction", draw_values(output, *ends)),
            Panel(f"truth  {ends[0]:.3g} … {ends[1]:.3g}", draw_values(target, *ends)),
            Panel(f"error  0 … {error.max():.3g}", draw_values(error, 0.0, float(error.max()), "magma")),
        ]


def _read_numbers(y: Array, k: int, grid: tuple[int, ...]) -> Array:
    target: Array = y[k][tuple(map(slice, grid))].astype(np.float32)
    return target if target.ndim > len(grid) else target[..., None]


KIND = Grid()
