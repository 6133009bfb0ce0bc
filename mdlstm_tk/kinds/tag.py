"""The kind `tag`: any number of labels for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdlstm_tk.kinds.answer import PROBABILITY_DIGITS, Answer
from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import ARRAYS, LINES, Kind, Width
from mdlstm_tk.runtime.metadata import Metadata

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions

SEPARATOR = ";"


@dataclass(frozen=True)
class TagMetadata(Metadata):
    """The metadata of a model that gives labels.

    Attributes:
        threshold: labels of at least this probability are given. It was chosen on validation data.
    """

    threshold: float = 0.5


@dataclass(frozen=True)
class Tags(Answer):
    """The labels of a sample.

    Attributes:
        labels: those of the sample.
        probabilities: (label, probability) of all.
    """

    labels: tuple[str, ...] = ()
    probabilities: tuple[tuple[str, float], ...] = ()

    def values(self) -> dict[str, Any]:
        return {"labels": self.text}

    def details(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "probabilities": dict(self.probabilities)}

    def columns(self, options: ResultOptions, classes: Sequence[str]) -> dict[str, Any]:
        pairs = self.probabilities if options.probabilities else ()
        return self.values() | {f"probability_{name}": value for name, value in pairs}


class Tag(Kind):
    name = "tag"
    training_module = "mdlstm_tk.kinds.tag_training"
    networks_of = "classify"
    answers = "labels"
    formats = LINES
    probabilities = ("csv", "json", *ARRAYS)
    run_files = (DECODING_FILE,)
    metadata_class = "kinds.tag:TagMetadata"
    is_printed = True
    sample_axes = 1
    axes = "N"
    table = "tags.csv"

    def name_count(self, outputs: int) -> int:
        return outputs

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        yield "threshold", isinstance(metadata, TagMetadata) and 0 < metadata.threshold < 1, "in (0, 1)"

    def scores_to_probabilities(self, y: Array, axis: int) -> Array:
        import numpy as np

        return 0.5 + 0.5 * np.tanh(0.5 * y)  # the logistic function, without overflow

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> list[Tags]:
        from mdlstm_tk.runtime.postprocessing import check_scores

        assert isinstance(metadata, TagMetadata)
        check_scores(y)
        answers = []
        for k, row in self.each_sample(self.scores_to_probabilities(y, -1), metadata):
            pairs = tuple(zip(metadata.classes or (), row.tolist(), strict=True))
            labels = tuple(name for name, value in pairs if value >= metadata.threshold)
            rounded = tuple((name, round(value, PROBABILITY_DIGITS)) for name, value in pairs)
            answers.append(Tags(SEPARATOR.join(labels), array, k, labels, rounded))
        return answers


KIND = Tag()
