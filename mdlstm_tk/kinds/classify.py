"""The kind `classify`: one class for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdlstm_tk.errors import Argument, InputError
from mdlstm_tk.kinds.answer import PROBABILITY_DIGITS, Answer
from mdlstm_tk.kinds.kind import ARRAYS, LINES, Kind, OpenModel, Width
from mdlstm_tk.kinds.options import Option

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.runtime.metadata import Metadata


@dataclass(frozen=True)
class Label(Answer):
    """The label of a sample.

    Attributes:
        probabilities: (class, probability) of the most likely classes, in decreasing order.
    """

    probabilities: tuple[tuple[str, float], ...] = ()

    def values(self) -> dict[str, Any]:
        return {"label": self.text, "probability": self.probabilities[0][1]}

    def details(self) -> dict[str, Any]:
        return {"probabilities": dict(self.probabilities)} if len(self.probabilities) > 1 else {}

    def fields(self, options: ResultOptions) -> list[str]:
        if "top" not in options.of_kind:
            return [self.text]
        return [field for label, p in self.probabilities for field in (label, f"{p:.4f}")]

    def columns(self, options: ResultOptions, classes: Sequence[str]) -> dict[str, Any]:
        columns = self.values()
        if options.probabilities:
            by_class = dict(self.probabilities)
            return columns | {f"probability_{name}": by_class[name] for name in classes}
        for rank, (label, probability) in enumerate(self.probabilities[1:], start=2):
            columns |= {f"label_{rank}": label, f"probability_{rank}": probability}
        return columns


class Classify(Kind):
    name = "classify"
    training_module = "mdlstm_tk.kinds.classify_training"
    answers = "labels"
    formats = LINES
    probabilities = ("csv", "json", *ARRAYS)
    options = (
        Option("top", LINES, "Name the K most likely classes with their probabilities.", metavar="K"),
    )
    is_printed = True
    sample_axes = 1
    axes = "N"

    def name_count(self, outputs: int) -> int:
        return outputs

    def prepare(
        self, options: ResultOptions, metadata: Metadata, open_model: OpenModel | None = None
    ) -> ResultOptions:
        if options.probabilities and "top" in options.of_kind:
            some = " includes all classes, ", Argument("top"), " only some; give one of them"
            raise InputError(Argument("probabilities", True), *some)
        return options

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> list[Label]:
        import numpy as np

        from mdlstm_tk.runtime.postprocessing import check_scores, probabilities

        check_scores(y)
        classes, top = (
            metadata.classes or (),
            metadata.outputs if options.probabilities else options.of_kind.get("top", 1),
        )
        answers = []
        for k, row in self.each_sample(probabilities(y), metadata):
            order = np.argsort(-row, kind="stable")[:top].tolist()
            ranked = tuple((classes[c], round(float(row[c]), PROBABILITY_DIGITS)) for c in order)
            answers.append(Label(ranked[0][0], array, k, ranked))
        return answers


KIND = Classify()
