"""The kind `classify`: one class for each sample. The loss is the cross entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk._util.text import composed, counted
from mdlstm_tk.data.arrays import read_name
from mdlstm_tk.data.folders import find_images, image_sample, left_out, subfolders
from mdlstm_tk.data.samples import MemoryBudget
from mdlstm_tk.data.spec import Array, Batch, Extents, Floats, RawSample, TaskSpec
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.classes import ClassesKind
from mdlstm_tk.kinds.examples import spread_over_classes
from mdlstm_tk.kinds.kind import softmax
from mdlstm_tk.kinds.measures import class_measures, mean_of_numbers
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, TargetRule

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.report.panels import Panel


class Classify(ClassesKind):
    folder_format = "a folder with one subfolder of images per class"
    array_format = "an .npz file with x and names or integers y (N,)"
    target_dtypes = "buiUS"
    has_class_folders = True
    shown_measures = ("recall", "precision", "f1")
    further_measures: ClassVar = {"balanced_error": False, "f1_macro": True}
    percentages = frozenset({*ClassesKind.error_names, *further_measures, *shown_measures})
    examples = 18
    defaults = COMMON_DEFAULTS | {"batch_size": 32, "augment": 1.0}

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        samples = [
            image_sample(path, file, partial(composed, folder.name))
            for folder in subfolders(path)
            for file in find_images(folder)
        ]
        outside = sum(file.parent == path for file in find_images(path))
        return samples, left_out("images in no folder of a class", outside)

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Any:
        return read_name(y, index)

    def stratum(self, target: Any) -> str:
        return str(target)

    def fit(self, targets: Sequence[Any], options: TargetOptions) -> Targets:
        classes = tuple(sorted(set(targets), key=_natural_order))
        if len(classes) < 2:
            raise InputError(f"all samples have the class '{classes[0]}', but there must be two or more")
        counts = Counter(targets)
        listing = ", ".join(f"{name} ({counts[name]})" for name in classes)
        found = counted(len(classes), "class", "classes")
        return Targets(len(classes), classes.index, [f"{found}: {listing}"], classes)

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        return pad(targets, (), 0, np.int64)

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        n = len(batch.x)
        return TargetRule(np.int64, (n,), (n, spec.outputs), 0, spec.outputs - 1)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        from torch.nn.functional import cross_entropy

        from mdlstm_tk.kinds.sums import targets_like

        return cross_entropy(prediction, targets_like(prediction, batch))

    def choose_examples(
        self, total: int, count: int, read_targets: Callable[[], Iterable[Array]]
    ) -> list[int]:
        return spread_over_classes(np.array(list(read_targets())), count)

    def confidence(self, prediction: Floats) -> float:
        return float(softmax(prediction).max())

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        from mdlstm_tk.report.panels import ShownAnswer, answer_panel

        predicted, truth = spec.classes[int(prediction[0].argmax())], spec.classes[int(batch.y[0])]
        note = f"{100 * self.confidence(prediction):.1f} %"
        return [answer_panel(batch, ShownAnswer(predicted, truth, predicted == truth, note), name)]

    def examples_text(self, spec: TaskSpec) -> str:
        return (
            "They are spread evenly over the classes. Each is captioned with the predicted class and its "
            "probability. A wrong class is red, and the true class follows."
        )

    def target_text(self, batch: Batch, spec: TaskSpec) -> str | None:
        return spec.classes[int(batch.y[0])]

    def summarize(
        self, errors: Mapping[str, float], sums: Mapping[str, Array], spec: TaskSpec
    ) -> dict[str, float]:
        """One minus the mean share of a class that is recognised, over the classes that there are; and the
        mean F1 over those that there are or were predicted."""
        classes = class_measures(sums["confusion"])
        recall, f1 = (mean_of_numbers(classes[name]) for name in ("recall", "f1"))
        return {"balanced_error": 1 - recall, "f1_macro": f1}


def _natural_order(name: str) -> tuple[int, float, str]:
    """Sort numbers by value, before all other names."""
    return (0, float(name), name) if name.replace(".", "", 1).isdecimal() else (1, 0.0, name)


TRAINING = Classify()
