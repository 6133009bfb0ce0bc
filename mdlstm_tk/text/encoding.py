"""The characters of texts, and how texts are encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from mdlstm_tk._util.text import composed, counted
from mdlstm_tk._util.text_order import Direction, is_right_to_left, reorder
from mdlstm_tk.data.samples import Survey
from mdlstm_tk.data.spec import Split
from mdlstm_tk.data.targets import Targets
from mdlstm_tk.data.task import Task

# Marks that no image shows: byte order, and the direction of what follows. The order of a text is found
# without them.
INVISIBLE = dict.fromkeys(
    map(ord, "\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)


def normalise(text: str) -> str:
    """Return a text without marks of direction, in Unicode's composed form (NFC), and without blanks at its
    ends, which no error counts."""
    return composed(text.translate(INVISIBLE)).strip()


def fit_texts(texts: Sequence[str]) -> Targets:
    """The characters of texts, their direction and their encoding."""
    normal = [normalise(text) for text in texts]
    direction: Direction = "rtl" if is_right_to_left("".join(normal)) else "ltr"
    visual = [reorder(text, direction) for text in normal]
    characters = {character: k for k, character in enumerate(sorted(set("".join(visual))), 1)}
    lengths = [len(text) for text in visual]
    lines = [
        f"texts of {min(lengths)} to {counted(max(lengths), 'character')} from {len(characters)}: "
        f"{''.join(characters)}"
    ]
    if count := sum(a != b for a, b in zip(texts, normal, strict=True)):
        lines.append(
            f"{counted(count, 'text was', 'texts were')} normalised: characters composed (NFC), marks of "
            "direction and blanks at the ends left out"
        )
    if count := sum(a != b for a, b in zip(normal, visual, strict=True)):
        lines.append(
            f"{counted(count, 'text runs', 'texts run')} from right to left or in part; models return them "
            "in the order of reading"
        )

    encode = partial(_encode_text, characters=characters, direction=direction)
    return Targets(len(characters) + 1, encode, lines, tuple(characters), direction=direction)


def _encode_text(text: str, characters: Mapping[str, int], direction: Direction) -> list[int]:
    return [characters[character] for character in reorder(normalise(text), direction)]


class TextExtent(NamedTuple):
    """The room that the text of a sample has, and the room it needs.

    Attributes:
        split: its split.
        name: name of the sample.
        text: the text.
        width: columns of its image.
        ctc_steps: steps that CTC needs to spell the text: one per character, and a blank between two
            equal ones.
    """

    split: Split
    name: str
    text: str
    width: int
    ctc_steps: int

    @classmethod
    def of(cls, split: Split, survey: Survey, targets: Targets) -> TextExtent:
        """The extent of a sample's text."""
        text = targets.encode(survey.target)
        repeats = sum(a == b for a, b in pairwise(text))
        return cls(split, survey.sample.name, survey.target, survey.extents[1], len(text) + repeats)


class TaskTexts(NamedTuple):
    """The texts of a user's data, in `Task.of_kind`; other tasks have none there, and room enough.

    Attributes:
        train: those of the training split.
        extents: of all samples.
    """

    train: Sequence[str]
    extents: Sequence[TextExtent]


def texts_without_room(columns: int | None, task: Task) -> list[TextExtent]:
    """The samples whose text needs more steps than a network makes of the sample's image, if one covers
    some columns; None: it does not say how many.

    CTC cannot spell such a text, so the loss leaves the sample out.
    """
    return [
        e for e in getattr(task.of_kind, "extents", ()) if columns and -(-e.width // columns) < e.ctc_steps
    ]
