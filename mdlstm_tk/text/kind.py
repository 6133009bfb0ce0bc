"""The kind `transcribe`: one text for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mdlstm_tk.kinds.answer import PROBABILITY_DIGITS, Answer
from mdlstm_tk.kinds.kind import ARRAYS, LINES, PAGES, Kind

if TYPE_CHECKING:
    from mdlstm_tk.runtime.ctc import Transcription
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.runtime.metadata import Metadata

EDGE_DIGITS = 1  # of pixels


@dataclass(frozen=True)
class Text(Answer):
    """The text of a sample.

    Attributes:
        transcription: the text with confidences and places.
    """

    transcription: Transcription | None = None

    @property
    def confidence(self) -> float:
        return round(self.transcription.confidence, PROBABILITY_DIGITS) if self.transcription else 0.0

    def details(self) -> dict[str, Any]:
        characters = self.transcription.characters if self.transcription else ()
        return {
            "confidence": self.confidence,
            "characters": [
                {
                    "character": each.character,
                    "left": round(each.left, EDGE_DIGITS),
                    "right": round(each.right, EDGE_DIGITS),
                    "confidence": round(each.confidence, PROBABILITY_DIGITS),
                }
                for each in characters
            ],
        }

    def fields(self, options: ResultOptions) -> list[str]:
        return [self.text, *([f"{self.confidence:.4f}"] if options.probabilities else [])]

    def columns(self, options: ResultOptions, classes: Sequence[str]) -> dict[str, Any]:
        return self.values() | ({"confidence": self.confidence} if options.probabilities else {})


class Transcribe(Kind):
    name = "transcribe"
    training_module = "mdlstm_tk.text.training"
    answers = "texts"
    formats = LINES
    options: ClassVar = {"probabilities": (*PAGES, *ARRAYS), "beam": PAGES, "lm": PAGES}
    is_printed = True
    sample_axes = 2
    axes = "N, T"
    reads_pages = True
    steps_are_columns = True

    def name_count(self, outputs: int) -> int:
        return outputs - 1  # output 0 is the blank

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        yield "classes", "" not in (metadata.classes or ()), "characters, none of which is empty"

    def check_options(self, metadata: Metadata, options: ResultOptions) -> None:
        from mdlstm_tk.runtime.ctc import check_search  # imported late: few models read texts

        check_search(options.beam, options.lm, metadata.classes or ())

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: float | None
    ) -> list[Text]:
        from mdlstm_tk.runtime.transcription import read_logits

        rows, indices = (y, range(len(y))) if y.ndim == 3 else (y[None], (None,))
        lines = [read_logits(row, metadata, options.beam, options.lm, width) for row in rows]
        return [Text(line.text, array, k, line) for line, k in zip(lines, indices, strict=True)]

    def blank(self, metadata: Metadata, options: ResultOptions) -> Answer:
        return Text("")


KIND = Transcribe()
