"""The kind `regress`: numbers for each sample. The loss is the squared error, in units of the deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk.data.samples import SMALLEST_SPREAD, MemoryBudget, Survey
from mdlstm_tk.data.spec import Array, Batch, Floats, RawSample, TaskSpec
from mdlstm_tk.data.tables import list_table
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.columns import ColumnsKind, Target, check_names, encode
from mdlstm_tk.kinds.measures import by_output, mean_of_numbers, number_measures
from mdlstm_tk.kinds.regress import KIND, RESERVED
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, Sums

if TYPE_CHECKING:
    from markupsafe import Markup
    from torch import Tensor

    from mdlstm_tk.report.evaluation import SplitEvaluation
    from mdlstm_tk.report.panels import Panel


SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Regress(ColumnsKind):
    folder_format = "a folder with images and targets.csv, whose columns are file and one for each number"
    array_format = "an .npz file with x, numbers y (N,) or (N, K), and perhaps names (K,)"
    target_dtypes = "buif"
    further_files = (KIND.table,)
    defaults = COMMON_DEFAULTS | {"batch_size": 32}
    error_names = ("nmse",)
    further_measures: ClassVar = {"r2": True}

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        return list_table(path, KIND.table, _read_row, self.folder_format)

    def survey(self, target: Target, survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        if wrong := [name for name, value in target.items() if not abs(value) <= LARGEST]:
            raise InputError(f"its {wrong[0]} is {target[wrong[0]]:g}, expected a finite number of float32")
        return super().survey(target, survey_numbers)

    def fit(self, targets: Sequence[Target], options: TargetOptions) -> Targets:
        names = tuple(targets[0])
        if other := next((each for each in targets if tuple(each) != names), None):
            one, another = ", ".join(names), ", ".join(other)
            raise InputError(f"the numbers are {one} in one split and {another} in another")
        check_names(names, RESERVED)
        lines = [f"numbers of a sample: {', '.join(names)}"]
        return Targets(len(names), partial(encode, names), lines, names)

    def spec_fields(self, train: Sequence[Survey], targets: Targets) -> dict[str, Any]:
        numbers = np.array([list(survey.target.values()) for survey in train])
        mean, std = numbers.mean(axis=0), numbers.std(axis=0)
        for name, *moments in zip(targets.classes, mean, std, strict=True):
            if moments[1] <= SMALLEST_SPREAD * abs(moments[0]) or moments[1] < SMALLEST:
                raise InputError(
                    f"{name} is about {moments[0]:g} in all training samples, and float32 does not resolve "
                    "more; leave it out, or subtract that number from it"
                )
        return {"target_mean": tuple(mean.tolist()), "target_std": tuple(std.tolist())}

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
        return {"r2": mean_of_numbers(number_measures(sums["numbers"])["r2"])}

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, Any]]:
        return by_output(spec, **number_measures(sums["numbers"]))

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        from mdlstm_tk.report.panels import ShownAnswer, answer_panel

        predicted, truth = (
            ", ".join(f"{each} {value:.4g}" for each, value in zip(spec.classes, row, strict=True))
            for row in (prediction[0], batch.y[0])
        )
        return [answer_panel(batch, ShownAnswer(predicted, truth, None), name)]

    def examples_text(self, spec: TaskSpec) -> str:
        return "nmse is the mean squared error, divided by the variance of a number in the training data."

    def figures(self, evaluation: SplitEvaluation, spec: TaskSpec) -> list[Markup]:
        from mdlstm_tk.report.plots import svg_scatter

        targets, predictions = evaluation.pairs or ((), ())
        columns = zip(spec.classes, np.transpose(targets), np.transpose(predictions), strict=True)
        return [svg_scatter(truth, predicted, name) for name, truth, predicted in columns]


def _read_row(row: Mapping[str, str]) -> Target:
    for name, text in row.items():
        if "_" in text:  # which Python's numbers may have
            raise InputError(f"it holds no number in the column {name}: {text!r}")
    try:
        return {name: float(text) for name, text in row.items()}
    except ValueError as error:
        raise InputError(f"it holds no number: {error}") from None


def _standardised_error(prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
    from mdlstm_tk.kinds.sums import targets_like

    error = prediction - targets_like(prediction, batch)
    return error / error.new_tensor(spec.target_std) if spec.target_std else error


TRAINING = Regress()
