"""The kind `tag`: any number of labels for each sample. The loss is the binary cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk._util.text import printable
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.classify import by_name
from mdlstm_tk.kinds.kind import COMMON, Kind, Labels, Predict, Row, check_scores, sigmoid

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, Task, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel

SEPARATOR, THRESHOLD = ";", 0.5  # before training has chosen one
BINS = 100  # of probabilities; thresholds lie between them


class Tag(Kind):
    name = "tag"
    layout = (
        f"a folder with images and tags.csv, whose columns are file and labels (a{SEPARATOR}b), or an .npz "
        "file with x, y (N, K) of 0 and 1, and perhaps names (K,)"
    )
    defaults = COMMON | {"batch_size": 32, "augment": 1.0}
    networks = "classify"
    higher = frozenset({"f1_micro", "f1_macro"})
    answers = "rows"
    axes = "N"
    targets = "tags.csv"

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import is_npz, of_arrays, of_table, read_columns

        if is_npz(path):
            return of_arrays(path, read_columns, "bui")
        return of_table(path, self.targets, _labels, ["labels"])

    def fit(
        self, train: Sequence[Any], every: Sequence[Any], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        names = tuple(every[0])  # the columns of an array keep their order
        if any(target.keys() != every[0].keys() for target in every):
            names = tuple(sorted({name for target in every for name in target}))
        if not names or {value for target in every for value in target.values()} - {0, 1}:
            raise InputError("there are no labels, or y holds other numbers than 0 and 1")
        return Labels(len(names), names, decoding={"threshold": THRESHOLD})

    def encoder(self, spec: TaskSpec) -> Callable[[Any], Any]:
        return partial(_row, spec.classes)

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        return np.array(targets, np.float32)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(prediction, batch.y)

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        """(2, K, BINS) the samples without and with each label, by its probability; NaN has the lowest."""
        from torch import stack
        from torch.nn.functional import one_hot

        p = prediction.double().sigmoid().nan_to_num(0.0)
        bins, y = one_hot((p * BINS).long().clamp(max=BINS - 1), BINS), batch.y[..., None]
        return {"labels": stack([((1 - y) * bins).sum(0), (y * bins).sum(0)])}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        from mdlstm_tk.kinds.measures import mean, of_classes

        counts = _counts(sums["labels"], _threshold(spec.decoding))
        right, true, given = counts
        return {
            "hamming_loss": float((true + given - 2 * right).sum() / sums["labels"].sum()),
            "f1_micro": float(of_classes(counts.sum(1, keepdims=True))["f1"][0]),
            "f1_macro": mean(of_classes(counts)["f1"]),
        }

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, float]]:
        from mdlstm_tk.kinds.measures import by_output, of_classes

        measures = of_classes(_counts(sums["labels"], _threshold(spec.decoding)))
        return by_output(spec.classes, {name: measures[name] for name in ("precision", "recall", "f1")})

    def calibrate(self, predict: Predict, task: Task, folder: Path) -> Mapping[str, Any]:
        """The threshold with the largest micro F1 on validation data; of equal ones that nearest to 1/2."""
        pairs = map(predict, task.evaluation_batches("validation", 0))
        sums = [self.sums(*pair, task.spec)["labels"].numpy() for pair in pairs]
        if not sums:
            return {}
        right, true, given = np.stack(
            [_counts(np.sum(sums, axis=0), k / BINS).sum(1) for k in range(1, BINS)], axis=1
        )
        f1 = 2 * right / np.maximum(true + given, 1)
        best = max(range(1, BINS), key=lambda k: (f1[k - 1], -abs(2 * k - BINS)))
        return {"threshold": best / BINS}

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, probabilities: bool = False
    ) -> list[Row]:
        """The labels of at least the `threshold` that training has chosen; of all, the `probabilities`."""
        check_scores(y)
        threshold, rows = _threshold(metadata.more), []
        for p in sigmoid(y):
            pairs = zip(metadata.classes or (), p.tolist(), strict=True)
            labels = [name for name, value in pairs if value >= threshold]
            rows.append(
                {"labels": SEPARATOR.join(labels), **(by_name(metadata, p) if probabilities else {})}
            )
        return rows

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        from mdlstm_tk.kinds.panels import answer_panel

        threshold = _threshold(spec.decoding)
        answer, truth = (
            ", ".join(name for name, has in zip(spec.classes, row, strict=True) if has) or "no label"
            for row in (prediction[0] >= log(threshold / (1 - threshold)), batch.y[0])
        )
        return [answer_panel(batch, answer, truth, answer == truth)]


def _threshold(decoding: Mapping[str, Any]) -> float:
    return float(decoding.get("threshold", THRESHOLD))


def _labels(row: Mapping[str, str]) -> dict[str, int]:
    labels = (label.strip() for text in row.values() for label in text.split(SEPARATOR))
    return {label: 1 for label in sorted(labels) if label}


def _row(names: Sequence[str], target: Mapping[str, int]) -> list[int]:
    if others := [name for name, value in target.items() if value and name not in names]:
        raise InputError(f"the label {printable(others[0])} is none of the run")
    return [target.get(name, 0) for name in names]


def _counts(histograms: Array, threshold: float) -> Array:
    """(3, K) for each label: the samples that have it and get it, that have it, and that get it."""
    above = histograms[..., round(threshold * BINS) :].sum(-1)
    return np.stack([above[1], histograms[1].sum(-1), above.sum(0)])


KIND = Tag()
