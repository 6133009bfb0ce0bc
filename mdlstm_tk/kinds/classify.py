"""The kind `classify`: one class for each sample. The loss is the cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk._util.text import printable
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import COMMON, PROBABILITY_DIGITS, Kind, Labels, Row, check_scores, softmax

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel


class Classify(Kind):
    name = "classify"
    layout = "a folder with a subfolder of images for each class, or an .npz file with x and y (N,)"
    defaults = COMMON | {"batch_size": 32, "augment": 1.0}
    higher = frozenset({"f1_macro"})
    answers = "rows"
    axes = "N"

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import is_npz, of_arrays, of_class_folders, read_name

        return of_arrays(path, read_name, "buiUS") if is_npz(path) else of_class_folders(path)

    def stratum(self, summary: Any) -> str:
        return str(summary)

    def fit(
        self, train: Sequence[Any], every: Sequence[Any], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        classes = tuple(sorted({*every}, key=_natural_order))
        if len(classes) < 2:
            raise InputError(f"there is only the class '{classes[0]}' to train on, expected two or more")
        return Labels(len(classes), classes)

    def encoder(self, spec: TaskSpec) -> Callable[[Any], Any]:
        return partial(_index, spec.classes)

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        return np.array(targets, np.int64)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(prediction, batch.y)

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.kinds.measures import class_counts

        return {"classes": class_counts(prediction, batch.y)}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The share that is wrong; one minus the mean recall of the classes that there are; and the mean F1
        of those that there are or were predicted."""
        from mdlstm_tk.kinds.measures import mean, of_classes

        (right, true, _), of_class = sums["classes"], of_classes(sums["classes"])
        return {
            "error": float((true.sum() - right.sum()) / true.sum()),
            "balanced_error": 1 - mean(of_class["recall"]),
            "f1_macro": mean(of_class["f1"]),
        }

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, float]]:
        from mdlstm_tk.kinds.measures import by_output, of_classes

        measures = of_classes(sums["classes"])
        names = ("count", "recall", "precision", "f1")
        return by_output(spec.classes, {name: measures[name] for name in names})

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, top: int = 1, probabilities: bool = False
    ) -> list[Row]:
        """The `top` most likely classes; or all of them by name, with their `probabilities`."""
        if top > 1 and probabilities:  # whose columns may have one name, as of rank 2 and of the digit 2
            raise InputError("probabilities (--probabilities) are of all classes; leave out top (--top)")
        check_scores(y)
        names, rows = metadata.classes or (), []
        for scores, p in zip(y, softmax(y), strict=True):
            row: Row = {}
            for rank, c in enumerate(np.argsort(-scores, kind="stable")[:top].tolist(), 1):
                end = f"_{rank}" if rank > 1 else ""
                row |= {
                    f"label{end}": names[c],
                    f"probability{end}": round(float(p[c]), PROBABILITY_DIGITS),
                }
            rows.append(row | (by_name(metadata, p) if probabilities else {}))
        return rows

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        from mdlstm_tk.kinds.panels import answer_panel

        answer, truth = int(prediction[0].argmax()), int(batch.y[0])
        sure = f"{100 * softmax(prediction).max():.1f} %"
        return [answer_panel(batch, spec.classes[answer], spec.classes[truth], answer == truth, sure)]


def _index(classes: Sequence[str], name: str) -> int:
    if name not in classes:
        raise InputError(f"the class {printable(name)} is none of the run")
    return classes.index(name)


def by_name(metadata: Metadata, p: Array) -> Row:
    """A column for the probability of each class."""
    pairs = zip(metadata.classes or (), p.tolist(), strict=True)
    return {f"probability_{name}": round(value, PROBABILITY_DIGITS) for name, value in pairs}


def _natural_order(name: str) -> tuple[int, float, str]:
    """Sort numbers by value, before all other names."""
    return (0, float(name), name) if name.replace(".", "", 1).isdecimal() else (1, 0.0, name)


KIND = Classify()
