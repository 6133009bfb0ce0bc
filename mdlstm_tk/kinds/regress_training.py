"""The kind `regress`: numbers for each sample. The loss is the squared error, in units of the deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk.data.samples import MemoryBudget, Survey
from mdlstm_tk.data.spec import Array, Batch, Extents, Floats, RawSample, TaskSpec
from mdlstm_tk.data.tables import list_table
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.measures import by_output, mean_of_numbers, number_measures
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, Sums, TargetRule, TrainingKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mdlstm_tk.data import Task
    from mdlstm_tk.report.evaluation import SplitEvaluation
    from mdlstm_tk.report.panels import Panel
    from mdlstm_tk.training.config import TrainConfig


class Regress(TrainingKind):
    folder_format = "a folder with images and targets.csv, whose columns are file and one for each number"
    array_format = "an .npz file with x, numbers y (N,) or (N, K), and perhaps names (K,)"
    target_dtypes = "buif"
    further_files = ("targets.csv",)
    has_named_columns = True
    defaults = COMMON_DEFAULTS | {"batch_size": 32}
    error_names = ("nmse",)
    further_measures: ClassVar = {"r2": True}

    def target_axes(self, ndim: int) -> tuple[int, ...]:
        return (1, 2)

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        return list_table(path, "targets.csv", _read_row, self.folder_format)

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> dict[str, float]:
        return _checked(dict(zip(names, np.atleast_1d(y[index]).tolist(), strict=True)))

    def survey(self, target: dict[str, float], survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        return target, str(target)

    def fit(self, targets: Sequence[dict[str, float]], options: TargetOptions) -> Targets:
        names = tuple(targets[0])
        if other := next((each for each in targets if tuple(each) != names), None):
            raise InputError(
                f"the numbers are {', '.join(names)} in one split and {', '.join(other)} in another"
            )
        return Targets(len(names), _encode, [f"numbers of a sample: {', '.join(names)}"], names)

    def spec_fields(self, train: Sequence[Survey], targets: Targets) -> dict[str, Any]:
        numbers = np.array([list(survey.target.values()) for survey in train])
        deviations = numbers.std(axis=0)
        return {
            "target_mean": tuple(numbers.mean(axis=0).tolist()),
            "target_std": tuple(np.where(deviations > 0, deviations, 1.0).tolist()),
        }

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        return np.array(targets, np.float32)

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        shape = len(batch.x), spec.outputs
        return TargetRule(np.floating, shape, shape)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        return _standardised_error(prediction, batch, spec).square().mean()

    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        squares = _standardised_error(prediction.double(), batch, spec).square()
        return {"nmse": (squares.sum(), float(squares.numel()))}

    def statistics(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.kinds.sums import number_sums

        return {"numbers": number_sums(prediction, batch, spec)}

    def summarize(
        self, errors: Mapping[str, float], sums: Mapping[str, Array], spec: TaskSpec
    ) -> dict[str, float]:
        """The mean R² of the columns."""
        return {"r2": mean_of_numbers(number_measures(sums["numbers"])["r2"])}

    def details(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, Any]:
        return {"columns": by_output(spec, **number_measures(sums["numbers"]))}

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        from mdlstm_tk.report.panels import ShownAnswer, answer_panel

        predicted, truth = (
            ", ".join(f"{each} {value:.4g}" for each, value in zip(spec.classes, row, strict=True))
            for row in (prediction[0], batch.y[0])
        )
        return [answer_panel(batch, ShownAnswer(predicted, truth, None), name)]

    def examples_text(self, spec: TaskSpec) -> str:
        return (
            "nmse is the mean squared error, divided by the variance of each number in the training data."
        )

    def report_values(
        self,
        network: nn.Module,
        task: Task | None,
        config: TrainConfig,
        evaluation: SplitEvaluation | None,
        result: Mapping[str, Any],
        data: str,
    ) -> dict[str, Any]:
        """The measures of each column, and its predictions over the true numbers."""
        from mdlstm_tk.report.plots import svg_scatter

        if task is None or evaluation is None or evaluation.pairs is None:
            return {"outputs": result.get("columns", {})}
        names = task.spec.classes
        columns = zip(names, *(array.T for array in evaluation.pairs), strict=True)
        return {
            "outputs": by_output(task.spec, **number_measures(evaluation.sums["numbers"])),
            "figures": [svg_scatter(truth, predicted, name) for name, truth, predicted in columns],
        }


def _read_row(row: Mapping[str, str]) -> dict[str, float]:
    numbers = {}
    for name, text in row.items():
        try:
            numbers[name] = float(text)
        except ValueError:
            raise InputError(f"its {name} is {text[:40]!r}, expected a number") from None
    return _checked(numbers)


def _checked(numbers: dict[str, float]) -> dict[str, float]:
    if wrong := next((name for name, value in numbers.items() if not isfinite(value)), None):
        raise InputError(f"its {wrong} is {numbers[wrong]}, expected a finite number")
    return numbers


def _encode(target: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(target.values())


def _standardised_error(prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
    from mdlstm_tk.kinds.sums import targets_like

    return (prediction - targets_like(prediction, batch)) / prediction.new_tensor(spec.target_std)


TRAINING = Regress()
