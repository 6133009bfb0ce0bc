"""Kinds of tasks whose target is one class, for each sample or at each position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mdlstm_tk.data.spec import Array, Batch, TaskSpec
from mdlstm_tk.kinds.measures import by_output, class_measures
from mdlstm_tk.kinds.training_kind import Sums, TrainingKind

if TYPE_CHECKING:
    from torch import Tensor


class ClassesKind(TrainingKind):
    """Base of such kinds.

    Attributes:
        shown_measures: those of each class that `result.json` and reports have.
    """

    error_names = ("error",)
    shown_measures: ClassVar[tuple[str, ...]]

    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        from mdlstm_tk.kinds.sums import wrong_labels

        return {"error": wrong_labels(prediction, batch)}

    def statistics(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.kinds.sums import confusion

        return {"confusion": confusion(prediction, batch)}

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, Any]]:
        confusion = sums["confusion"]
        of_class = class_measures(confusion)
        shown = {name: of_class[name] for name in self.shown_measures}
        return by_output(spec, count=confusion.sum(axis=1), **shown)
