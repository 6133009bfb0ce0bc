"""The kind `regress`: numbers for each sample. The loss is the squared error, in units of the deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import COMMON, Kind, Labels, Row

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel

SMALLEST_SPREAD = 32 * float(np.finfo(np.float32).eps)  # deviation, as a share of the mean


class Regress(Kind):
    name = "regress"
    layout = (
        "a folder with images and targets.csv, whose columns are file and one for each number, or an .npz "
        "file with x, numbers y (N,) or (N, K), and perhaps names (K,)"
    )
    defaults = COMMON | {"batch_size": 32}
    networks = "classify"
    higher = frozenset({"r2"})
    answers = "rows"
    axes = "N"
    targets = "targets.csv"

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import is_npz, of_arrays, of_table, read_columns

        if is_npz(path):
            return of_arrays(path, read_columns, "buif")
        return of_table(path, self.targets, _numbers)

    def summary(self, target: dict[str, float]) -> Any:
        with np.errstate(over="ignore"):
            numbers = np.array([*target.values()]).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise InputError(f"its numbers are {target}, expected finite ones of float32")
        return target

    def fit(
        self, train: Sequence[Any], every: Sequence[Any], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        names = tuple(train[0])  # of columns, whose order may differ between tables
        if not names or any(each.keys() != train[0].keys() for each in every):
            raise InputError(f"the numbers are {', '.join(names)} in one sample, and others in another")
        numbers = np.array([[each[name] for name in names] for each in train])
        mean, std = numbers.mean(axis=0), numbers.std(axis=0)
        constant = (std <= SMALLEST_SPREAD * np.abs(mean)) | (std < np.finfo(np.float32).tiny)
        if constant.any():
            name = names[constant.argmax()]
            raise InputError(
                f"{name} is the same in all training samples, as far as float32 tells; leave it out"
            )
        return Labels(len(names), names, (*mean.tolist(),), (*std.tolist(),))

    def encoder(self, spec: TaskSpec) -> Callable[[Any], Any]:
        return partial(_row, spec.classes)

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        return np.array(targets, np.float32)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        from mdlstm_tk.kinds.measures import check_shape

        check_shape(prediction, batch.y)
        error = prediction - batch.y
        if spec.target_std:
            error = error / error.new_tensor(spec.target_std)
        loss: Tensor = error.square().mean()
        return loss

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.kinds.measures import number_sums

        return {"numbers": number_sums(prediction, batch, spec)}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        from mdlstm_tk.kinds.measures import mean, of_numbers

        count, _, _, errors, _ = sums["numbers"].T
        nmse = float((errors / count / np.square(spec.target_std or 1.0)).mean())
        return {"nmse": nmse, "r2": mean(of_numbers(sums["numbers"])["r2"])}

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, float]]:
        from mdlstm_tk.kinds.measures import by_output, of_numbers

        return by_output(spec.classes, of_numbers(sums["numbers"]))

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(self, y: Array, metadata: Metadata) -> list[Row]:  # type: ignore[override]
        if not np.isfinite(y).all():
            raise InputError(
                "the numbers hold NaN or infinity: the model diverged, or states overflow here"
            )
        shortest = ([float(str(value)) for value in row] for row in y)  # that identify them: 0.1 for 0.1
        return [dict(zip(metadata.classes or (), row, strict=True)) for row in shortest]

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        from mdlstm_tk.kinds.panels import answer_panel

        answer, truth = (
            ", ".join(f"{name} {value:.4g}" for name, value in zip(spec.classes, row, strict=True))
            for row in (prediction[0], batch.y[0])
        )
        return [answer_panel(batch, answer, truth)]


def _row(names: Sequence[str], target: Mapping[str, float]) -> list[float]:
    """The numbers of a target, in the order of the columns."""
    if missing := [name for name in names if name not in target]:
        raise InputError(f"it has no {missing[0]}")
    return [float(target[name]) for name in names]


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    try:
        return {name: float(text.replace("_", "?")) for name, text in row.items()}  # Python takes 1_000
    except ValueError as error:
        raise InputError(f"its row holds no number: {error}") from None


KIND = Regress()
