"""The kind `tag`: any number of labels for each sample. The loss is the binary cross entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk._util.text import counted
from mdlstm_tk.data.samples import MemoryBudget, Survey
from mdlstm_tk.data.spec import Array, Batch, Floats, RawSample, Split, TaskSpec
from mdlstm_tk.data.tables import list_table
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.columns import ColumnsKind, Target, check_names, encode
from mdlstm_tk.kinds.decoding import read_decoding, write_decoding
from mdlstm_tk.kinds.kind import sigmoid
from mdlstm_tk.kinds.measures import CLASS_MEASURES, by_output, mean_of_numbers
from mdlstm_tk.kinds.tag import KIND, SEPARATOR
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, Sums

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.user_data import UserDataTask
    from mdlstm_tk.report.panels import Panel
    from mdlstm_tk.training.job import TrainingJob
    from mdlstm_tk.training.run_folder import Run

BINS = 100  # of probabilities; thresholds lie between them
DEFAULT = {"threshold": 0.5}


class Tag(ColumnsKind):
    folder_format = f"a folder with images and tags.csv, whose columns are file and labels (a{SEPARATOR}b)"
    array_format = "an .npz file with x, y (N, K) of 0 and 1, and perhaps names (K,)"
    target_dtypes = "bui"
    further_files = (KIND.table,)
    bounds = (0, 1)
    defaults = COMMON_DEFAULTS | {"batch_size": 32, "augment": 1.0}
    error_names = ("hamming_loss",)
    further_measures: ClassVar = {"f1_micro": True, "f1_macro": True}
    percentages = frozenset({*error_names, *further_measures, *CLASS_MEASURES})

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        return list_table(path, KIND.table, _read_row, self.folder_format, ["labels"])

    def fit(self, targets: Sequence[Target], options: TargetOptions) -> Targets:
        names = tuple(targets[0])  # the columns of an array keep their order, whatever that of the samples
        if others := [target for target in targets if target.keys() != targets[0].keys()]:
            if options.preprocessing is None:  # of arrays, whose columns say who lacks a label
                one, another = ", ".join(names), ", ".join(others[0])
                raise InputError(f"the labels are {one} in one split and {another} in another")
            names = tuple(sorted({name for target in targets for name in target}))
        if not names or any(SEPARATOR in name for name in names):
            raise InputError(f"the labels are {names!s:.80}, expected some, without '{SEPARATOR}'")
        if not {0, 1} >= {value for target in targets for value in target.values()}:
            raise InputError("y holds other numbers than 0 and 1")
        check_names(names)
        counts = (f"{name} ({sum(target.get(name, 0) for target in targets)})" for name in names)
        lines = [f"{counted(len(names), 'label')}: {', '.join(counts)}"]
        return Targets(len(names), partial(encode, names), lines, names)

    def complete(
        self, task: UserDataTask, splits: Mapping[Split, Sequence[Survey]], targets: Targets
    ) -> None:
        learned = {name for survey in splits["train"] for name, value in survey.target.items() if value}
        if absent := [name for name in targets.classes if name not in learned]:
            task.summary = [*task.summary, f"labels without samples to train on: {', '.join(absent)}"]

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        from mdlstm_tk.kinds.sums import targets_like

        return binary_cross_entropy_with_logits(prediction, targets_like(prediction, batch))

    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        """The share of labels that are wrong."""
        from mdlstm_tk.kinds.sums import targets_like

        least = math.log(spec.threshold / (1 - spec.threshold))
        wrong = (prediction >= least) != (targets_like(prediction, batch) > 0)
        wrong |= prediction.isnan()
        return {"hamming_loss": (wrong.sum(), float(wrong.numel()))}

    def statistics(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        """(2, K, BINS) the samples without and with each label, by its probability."""
        from torch import stack
        from torch.nn.functional import one_hot

        from mdlstm_tk.kinds.sums import targets_like

        probabilities = prediction.double().sigmoid().nan_to_num(0.0)
        bins = one_hot((probabilities * BINS).long().clamp(max=BINS - 1), BINS)
        has_label = targets_like(prediction, batch)[..., None]  # (N, K, 1)
        return {"histograms": stack([((1 - has_label) * bins).sum(0), (has_label * bins).sum(0)])}

    def summarize(
        self, errors: Mapping[str, float], sums: Mapping[str, Array], spec: TaskSpec
    ) -> dict[str, float]:
        right, given, true = _counts(sums, spec)
        micro = mean_of_numbers(_ratio(2 * right.sum(keepdims=True), (given + true).sum(keepdims=True)))
        return {"f1_micro": micro, "f1_macro": mean_of_numbers(_ratio(2 * right, given + true))}

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, Any]]:
        right, given, true = _counts(sums, spec)
        f1 = _ratio(2 * right, given + true)
        return by_output(spec, precision=_ratio(right, given), recall=_ratio(right, true), f1=f1)

    def conclude(
        self, job: TrainingJob, step: int, split: Split
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Choose the threshold on the validation data, and measure with it."""
        from mdlstm_tk.training.evaluation import measure_split

        _, sums = measure_split(job.network, job.task, "validation", job.config, job.context)
        threshold = _best_threshold(sums["histograms"]) if sums else DEFAULT["threshold"]
        if job.context.is_main:
            write_decoding(job.run, {"threshold": threshold}, step)
        task = copy(job.task)
        task.spec = replace(task.spec, threshold=threshold)
        errors, details = super().conclude(replace(job, task=task), step, split)
        return errors, {"threshold": threshold, **details}

    def metadata(self, run: Run, step: int, spec: TaskSpec) -> dict[str, Any]:
        return read_decoding(run, DEFAULT, step)

    def decoded_spec(self, spec: TaskSpec, run: Run, step: int) -> TaskSpec:
        return replace(spec, threshold=read_decoding(run, DEFAULT, step)["threshold"])

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        from mdlstm_tk.report.panels import ShownAnswer, answer_panel

        names, values = spec.classes, sigmoid(prediction[0])
        shown = (
            f"{name} {100 * p:.0f} %" for name, p in zip(names, values, strict=True) if p >= spec.threshold
        )
        truth = (name for name, y in zip(names, batch.y[0], strict=True) if y)
        answer = ShownAnswer(", ".join(shown) or "no label", ", ".join(truth) or "no label", None)
        return [answer_panel(batch, answer, name)]

    def examples_text(self, spec: TaskSpec) -> str:
        return f"A sample gets the labels of a probability of at least {100 * spec.threshold:.0f} %."


def _read_row(row: Mapping[str, str]) -> Target:
    labels = (label.strip() for text in row.values() for label in text.split(SEPARATOR))
    return {label: 1 for label in sorted(labels) if label}


def _counts(sums: Mapping[str, Array], spec: TaskSpec) -> tuple[Array, Array, Array]:
    """The samples that have a label and get it, that get it, and that have it, of each label (K,)."""
    histograms = sums["histograms"]
    above = histograms[..., round(spec.threshold * BINS) :].sum(-1)  # (2, K)
    return above[1], above.sum(0), histograms[1].sum(-1)


def _best_threshold(histograms: Array) -> float:
    """The threshold with the largest micro F1; of equal ones that which is nearest to one half."""
    above = histograms.sum(1)[:, ::-1].cumsum(1)[:, ::-1]  # (2, BINS): the labels from each bin on
    f1 = _ratio(2 * above[1], above.sum(0) + histograms[1].sum())
    order = sorted(range(1, BINS), key=lambda k: (-np.nan_to_num(f1[k]), abs(2 * k - BINS)))
    return order[0] / BINS


def _ratio(part: Array, whole: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return part / whole  # NaN for 0 of 0


TRAINING = Tag()
