"""The kind `transcribe`: one text for each sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import PROBABILITY_DIGITS, Kind, Row
from mdlstm_tk.text.decoding import LM_FILE

if TYPE_CHECKING:
    from mdlstm_tk.text.character_model import CharacterModel
    from mdlstm_tk.text.ctc import Transcription

EDGE_DIGITS = 1  # of pixels


class Transcribe(Kind):
    name = "transcribe"
    training_module = "mdlstm_tk.text.transcribe_training"
    gives_rows = True
    table = "labels.tsv"
    run_files = (DECODING_FILE, LM_FILE)
    sample_axes = 2
    axes = "N, T"
    reads_lines = True

    def name_count(self, outputs: int) -> int:
        return outputs - 1  # output 0 is the blank

    def decode(  # type: ignore[override]
        self,
        y: Array,
        metadata: Metadata,
        *,
        beam: int | None = None,
        lm: CharacterModel | None = None,
        widths: tuple[int, int] | None = None,
    ) -> list[Row]:
        """The texts, with confidences, and with places in columns of x, or in pixels of the image if the
        `widths` of x and of the image are known.

        Args:
            y, metadata: of the model.
            beam: texts that a search keeps; None: 1, or 64 with a language model.
            lm: language model that the search follows.
            widths: columns of x, and pixels of its image.
        """
        from mdlstm_tk.text.transcription import check_reader, read_logits

        check_reader(metadata, beam, lm)
        return [row_of(read_logits(logits, metadata, widths, beam, lm)) for logits in y]


def row_of(line: Transcription) -> Row:
    """The answer for a line."""
    characters = [
        {
            "character": each.character,
            "left": round(each.left, EDGE_DIGITS),
            "right": round(each.right, EDGE_DIGITS),
            "confidence": round(each.confidence, PROBABILITY_DIGITS),
        }
        for each in line.characters
    ]
    confidence = round(line.confidence, PROBABILITY_DIGITS)
    return {"text": line.text, "confidence": confidence, "characters": characters}


KIND = Transcribe()
