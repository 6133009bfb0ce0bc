"""The metadata of recognisers."""

from __future__ import annotations

from dataclasses import dataclass

from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.text_order import Direction
from mdlstm_tk.text.decoding import Decoding


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
