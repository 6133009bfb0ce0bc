"""Align a predicted text with the true one, character by character."""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


class Edit(NamedTuple):
    """One step from the predicted text to the true one.

    Attributes:
        predicted: a character of the predicted text; "" if one has to be inserted.
        truth: the character of the true text at the same place; "" if the predicted one has to be removed.
    """

    predicted: str
    truth: str

    @property
    def is_error(self) -> bool:
        return self.predicted != self.truth


def align(predicted: str, truth: str) -> list[Edit]:
    """Align two texts with as few errors (insertions, deletions, substitutions) as possible."""
    return [
        Edit(left, right)
        for op in Levenshtein.opcodes(predicted, truth)
        for left, right in zip_longest(
            predicted[op.src_start : op.src_end], truth[op.dest_start : op.dest_end], fillvalue=""
        )
    ]
