"""The characters of texts, and how texts are encoded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

from mdlstm_tk._util.text import composed
from mdlstm_tk._util.text_order import Direction, is_right_to_left, reorder
from mdlstm_tk.kinds.kind import Labels

log = logging.getLogger("mdlstm_tk.data")

# Marks that no image shows: byte order, and the direction of what follows. The order of a text is found
# without them.
INVISIBLE = dict.fromkeys(
    map(ord, "\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)


def normalise(text: str) -> str:
    """Return a text without marks of direction, in Unicode's composed form (NFC), and without blanks at its
    ends, which no error counts."""
    return composed(text.translate(INVISIBLE)).strip()


def fit_texts(train: Sequence[str], every: Sequence[str]) -> Labels:
    """The characters of texts, their direction and their encoding.

    Args:
        train, every: the normalised texts that are trained on, and all.
    """
    direction: Direction = "rtl" if is_right_to_left("".join(every)) else "ltr"
    learned, characters = (
        sorted({character for text in texts for character in reorder(text, direction)})
        for texts in (train, every)
    )
    if absent := "".join(sorted({*characters} - {*learned})):
        log.warning("characters without samples to train on: %s", absent)
    outputs = {character: k for k, character in enumerate(characters, 1)}
    encode = partial(_encode_text, characters=outputs, direction=direction)
    decoding = {"text_direction": direction}
    return Labels(1 + len(characters), tuple(characters), encode, decoding=decoding)


def _encode_text(text: str, characters: Mapping[str, int], direction: Direction) -> list[int]:
    return [characters[character] for character in reorder(normalise(text), direction)]
