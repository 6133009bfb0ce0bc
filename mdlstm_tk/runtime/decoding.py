"""How texts are read from the outputs of a recogniser: the numbers that training chooses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """The numbers that decide how texts are read; see `mdlstm_tk.runtime.ctc`.

    Attributes:
        temperature: divides the logits, so that confidences are as often right as they say.
        lm_weight: weight of log P(text) by a language model, beside log P(text | image).
        character_bonus: is added for each character if there is a language model, as longer texts are less
            likely.
    """

    temperature: float = 1.0
    lm_weight: float = 0.6
    character_bonus: float = 1.0
