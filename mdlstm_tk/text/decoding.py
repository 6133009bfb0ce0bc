"""The numbers by which texts are read from the outputs of a recogniser; training chooses them for a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.decoding import DECODING_FILE, read_decoding

if TYPE_CHECKING:
    from mdlstm_tk.training.run_folder import Run

LM_FILE = "lm.arpa.gz"  # a character model of the training texts
BEAM = 64  # texts that a search with a language model keeps at each step, if nothing else is asked for


@dataclass(frozen=True)
class Decoding:
    """The numbers that decide how texts are read; see `mdlstm_tk.text.ctc`.

    Attributes:
        temperature: above 0; divides the logits to calibrate the confidences: of the characters read at
            0.9, nine in ten are right.
        lm_weight: weight of log P(text) by a language model, beside log P(text | image).
        character_bonus: added to the score (in nats) for each character if there is a language model, to
            offset its preference for short texts.
        lm_temperature: above 0; calibrates the confidences of texts that were read with a language model.
    """

    temperature: float = 1.0
    lm_weight: float = 0.6
    character_bonus: float = 1.0
    lm_temperature: float = 1.0

    @classmethod
    def of(cls, metadata: Metadata) -> Decoding:
        """The numbers in the file of a recogniser."""
        return cls(**{each.name: metadata.more.get(each.name, each.default) for each in fields(cls)})


def read_run(run: Run, step: int | None = None) -> Decoding:
    """The decoding that was chosen when the training of a run last ended; the default one if there is none.

    Args:
        run: of kind "transcribe".
        step: of the weights that it is for; a warning says if it was chosen for others, or never.

    Raises:
        InputError: the file holds something else.
    """
    decoding = Decoding(**read_decoding(run, asdict(Decoding()), step))
    if min(decoding.temperature, decoding.lm_temperature) <= 0:
        path = run.folder / DECODING_FILE
        raise InputError(f"{path} holds no decoding; delete it to use the default")
    return decoding
