"""How texts are read from the outputs of a recogniser: the numbers that training chooses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """The numbers that decide how texts are read; see `mdlstm_tk.runtime.ctc`.

    Attributes:
        temperature: above 0; divides the logits to calibrate the confidences: of the characters read at
            0.9, nine in ten are right.
        lm_weight: weight of log P(text) by a language model, beside log P(text | image).
        character_bonus: added to the score (in nats) for each character if there is a language model, to
            offset its preference for short texts.
    """

    temperature: float = 1.0
    lm_weight: float = 0.6
    character_bonus: float = 1.0
