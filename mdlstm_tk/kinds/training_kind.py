"""The questions that training asks a kind of task.

Tasks are made without PyTorch, so only the methods that compute with networks or tensors import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from mdlstm_tk.data.augmentation import distort
from mdlstm_tk.data.spec import Array, Batch, Extents, Floats, Metrics, RawSample, Sample, Split, TaskSpec
from mdlstm_tk.data.targets import TargetOptions, Targets, unchanged
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.report_kind import ReportKind

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data import Task
    from mdlstm_tk.data.samples import MemoryBudget, Survey
    from mdlstm_tk.data.user_data import UserDataTask
    from mdlstm_tk.training.job import TrainingJob
    from mdlstm_tk.training.run_folder import Run


COMMON_DEFAULTS: dict[str, Any] = {
    "size": "",
    "steps": 3000,
    "hidden": 32,
    "lr": 0.005,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup": 100,
    "clip": 1.0,
    "average": 0.99,
    "evaluate_every": 100,
    "patience": 10,
}


Sums = dict[str, "tuple[Tensor | float, float]"]
"""By name of an error: its sum, on any device, and its count."""


class TargetRule(NamedTuple):
    """The rule that the targets y of a batch keep, and the shape of the prediction for it.

    Attributes:
        dtype: a type of y's dtype.
        shape: of y.
        prediction: the shape of the prediction; None where any extent will do.
        low, high: the ends of y.
        note: more to say about y, in messages.
    """

    dtype: type[np.generic]
    shape: tuple[int, ...]
    prediction: tuple[int | None, ...]
    low: float = -inf
    high: float = inf
    note: str = ""


class TrainingKind(ReportKind, ABC):
    """A kind of task, as training and reports see it.

    Attributes:
        folder_format, array_format: the folder and the `.npz` file that a user's data may be, in words; ""
            if there is no such folder.
        target_dtypes: of y in an `.npz` file, as `numpy.dtype.kind`; "" if there is no y.
        target_files: suffixes of the files that hold targets, beside those of images.
        further_files: other files that a folder may have, by their paths in it.
        target_name: the word for the target of a sample.
        has_grid_targets: whether a target has the grid of x, with which it is cropped.
        is_cropped: whether a part of a sample has a target.
        is_distorted: whether a distorted sample has one.
        has_named_columns: whether y has numbers for each sample, in columns with names.
        has_class_folders: whether the name of a folder is the target of the images in it.
        is_planar: whether x must have two grid axes.
        is_normalized: whether the network normalises x.
        defaults: settings for a user's data, by key of `TrainConfig`.
        error_names: the names of the `measures`.
        further_measures: the measures that `summarize` adds, by name; True where higher values are better.
        next_verb: the verb of the command line for a run that has ended.
    """

    folder_format: ClassVar[str] = ""
    array_format: ClassVar[str]
    target_dtypes: ClassVar[str]
    target_files: ClassVar[tuple[str, ...]] = ()
    further_files: ClassVar[tuple[str, ...]] = ()
    target_name: ClassVar[str] = "target"
    has_grid_targets: ClassVar[bool] = False
    is_cropped: ClassVar[bool] = True
    is_distorted: ClassVar[bool] = True
    has_named_columns: ClassVar[bool] = False
    has_class_folders: ClassVar[bool] = False
    is_planar: ClassVar[bool] = False
    is_normalized: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]]
    error_names: ClassVar[tuple[str, ...]]
    further_measures: ClassVar[Mapping[str, bool]] = {}
    next_verb: ClassVar[str] = "export"

    def target_axes(self, ndim: int) -> tuple[int, ...]:
        """The numbers of axes that y may have in an `.npz` file for x with `ndim` grid axes."""
        return (1,)

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        """List the samples of a folder, and notes for the user.

        Args:
            path: the folder.
            budget: how much memory samples may take that have to be read for that.

        Raises:
            InputError: the folder has another layout.
        """
        raise InputError(f"{path} is a folder, expected {self.array_format}")

    @abstractmethod
    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Any:
        """The target of sample `index` of an `.npz` file, as `RawSample.read_y` returns it.

        Args:
            y: the targets of all samples.
            index: of the sample.
            extents: of the sample's grid.
            names: of the columns of y, if the file names them.
        """

    def survey(self, target: Any, survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        """Look at the target of a sample in the first pass over the data.

        Args:
            target: as `RawSample.read_y` returned it.
            survey_numbers: the `Moments` of a target that is an image or numbers.

        Returns:
            A summary for `fit`, and a value that is equal for equal targets: an array, or one that differs
            as text.

        Raises:
            InputError: the target cannot be used.
        """
        return target, target

    def find_files(self, path: Path) -> dict[Split, Path]:
        """Files of a folder that hold one split each, in a format of the kind; {} if there are none."""
        return {}

    def list_file(self, path: Path) -> list[RawSample]:
        """List the samples of a file that `find_files` found.

        Raises:
            InputError: it cannot be read.
        """
        return []

    def stratum(self, target: Any) -> str:
        """The group of a target; a share of each group is held out."""
        return ""

    def fit(self, targets: Sequence[Any], options: TargetOptions) -> Targets:
        """Determine outputs, classes and encoding from the targets of all samples; by default there is one
        output, and targets are used as they were read.

        Args:
            targets: summaries by `survey` of all samples; those for validation and testing follow those
                for training.
            options: of the data.

        Raises:
            InputError: there are fewer than two classes, or the targets do not fit each other.
        """
        return Targets(1, unchanged)

    def distort(
        self, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], strength: float
    ) -> list[Sample]:
        """Distorted copies of training samples; see `mdlstm_tk.data.augmentation.distort`."""
        return distort(samples, rngs, strength, self.has_grid_targets)

    def complete(
        self, task: UserDataTask, splits: Mapping[Split, Sequence[Survey]], targets: Targets
    ) -> None:
        """Set `Task.of_kind` to what the kind needs beyond the samples."""

    def widest_step(self, task: Task) -> int:
        """The columns of x that a network may join, so that every target keeps its room."""
        return task.spec.size[-1]

    def check_steps(self, columns: int | None, task: Task, remedy: str) -> list[str]:
        """Notes for the user on samples whose targets need more steps than a network makes.

        Args:
            columns: of x under one step, as for `loss`.
            task: has the samples.
            remedy: the settings that give more steps.

        Raises:
            InputError: all training samples do.
        """
        return []

    def spec_fields(self, train: Sequence[Survey], targets: Targets) -> dict[str, Any]:
        """Further fields of the `TaskSpec`, from the training samples."""
        return {}

    @abstractmethod
    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        """Join the targets of samples to `Batch.y`.

        Args:
            x: (N, *grid, C), the padded samples.
            targets: of the samples.
            pad: stacks arrays: `pad(arrays, shape, fill, dtype)` → (N, *shape).
        """

    @abstractmethod
    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        """The rule that y of a batch keeps."""

    def keeps_rule(self, y: Array) -> bool:
        """True if y keeps the note of its rule."""
        return True

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        """The mean over the samples of the loss of each sample, as a scalar.

        Args:
            prediction: float32, in the shape that the rule says.
            batch: holds the targets.
            spec: of the task.
            columns: of x under one step of the prediction; None if the network does not say it.
        """

    @abstractmethod
    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        """The errors of a prediction as {name: (sum, count)}, so that batches can be added up. Unless the
        setting `best_by` names another measure, the best checkpoint is chosen by the first one."""

    def statistics(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        """Further sums over a batch by name, for measures that are no means, such as the counts of a
        confusion matrix. They are computed in evaluations alone, and added up over batches in float64."""
        return {}

    def summarize(
        self, errors: Mapping[str, float], sums: Mapping[str, Array], spec: TaskSpec
    ) -> dict[str, float]:
        """The `further_measures` of a split; NaN where one is not defined.

        Args:
            errors: means of the `measures`.
            sums: of the `statistics` over all batches.
            spec: of the task.
        """
        return {}

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, Any]]:
        """Measures of each output, such as a class, by its name and theirs, from the sums of the
        `statistics`; None where one is not defined. For `result.json` and reports."""
        return {}

    def conclude(
        self, job: TrainingJob, step: int, split: Split
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Measure the network of a job that has been trained.

        Args:
            job: its network has the best weights.
            step: that they are of.
            split: which samples.

        Returns:
            The measures by name, and further entries of `result.json`.
        """
        from mdlstm_tk.training.evaluation import measure_split

        errors, sums = measure_split(job.network, job.task, split, job.config, job.context)
        outputs = self.outputs(sums, job.task.spec) if sums else {}
        return errors, {"outputs": outputs} if outputs else {}

    def output_meanings(self, spec: TaskSpec) -> Sequence[str | float]:
        """The meaning of each output of a network, by which weights of another one are taken over: a class,
        or a number."""
        unnamed = spec.outputs - len(spec.classes) if spec.classes else spec.outputs
        return [*range(unnamed), *spec.classes]

    def target_text(self, batch: Batch, spec: TaskSpec) -> str | None:
        """The target of a batch of one in words; None if it is no word or line."""
        return None

    def metadata(self, run: Run, step: int, spec: TaskSpec) -> dict[str, Any]:
        """Further metadata of an export of the weights of a step."""
        return {}

    def measure_array(self, prediction: Floats, batch: Batch, spec: TaskSpec) -> Metrics:
        """As `measures`, of a NumPy array."""
        from torch import from_numpy

        sums = self.measures(from_numpy(prediction), batch, spec)
        return {name: (float(total), count) for name, (total, count) in sums.items()}
