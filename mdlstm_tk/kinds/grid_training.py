"""The kind `grid`: numbers at every position. The loss is the mean squared error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk._util.text import counted
from mdlstm_tk.data.arrays import read_numbers
from mdlstm_tk.data.folders import list_pairs
from mdlstm_tk.data.images import read_pixels
from mdlstm_tk.data.samples import (
    MemoryBudget,
    Survey,
    channel_moments,
    describe_mixed_scales,
    describe_unresolved,
)
from mdlstm_tk.data.spec import Array, Batch, Extents, Floats, RawSample, Split, TaskSpec
from mdlstm_tk.data.targets import TargetOptions, Targets, unchanged
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.kinds.kind import KIND
from mdlstm_tk.kinds.measures import mean_of_numbers, number_measures
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, Sums, TargetRule, TrainingKind

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.user_data import UserDataTask
    from mdlstm_tk.report.panels import Panel


class Grid(TrainingKind):
    folder_format = "a folder with images/ and targets/"
    array_format = "an .npz file with x and y, each (N, H, W) or (N, H, W, C), or with one axis more"
    target_dtypes = "buif"
    has_grid_targets = True
    is_distorted = False
    error_names = ("mse",)
    further_measures: ClassVar = {"rmse": False, "r2": True}
    examples = 3
    pictured = 4
    defaults = COMMON_DEFAULTS | {"directions": "all"}

    def target_axes(self, ndim: int) -> tuple[int, ...]:
        return ndim + 1, ndim + 2

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        return list_pairs(path, KIND.target_folder, _read_target, self.folder_format)

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Any:
        return read_numbers(y if y.ndim > len(extents) + 1 else y[..., None], index, extents)

    def survey(self, target: Any, survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        return survey_numbers(target), target

    def fit(self, targets: Sequence[Any], options: TargetOptions) -> Targets:
        channels = {target.channels for target in targets}
        outputs = max(target.channels for target in targets[: options.trained])
        if options.preprocessing is not None:
            return Targets(outputs, Preprocessing(outputs, options.preprocessing.resize))
        if len(channels) > 1:
            raise InputError(
                f"y has {counted(min(channels), 'channel')} in one split and {max(channels)} in another"
            )
        return Targets(outputs, unchanged)

    def complete(
        self, task: UserDataTask, splits: Mapping[Split, Sequence[Survey]], targets: Targets
    ) -> None:
        moments = [survey.target for survey in splits["train"]]
        are_images = task.spec.preprocessing is not None
        notes = describe_unresolved("y", moments, targets.outputs, are_images)
        surveys = [survey for each in splits.values() for survey in each]
        notes += describe_mixed_scales("target", surveys, [survey.target for survey in surveys])
        task.summary = [*task.summary, *notes]

    def spec_fields(self, train: Sequence[Survey], targets: Targets) -> dict[str, Any]:
        mean, std = channel_moments([survey.target for survey in train], targets.outputs)
        return {"target_mean": mean, "target_std": std}

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        return pad(targets, (*x.shape[1:-1], *np.shape(targets[0])[-1:]), 0, np.float32)

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        shape = *batch.x.shape[:-1], spec.outputs
        return TargetRule(np.floating, shape, shape)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        from mdlstm_tk.kinds.sums import mean_of_positions, targets_like

        error = prediction - targets_like(prediction, batch)
        if spec.target_std:
            error = error / error.new_tensor(spec.target_std)
        return mean_of_positions(error.square(), batch)

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        from mdlstm_tk.report import panels

        x = panels.visible(batch.x, batch)
        output, target = (panels.visible(each, batch)[..., 0] for each in (prediction, batch.y))
        input_range = "" if x.shape[-1] == 3 else panels.format_range(*panels.limits_of(x[..., 0]))
        error, limits = np.abs(output - target), panels.limits_of(target)
        shown = (
            ("prediction", output, limits, "viridis"),
            ("truth", target, limits, "viridis"),
            ("error", error, (0.0, float(error.max())), "magma"),
        )
        return [
            panels.Panel("input", panels.draw_input(x), input_range, name),
            *(
                panels.Panel(each, panels.draw_values(values, *ends, colors), panels.format_range(*ends))
                for each, values, ends, colors in shown
            ),
        ]

    def examples_text(self, spec: TaskSpec) -> str:
        outputs = counted(spec.outputs, "output")
        first = f" Of {outputs}, the first is shown." if spec.outputs > 1 else ""
        return f"Prediction and truth share a color scale; the error is their absolute difference.{first}"

    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        from mdlstm_tk.kinds.sums import sum_of_positions, targets_like

        error = prediction.double() - targets_like(prediction, batch)
        return {"mse": sum_of_positions(error.square(), batch)}

    def statistics(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.kinds.sums import number_sums

        return {"numbers": number_sums(prediction, batch, spec)}

    def summarize(
        self, errors: Mapping[str, float], sums: Mapping[str, Array], spec: TaskSpec
    ) -> dict[str, float]:
        """The square root of the mean squared error, and the mean R² of the outputs."""
        r2 = mean_of_numbers(number_measures(sums["numbers"])["r2"])
        return {"rmse": sqrt(errors["mse"]), "r2": r2}


def _read_target(file: Path) -> Array:
    return read_pixels(file, "its target")


TRAINING = Grid()
