"""The numbers by which texts are read from the outputs of a recogniser; training chooses them for a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mdlstm_tk.io.metadata import Metadata

LM_FILE = "lm.arpa.gz"  # of a run: a character model of the training texts
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
        return cls.among(metadata.more)

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> Decoding:
        """The numbers in the `decoding` of a `TaskSpec`."""
        return cls(**{each.name: values.get(each.name, each.default) for each in fields(cls)})
