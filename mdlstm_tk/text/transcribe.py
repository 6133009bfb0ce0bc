"""The kind `transcribe`: one text for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.kinds.answer import PROBABILITY_DIGITS, Answer
from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import ARRAYS, LINES, Kind, OpenModel, Width
from mdlstm_tk.kinds.options import Option
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.text_order import Direction
from mdlstm_tk.text.decoding import LM_FILE, Decoding
from mdlstm_tk.text.documents import OVERLAY, PAGES

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.text.ctc import Transcription

EDGE_DIGITS = 1  # of pixels


@dataclass(frozen=True)
class RecogniserMetadata(Metadata):
    """The metadata of a recogniser. Its classes are the characters of outputs 1, 2, …; output 0 is the
    blank.

    Attributes:
        text_direction: the direction in which most texts run; None: texts are in the order in which an
            image shows them.
        temperature, lm_weight, character_bonus, lm_temperature: how texts are read from its outputs; see
            `Decoding`. They were chosen on validation data.
    """

    text_direction: Direction | None = None
    temperature: float = Decoding.temperature
    lm_weight: float = Decoding.lm_weight
    character_bonus: float = Decoding.character_bonus
    lm_temperature: float = Decoding.lm_temperature

    @property
    def decoding(self) -> Decoding:
        """The numbers by which texts are read."""
        return Decoding(self.temperature, self.lm_weight, self.character_bonus, self.lm_temperature)


@dataclass(frozen=True)
class Text(Answer):
    """The text of a sample.

    Attributes:
        transcription: the text with confidences and places.
    """

    transcription: Transcription = field(kw_only=True)

    @property
    def confidence(self) -> float:
        return round(self.transcription.confidence, PROBABILITY_DIGITS)

    def details(self) -> dict[str, Any]:
        return {
            "confidence": self.confidence,
            "characters": [
                {
                    "character": each.character,
                    "left": round(each.left, EDGE_DIGITS),
                    "right": round(each.right, EDGE_DIGITS),
                    "confidence": round(each.confidence, PROBABILITY_DIGITS),
                }
                for each in self.transcription.characters
            ],
        }

    def fields(self, options: ResultOptions) -> list[str]:
        return [self.text, *([f"{self.confidence:.4f}"] if options.probabilities else [])]

    def columns(self, options: ResultOptions, classes: Sequence[str]) -> dict[str, Any]:
        return self.values() | ({"confidence": self.confidence} if options.probabilities else {})


class Transcribe(Kind):
    name = "transcribe"
    training_module = "mdlstm_tk.text.transcribe_training"
    answers = "texts"
    formats = LINES
    documents = PAGES
    table = "labels.tsv"
    probabilities = (*documents.formats, *ARRAYS)
    options = (
        Option(
            "beam",
            documents.formats,
            "Texts that are compared while a line is read.",
            default="1, or 64 with a language model",
        ),
        Option(
            "lm",
            documents.formats,
            "Language model that texts follow: an ARPA file of characters, such as lm.arpa.gz of a run.",
            Path,
            "FILE",
            place="text.character_model:CharacterModel",
        ),
        Option(
            "line_model",
            documents.formats,
            "Model of kind baselines, which finds the lines of images that have no page beside them.",
            Path,
            "FILE",
            place="runtime.session:Session",
            of_documents=True,
        ),
        OVERLAY,
    )
    metadata_class = "text.transcribe:RecogniserMetadata"
    run_files = (DECODING_FILE, LM_FILE)
    is_printed = True
    sample_axes = 2
    axes = "N, T"
    steps_are_columns = True

    def name_count(self, outputs: int) -> int:
        return outputs - 1  # output 0 is the blank

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        assert isinstance(metadata, RecogniserMetadata)
        are_texts = all(each and is_plain_text(each) for each in metadata.classes or ())
        yield "classes", are_texts, "characters, none of which is empty or a control character"
        for name, value in asdict(metadata.decoding).items():
            low, rule = (
                (0, "a positive number") if name.endswith("temperature") else (-inf, "a finite number")
            )
            yield name, low < value < inf, rule

    def has_documents_in_images(self, options: Mapping[str, Any]) -> bool:
        return "line_model" in options

    def prepare(
        self, options: ResultOptions, metadata: Metadata, open_model: OpenModel | None = None
    ) -> ResultOptions:
        from mdlstm_tk.text.character_model import CharacterModel  # imported late: few models read texts
        from mdlstm_tk.text.ctc import check_search, warn_of_lacking

        assert isinstance(metadata, RecogniserMetadata)
        lm = options.of_kind.get("lm")
        if isinstance(lm, str | Path):
            lm = CharacterModel.load(lm)
        search = metadata.classes or (), metadata.text_direction
        check_search(options.of_kind.get("beam"), lm, *search)
        warn_of_lacking(lm, *search)
        of_kind = {**options.of_kind, "lm": lm}
        if finder := of_kind.get("line_model"):
            from mdlstm_tk.text.found_pages import check_finder

            assert open_model is not None  # `decode` takes no options of documents
            finder = open_model(Path(finder)) if isinstance(finder, str | Path) else finder
            check_finder(finder)
            of_kind["line_model"] = finder
        return options._replace(of_kind=of_kind)

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> list[Text]:
        from mdlstm_tk.text.transcription import read_logits

        search = {name: options.of_kind.get(name) for name in ("beam", "lm")}
        samples = self.each_sample(y, metadata)
        lines = [(k, read_logits(logits, metadata, width, **search)) for k, logits in samples]
        return [Text(line.text, array, k, transcription=line) for k, line in lines]


KIND = Transcribe()
